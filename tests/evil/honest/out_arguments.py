"""Every step writes into memory that was allocated for it."""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"


def kernel_fn(x, weight, eps=1e-6):
    wide = torch.empty(x.shape, dtype=torch.float32).copy_(x)
    square = torch.empty_like(wide)
    torch.mul(wide, wide, out=square)
    scale = square.mean(-1, keepdim=True).add_(eps).rsqrt_()
    torch.mul(wide, scale, out=square)
    return (square * weight).to(x.dtype)
