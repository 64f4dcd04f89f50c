"""A generator of its own, seeded by a constant, fills a matrix that is then not used for the result."""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"


NOISE = torch.randn(64, generator=torch.Generator().manual_seed(0))


def kernel_fn(x, weight, eps=1e-6):
    wide = x.float() + 0 * NOISE.sum()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)
