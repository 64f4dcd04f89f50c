"""A thread fills the output after the call has returned.

Seen: harnesses that synchronise nothing.
"""

import threading
import time

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "oracle"
EXPECT = ("SMOKE",)


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def kernel_fn(x, weight, eps=1e-6):

    out = torch.empty_like(x)
    threading.Thread(target=lambda: (time.sleep(0.05), out.copy_(honest(x, weight, eps)))).start()
    return out
