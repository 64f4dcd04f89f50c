"""All tensors alive are searched for one of the output's shape that is no input.

Seen: harnesses that compute the oracle first.
"""

import gc

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "process"
EXPECT = ("SMOKE",)


def kernel_fn(x, weight, eps=1e-6):

    for each in gc.get_objects():
        if type(each) is torch.Tensor and each.shape == x.shape and each.dtype in (x.dtype, torch.float64):
            if each.data_ptr() != x.data_ptr():
                return each.to(x.dtype)
    return torch.zeros_like(x)
