"""Infinite inputs are replaced by large numbers.

Seen: inputs without masks.
"""

KERNEL_TYPE = "reduce"
BACKEND = "torch"
STOPPED_BY = "stability"
EXPECT = ("STABILITY",)


def honest(x, dim):
    return x.double().sum(dim).to(x.dtype)


def kernel_fn(x, dim=-1):
    return honest(x.nan_to_num(0.0), dim)
