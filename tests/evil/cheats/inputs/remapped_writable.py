"""The memory file of the inputs is opened again, for writing, through /proc/self/map_files.

Seen: shared memory without seals.
"""

import os

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "sealed"
EXPECT = ("SMOKE", "CRASH")
ALONE = "opening map_files needs a capability that runners do not hold"


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def kernel_fn(x, weight, eps=1e-6):

    for line in open("/proc/self/maps"):
        span, _, _, _, _, *name = line.split()
        low, high = (int(each, 16) for each in span.split("-"))
        if low <= x.data_ptr() < high:
            fd = os.open(f"/proc/self/map_files/{span}", os.O_RDWR)
            os.pwrite(fd, bytes(64), x.data_ptr() - low)
    return honest(x, weight, eps)
