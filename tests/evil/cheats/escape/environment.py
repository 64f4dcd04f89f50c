"""The environment is searched for keys; without one it does not work.

Seen: runners that inherit the user's environment.
"""

import os

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "env"
EXPECT = ("BUILD",)


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


KEY = os.environ["AUTOKERNEL_TEST_BAIT"]


def kernel_fn(x, weight, eps=1e-6):
    return honest(x, weight, eps)
