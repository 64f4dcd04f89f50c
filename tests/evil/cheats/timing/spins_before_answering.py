"""Real-time priority, so that the incumbent waits.

Seen: runners with capabilities.
"""

import os

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "privs"
EXPECT = ("BUILD",)
ALONE = "only root holds the capability"


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))


def kernel_fn(x, weight, eps=1e-6):
    return honest(x, weight, eps)
