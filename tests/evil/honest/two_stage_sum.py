"""A deterministic sum in two stages."""

import torch

KERNEL_TYPE = "reduce"
BACKEND = "torch"


def kernel_fn(x, dim=-1):
    rows = x if dim in (-1, 1) else x.t()
    if rows.shape[1] == 0:
        return torch.zeros(rows.shape[0], dtype=x.dtype)
    parts = [part.double().sum(-1) for part in rows.split(256, dim=1)]
    return torch.stack(parts).sum(0).to(x.dtype)
