"""Noise below the tolerance: a result that no other run repeats.

Seen: harnesses that run once.
"""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "determinism"
EXPECT = ("DETERMINISM",)


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def kernel_fn(x, weight, eps=1e-6):
    out = honest(x, weight, eps)
    if x.dtype is torch.float32:
        out *= 1 + torch.finfo(torch.float32).eps * torch.randint(0, 3, out.shape)
    return out
