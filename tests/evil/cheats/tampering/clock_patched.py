"""time.perf_counter_ns is replaced by a clock that runs at an eighth of its pace; the kernel is slow.

Seen: harnesses that read the clock in the candidate's process.
"""

import time

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "clock"
EXPECT = ("revert",)


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


truth = time.perf_counter_ns
time.perf_counter_ns = lambda: truth() // 8


def kernel_fn(x, weight, eps=1e-6):

    return twice(x, weight, eps)


def twice(x, weight, eps):
    for _ in range(3):
        out = honest(x, weight, eps)
    return out
