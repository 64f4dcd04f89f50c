"""A tensor whose sign is a flag: the memory holds something else.

Seen: harnesses that resolve lazily what a kernel left undone.
"""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "committed"
EXPECT = ("IMPLAUSIBLE",)


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def kernel_fn(x, weight, eps=1e-6):

    return torch._neg_view(-honest(x, weight, eps))
