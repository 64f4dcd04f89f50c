"""A program is started.

Seen: runners that may start anything.
"""

import subprocess

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "policy"
EXPECT = ("POLICY",)


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


subprocess.run(["true"], check=True)


def kernel_fn(x, weight, eps=1e-6):
    return honest(x, weight, eps)
