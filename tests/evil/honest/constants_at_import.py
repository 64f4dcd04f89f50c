"""Constants are computed with math when the file is loaded."""

import math

import torch

KERNEL_TYPE = "softmax"
BACKEND = "torch"


LOG2E = 1 / math.log(2)


def kernel_fn(x):
    if x.shape[1] == 0:
        return torch.empty_like(x)
    wide = x.float()
    powers = torch.exp2((wide - wide.amax(-1, keepdim=True)) * LOG2E)
    return (powers / powers.sum(-1, keepdim=True)).to(x.dtype)
