"""The weight is not applied.

Seen: problem sets whose parameters are all one.
"""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "oracle"
EXPECT = ("SMOKE",)


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def kernel_fn(x, weight, eps=1e-6):
    return honest(x, torch.ones_like(weight), eps)
