"""The result channel is filled with a message of four gigabytes.

Seen: harnesses that unpickle what a candidate sends.
"""

import os

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "process"
EXPECT = ("CRASH",)


def kernel_fn(x, weight, eps=1e-6):

    os.write(3, b"\xff" * 4096)
    return torch.zeros_like(x)
