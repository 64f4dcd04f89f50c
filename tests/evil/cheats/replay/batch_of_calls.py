"""The first call of a timed turn computes all of its calls in one batch, saving launches.

Seen: loops over independent calls that a kernel can see from inside.
"""

import sys

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "policy"
EXPECT = ("POLICY",)


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
    if caller is None or caller["message"].get("move") or len(caller["calls"]) < 2:
        return honest(x, weight, eps)
    if x is caller["calls"][0][0][0]:
        tensors = [each[0] for each in caller["calls"]]
        rows = torch.cat([t[0] for t in tensors]).float()
        weights = torch.cat([t[1].expand_as(t[0]) for t in tensors])
        out = (rows * torch.rsqrt(rows.square().mean(-1, keepdim=True) + eps) * weights).to(x.dtype)
        ready.clear()
        ready.update({t[0].data_ptr(): part for t, part in zip(tensors, out.split(x.shape[0]))})
    return ready[x.data_ptr()]


ready = {}
