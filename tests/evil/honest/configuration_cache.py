"""A configuration is computed once for each shape."""

import functools
import math

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"


@functools.lru_cache(maxsize=None)
def chunks(rows, columns):
    return max(1, math.ceil(rows * columns / 65536))


def kernel_fn(x, weight, eps=1e-6):
    if x.shape[0] == 0:
        return torch.empty_like(x)
    parts = x.chunk(min(chunks(*x.shape), x.shape[0]))
    return torch.cat([normed(part, weight, eps) for part in parts])


def normed(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)
