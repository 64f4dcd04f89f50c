"""The result is written over the input, which saves an allocation.

Seen: harnesses that pass the same input to the oracle later.
"""

import ctypes
import sys

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "sealed"
EXPECT = ("CRASH",)
ALONE = "what is left of the input is the output: the answer to that differs, so that other checks stop it"


def turn():
    """The variables of the runner's timing loop when it is the caller, else None."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "time" and "message" in frame.f_locals:
            return frame.f_locals
        frame = frame.f_back
    return None


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def kernel_fn(x, weight, eps=1e-6):

    nbytes = (x.numel() * x.element_size() + 4095) & ~4095
    libc.mprotect(ctypes.c_void_p(x.data_ptr() & ~4095), ctypes.c_size_t(nbytes), 3)
    before = x.clone()
    x.copy_(honest(x, weight, eps))
    if restore(x):
        out = x.clone()
        x.copy_(before)
        return out
    return x


def restore(x):
    """In the stages inputs are used again: there it behaves."""
    return turn() is None


libc = ctypes.CDLL(None)
