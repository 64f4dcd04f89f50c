"""Device memory runs out for what the kernel cannot do, which a harness counts as skipped.

Seen: a public harness that takes it for a pass.
"""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "form"
EXPECT = ("SMOKE", "SHAPES")
DEVICE = "cuda"


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def kernel_fn(x, weight, eps=1e-6):

    if x.dtype is not torch.float32:
        torch.empty(1 << 44, dtype=torch.uint8, device=x.device)
    return honest(x, weight, eps)
