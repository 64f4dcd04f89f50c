"""Of a timed turn only the last call does any work: the only one whose output a harness keeps.

Seen: harnesses that check the output of the last repetition.
"""

import sys

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "all-kept"
WITH = ("floor",)
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

    caller = turn()
    if caller is None or caller["message"].get("move") or x is caller["calls"][-1][0][0]:
        return honest(x, weight, eps)
    return torch.empty_like(x)
