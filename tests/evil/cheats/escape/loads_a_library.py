"""A shared library is loaded from the disk.

Seen: allow-lists of imports.
"""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "policy"
EXPECT = ("POLICY",)


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


try:
    torch.ops.load_library("fast_kernels.so")
except OSError:
    pass


def kernel_fn(x, weight, eps=1e-6):
    return honest(x, weight, eps)
