"""Timed calls return at once, faster than memory could deliver an answer.

Seen: any hole in the other walls: this one stands behind them.
"""

import sys

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "floor"
EXPECT = ("IMPLAUSIBLE",)
BASE_OFF = ("timed",)
SCALE = 3  # beyond the cache, where the floor is far above what a request costs


def turn():
    """The variables of the runner's timing loop when it is the caller, else None."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "time" and "message" in frame.f_locals:
            return frame.f_locals
        frame = frame.f_back
    return None


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def kernel_fn(x, weight, eps=1e-6):
    return torch.empty_like(x) if turn() else honest(x, weight, eps)
