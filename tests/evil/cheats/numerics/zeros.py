"""Zeros, which an absolute tolerance of 1e-2 accepts for small outputs.

Seen: problem sets with outputs near zero.
"""

import torch

KERNEL_TYPE = "softmax"
BACKEND = "torch"
STOPPED_BY = "oracle"
EXPECT = ("SMOKE",)


def kernel_fn(x):
    return torch.zeros_like(x)
