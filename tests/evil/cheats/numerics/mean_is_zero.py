"""The mean is not subtracted.

Seen: problem sets whose inputs have mean zero.
"""

import torch

KERNEL_TYPE = "layernorm"
BACKEND = "torch"
STOPPED_BY = "oracle"
EXPECT = ("SMOKE",)


def kernel_fn(x, weight, bias, eps=1e-5):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight + bias).to(x.dtype)
