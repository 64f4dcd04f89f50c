"""eps is left out.

Seen: inputs of ordinary size, where eps vanishes.
"""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "stability"
WITH = ("edges",)
EXPECT = ("STABILITY",)


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def kernel_fn(x, weight, eps=1e-6):
    return honest(x, weight, 0.0 if eps < 1e-4 else eps)
