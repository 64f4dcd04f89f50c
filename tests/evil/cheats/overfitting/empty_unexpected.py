"""An empty input is an error.

Seen: problem sets without one.
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

    if x.numel() == 0:
        raise ValueError("nothing to do")
    return honest(x, weight, eps)
