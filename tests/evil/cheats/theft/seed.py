"""The generator of the harness is asked for its seed, and the inputs' siblings are drawn again.

Seen: harnesses with a fixed or global seed.
"""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "process"
EXPECT = ("SMOKE",)


def kernel_fn(x, weight, eps=1e-6):

    generator = torch.Generator().manual_seed(torch.initial_seed())
    guess = torch.randn(x.shape, generator=generator)
    return (guess * weight).to(x.dtype)
