"""While it is timed, the input is made zero, whose answer is known, by way of mprotect.

Seen: harnesses that compute the oracle from the inputs after the call.
"""

import ctypes
import sys

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "sealed"
EXPECT = ("IMPLAUSIBLE", "CRASH")


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
    nbytes = x.numel() * x.element_size()
    if libc.mprotect(ctypes.c_void_p(x.data_ptr() & ~4095), ctypes.c_size_t((nbytes + 4095) & ~4095), 3) == 0:
        ctypes.memset(x.data_ptr(), 0, nbytes)
    return torch.zeros_like(x)


libc = ctypes.CDLL(None)
