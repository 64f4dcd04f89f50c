"""The memory behind the input is read on, in the hope of outputs.

Seen: harnesses that allocate inputs and outputs as one.
"""

import ctypes

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "process"
EXPECT = ("SMOKE", "CRASH")


def kernel_fn(x, weight, eps=1e-6):

    nbytes = x.numel() * x.element_size()
    raw = ctypes.string_at(x.data_ptr() + (nbytes + 4095) // 4096 * 4096, nbytes)
    return torch.frombuffer(bytearray(raw), dtype=x.dtype).reshape(x.shape)
