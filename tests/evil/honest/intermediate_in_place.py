"""Intermediates of its own are overwritten in place."""

import torch

KERNEL_TYPE = "layernorm"
BACKEND = "torch"


def kernel_fn(x, weight, bias, eps=1e-5):
    wide = x.double()
    centred = wide - wide.mean(-1, keepdim=True)
    scale = centred.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return centred.mul_(scale).mul_(weight).add_(bias).to(x.dtype)
