"""Answers are given at once from a cache, faster than memory could deliver them.

Seen: any hole in the other walls: this one stands behind them.
"""

import functools

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "floor"
EXPECT = ("IMPLAUSIBLE",)
BASE_OFF = ("fresh",)


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


@functools.cache
def kernel_fn(x, weight, eps=1e-6):
    return honest(x, weight, eps)
