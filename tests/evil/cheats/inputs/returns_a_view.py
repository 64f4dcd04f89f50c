"""A view of the input is returned, of the right shape.

Seen: harnesses that check shapes only.
"""

KERNEL_TYPE = "reduce"
BACKEND = "torch"
STOPPED_BY = "oracle"
EXPECT = ("SMOKE",)


def kernel_fn(x, dim=-1):
    return x[:, 0] if dim in (-1, 1) else x[0]
