"""A counter of calls, which changes nothing."""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"


calls = 0


def kernel_fn(x, weight, eps=1e-6):
    global calls
    calls += 1
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)
