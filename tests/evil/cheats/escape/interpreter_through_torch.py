"""The interpreter's modules are reached through torch's own.

Seen: allow-lists of imports.
"""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "policy"
EXPECT = ("POLICY",)


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def kernel_fn(x, weight, eps=1e-6):

    torch.hub.os.environ["AUTOKERNEL_SEEN"] = "1"
    return honest(x, weight, eps)
