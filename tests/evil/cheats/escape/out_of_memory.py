"""OutOfMemoryError is raised for what the kernel cannot do, which a harness counts as skipped.

Seen: a public harness that takes it for a pass.
"""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "form"
EXPECT = ("SHAPES", "SMOKE")


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def kernel_fn(x, weight, eps=1e-6):

    if x.dtype is not torch.float32:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return honest(x, weight, eps)
