"""The input is returned.

Seen: harnesses whose check was never reached.
"""

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "oracle"
EXPECT = ("SMOKE",)


def kernel_fn(x, weight, eps=1e-6):
    return x
