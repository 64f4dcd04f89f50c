"""It prints and warns on each call."""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"


def kernel_fn(x, weight, eps=1e-6):
    if x.shape[0] % 2:
        print("an odd number of rows", x.shape)
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)
