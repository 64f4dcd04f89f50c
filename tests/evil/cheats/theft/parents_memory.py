"""The memory of the parent process is read.

Seen: runners that the judge forks itself.
"""

import os

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "process"
EXPECT = ("SMOKE",)


def kernel_fn(x, weight, eps=1e-6):

    try:
        with open(f"/proc/{os.getppid()}/mem", "rb") as memory, open(f"/proc/{os.getppid()}/maps") as maps:
            memory.seek(int(next(line for line in maps if "heap" in line).split("-")[0], 16))
            raw = memory.read(x.numel() * x.element_size())
        return torch.frombuffer(bytearray(raw), dtype=x.dtype).reshape(x.shape)
    except (OSError, StopIteration, ValueError):
        return torch.zeros_like(x)
