"""The same through getattr and a name put together at run time.

Seen: scanners that look for the operation's name.
"""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "cpp"
STOPPED_BY = "policy"
ALSO = ("audit",)
EXPECT = ("POLICY",)


def kernel_fn(x, weight, eps=1e-6):

    return getattr(getattr(torch.nn, "func" + "tional"), "rms" + "_norm")(x, weight.shape, weight, eps)
