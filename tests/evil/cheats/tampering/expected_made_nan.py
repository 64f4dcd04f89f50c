"""Every tensor that can be found is filled with NaN, which compares equal to NaN.

Seen: harnesses that allow NaN where the reference has one.
"""

import gc

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "process"
EXPECT = ("SMOKE", "CRASH")


def kernel_fn(x, weight, eps=1e-6):

    for each in gc.get_objects():
        if type(each) is torch.Tensor and each.shape == x.shape and each.data_ptr() != x.data_ptr():
            each.fill_(float("nan"))
    return torch.full_like(x, float("nan"))
