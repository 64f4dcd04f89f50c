"""The same through another name for torch.

Seen: scanners that look for the text 'torch.nn'.
"""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "cpp"
STOPPED_BY = "policy"
ALSO = ("audit",)
EXPECT = ("POLICY",)


library = torch


def kernel_fn(x, weight, eps=1e-6):
    return library.nn.functional.rms_norm(x, weight.shape, weight, eps)
