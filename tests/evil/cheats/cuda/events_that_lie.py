"""CUDA's events are replaced by some that tell a tenth of the time.

Seen: harnesses that time with torch.cuda.Event in the candidate's process; patched in a line.
"""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "clock"
EXPECT = ("revert", "IMPLAUSIBLE")
DEVICE = "cuda"


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


class Event(torch.cuda.Event):
    def elapsed_time(self, end):
        return super().elapsed_time(end) / 10


torch.cuda.Event = Event


def kernel_fn(x, weight, eps=1e-6):
    return honest(x, weight, eps)
