"""Three lines: functools.lru_cache over the tensors themselves, which hash by identity.

Seen: a public harness that reported a speedup of five digits for it.
"""

import functools

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "fresh"
WITH = ("floor",)
EXPECT = ("IMPLAUSIBLE", "revert")


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


@functools.cache
def kernel_fn(x, weight, eps=1e-6):
    return honest(x, weight, eps)
