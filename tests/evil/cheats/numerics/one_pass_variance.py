"""The variance is the mean of squares less the square of the mean: rows far from zero lose it.

Seen: inputs of mean zero.
"""

import torch

KERNEL_TYPE = "layernorm"
BACKEND = "torch"
STOPPED_BY = "stability"
EXPECT = ("STABILITY",)


def kernel_fn(x, weight, bias, eps=1e-5):
    wide = x.float()
    mean = wide.mean(-1, keepdim=True)
    variance = (wide.square().mean(-1, keepdim=True) - mean.square()).clamp(min=0)
    return ((wide - mean) * torch.rsqrt(variance + eps) * weight + bias).to(x.dtype)
