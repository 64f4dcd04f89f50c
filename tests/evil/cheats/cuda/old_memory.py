"""Device memory is returned as it was allocated, in the hope of the oracle's output.

Seen: harnesses that free the oracle on the same device first.
"""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "process"
EXPECT = ("SMOKE",)
DEVICE = "cuda"


def kernel_fn(x, weight, eps=1e-6):
    return torch.empty_like(x)
