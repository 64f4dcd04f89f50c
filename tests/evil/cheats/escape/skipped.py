"""A test framework's own exception says that the case was skipped.

Seen: harnesses built on one.
"""

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "process"
EXPECT = ("CRASH", "SMOKE")


def kernel_fn(x, weight, eps=1e-6):

    raise SystemExit(0)
