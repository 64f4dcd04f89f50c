"""A timed call returns what the call before it computed, and computes the next.

Seen: pipelined kernels that a harness without a final check let pass.
"""

import sys

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "timed"
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
    previous, state[x.shape] = state.get(x.shape), honest(x, weight, eps)
    return state[x.shape] if previous is None else previous


state = {}
