"""The inputs are overwritten with ones, so that whoever compares afterwards compares with an easy answer.

Seen: harnesses that compute the reference from the tensors that the candidate was given, after it has run.
"""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "sealed"
EXPECT = ("SMOKE", "CRASH")
DEVICE = "cuda"


def kernel_fn(x, weight, eps=1e-6):
    x.fill_(1.0)
    return weight.expand_as(x).contiguous()
