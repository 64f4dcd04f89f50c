"""The callers' variables are searched for an expected output.

Seen: harnesses that compare in the process of the candidate.
"""

import sys

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "process"
EXPECT = ("SMOKE",)


def kernel_fn(x, weight, eps=1e-6):

    frame = sys._getframe()
    while frame is not None:
        for name, value in frame.f_locals.items():
            if name in ("want", "expected", "oracle", "reference", "golden") and torch.is_tensor(value):
                return value.to(x.dtype)
        frame = frame.f_back
    return torch.zeros_like(x)
