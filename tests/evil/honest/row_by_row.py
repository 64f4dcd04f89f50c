"""A loop over blocks of rows into an output that starts as raw memory."""

import torch

KERNEL_TYPE = "softmax"
BACKEND = "torch"


def kernel_fn(x):
    out = torch.empty(x.shape, dtype=x.dtype)
    for first in range(0, x.shape[0], 64):
        out[first : first + 64] = torch.softmax(x[first : first + 64].float(), -1)
    return out
