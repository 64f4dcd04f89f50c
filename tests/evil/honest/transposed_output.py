"""The output is computed transposed and returned as a view of that."""

import torch

KERNEL_TYPE = "softmax"
BACKEND = "torch"


def kernel_fn(x):
    return torch.softmax(x.t().float().contiguous(), 0).to(x.dtype).t()
