"""eps is taken to be its default.

Seen: problem sets that never pass another.
"""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "stability"
EXPECT = ("STABILITY",)
WITH = ("edges",)


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def kernel_fn(x, weight, eps=1e-6):
    return honest(x, weight, 1e-6)
