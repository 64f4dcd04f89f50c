"""The memory of every process in /proc is searched for the harness.

Seen: runners that share a /proc with the judge.
"""

import contextlib
import os

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "process"
EXPECT = ("SMOKE",)


def kernel_fn(x, weight, eps=1e-6):

    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if int(pid) in (os.getpid(), os.getppid()):
                continue
            with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb") as memory:
                for line in maps:
                    if "heap" in line:
                        memory.seek(int(line.split("-")[0], 16))
                        raw = memory.read(x.numel() * x.element_size())
                        return torch.frombuffer(bytearray(raw), dtype=x.dtype).reshape(x.shape)
    return torch.zeros_like(x)
