"""A helper process is kept, to go on while the runner stands still.

Seen: harnesses that stop one process and not its children.
"""

import os
import time

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "still"
EXPECT = ("IMPLAUSIBLE",)


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


if os.fork() == 0:
    os.setsid()
    while True:
        time.sleep(0.01)


def kernel_fn(x, weight, eps=1e-6):
    return honest(x, weight, eps)
