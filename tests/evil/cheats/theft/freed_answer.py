"""Fresh memory is returned as it is, in the hope that the oracle's output was freed there.

Seen: harnesses that free the oracle before the candidate allocates.
"""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "process"
EXPECT = ("SMOKE",)


def kernel_fn(x, weight, eps=1e-6):
    return torch.empty_like(x)
