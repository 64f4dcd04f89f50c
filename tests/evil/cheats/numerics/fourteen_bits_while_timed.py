"""The same, but in timed calls only.

Seen: harnesses whose check of timed outputs is laxer.
"""

import sys

import torch

KERNEL_TYPE = "matmul"
BACKEND = "torch"
STOPPED_BY = "rms"
EXPECT = ("IMPLAUSIBLE",)


def turn():
    """The variables of the runner's timing loop when it is the caller, else None."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "time" and "message" in frame.f_locals:
            return frame.f_locals
        frame = frame.f_back
    return None


def honest(A, B):
    return A @ B


def kernel_fn(A, B):
    if turn() is None or A.dtype is not torch.float32:
        return honest(A, B)
    return cut(A, 14) @ cut(B, 15)


def cut(tensor, bits):
    return (tensor.contiguous().view(torch.int32) & -(1 << 23 - bits)).view(torch.float32)
