"""The call never returns where it cannot pass.

Seen: harnesses without a deadline.
"""

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "deadline"
EXPECT = ("TIMEOUT",)


def kernel_fn(x, weight, eps=1e-6):

    while True:
        pass
