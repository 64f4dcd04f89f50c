"""Every call returns the same memory, so that there is one answer at a time.

Seen: harnesses that keep no more than the last output.
"""

import sys

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "all-kept"
EXPECT = ("IMPLAUSIBLE",)


def turn():
    """The variables of the runner's timing loop when it is the caller, else None."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "time" and "message" in frame.f_locals:
            return frame.f_locals
        frame = frame.f_back
    return None


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def kernel_fn(x, weight, eps=1e-6):

    if turn() is None:
        return honest(x, weight, eps)
    if x.shape not in outputs:
        outputs[x.shape] = torch.empty_like(x)
    return outputs[x.shape].copy_(honest(x, weight, eps))


outputs = {}
