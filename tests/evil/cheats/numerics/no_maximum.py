"""The row's maximum is not subtracted before the exponential.

Seen: inputs of ordinary size.
"""

KERNEL_TYPE = "softmax"
BACKEND = "torch"
STOPPED_BY = "stability"
EXPECT = ("STABILITY",)


def kernel_fn(x):
    powers = x.float().exp()
    return (powers / powers.sum(-1, keepdim=True)).to(x.dtype)
