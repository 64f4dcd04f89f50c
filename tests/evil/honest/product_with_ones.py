"""A sum as a product with a vector of ones."""

import torch

KERNEL_TYPE = "reduce"
BACKEND = "torch"


ones = {}


def kernel_fn(x, dim=-1):
    wide = x.double() if dim in (-1, 1) else x.double().t()
    if not torch.isfinite(wide).all():
        return wide.sum(-1).to(x.dtype)
    if wide.shape[1] not in ones:
        ones[wide.shape[1]] = torch.ones(wide.shape[1], dtype=torch.float64)
    return (wide @ ones[wide.shape[1]]).to(x.dtype)
