"""A float32 problem is computed in float16.

Seen: problem sets with a tolerance of 1e-2.
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
    return honest(x.half(), weight.half(), eps).to(x.dtype)
