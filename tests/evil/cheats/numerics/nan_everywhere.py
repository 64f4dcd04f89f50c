"""One NaN in the input makes the whole output NaN.

Seen: checks that skip outputs with a NaN.
"""

import torch

KERNEL_TYPE = "softmax"
BACKEND = "torch"
STOPPED_BY = "stability"
EXPECT = ("STABILITY",)


def honest(x):
    return torch.softmax(x.float(), -1).to(x.dtype)


def kernel_fn(x):
    if x.isnan().any() or x.isposinf().any():
        return torch.full_like(x, float("nan"))
    return honest(x)
