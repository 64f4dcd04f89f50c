"""The work goes to a stream of its own, which events on the current one do not see.

Seen: harnesses that time with events on one stream.
"""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "clock"
EXPECT = ("revert", "IMPLAUSIBLE", "SMOKE")
DEVICE = "cuda"


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


streams = []


def kernel_fn(x, weight, eps=1e-6):

    if not streams:
        streams.append(torch.cuda.Stream())
    out = torch.empty_like(x)
    with torch.cuda.stream(streams[0]):
        for _ in range(3):
            out.copy_(honest(x, weight, eps))
    return out
