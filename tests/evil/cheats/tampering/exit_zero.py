"""The process ends with status 0 before anything is compared.

Seen: harnesses that trust an exit code.
"""

import os

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "process"
EXPECT = ("CRASH",)


def kernel_fn(x, weight, eps=1e-6):
    os._exit(0)
