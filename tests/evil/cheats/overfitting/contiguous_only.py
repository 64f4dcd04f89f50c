"""Strides are ignored: the input is read as if it were dense.

Seen: problem sets without a strided input.
"""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "edges"
EXPECT = ("EDGES",)


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def kernel_fn(x, weight, eps=1e-6):

    dense = torch.as_strided(x, x.shape, (x.shape[1], 1)) if x.numel() else x
    return honest(dense, torch.as_strided(weight, weight.shape, (1,)), eps)
