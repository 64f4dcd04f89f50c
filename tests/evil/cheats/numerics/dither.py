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

    return (honest(x, weight, eps).float() * (1 + 4e-3 * torch.rand(()).item() * torch.finfo(x.dtype).eps * 512)).to(
        x.dtype
    )
