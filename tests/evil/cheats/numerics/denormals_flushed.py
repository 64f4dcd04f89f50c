"""Denormal numbers are flushed to zero, and the flag is left set.

Seen: inputs of ordinary size.
"""

import torch

KERNEL_TYPE = "reduce"
BACKEND = "torch"
STOPPED_BY = "stability"
EXPECT = ("STABILITY",)


torch.set_flush_denormal(True)


def kernel_fn(x, dim=-1):
    return (x.float() * 1.0).sum(dim).to(x.dtype)
