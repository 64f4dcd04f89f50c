"""A workspace is kept for each shape; the output is new."""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"


workspace = {}


def kernel_fn(x, weight, eps=1e-6):
    if x.shape not in workspace:
        workspace[x.shape] = torch.empty(x.shape, dtype=torch.float32)
    wide = workspace[x.shape]
    wide.copy_(x)
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide.mul_(scale) * weight).to(x.dtype)
