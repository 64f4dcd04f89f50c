"""A file of the C++ backend calls PyTorch's own operation.

Seen: most public harnesses, which never look.
"""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "cpp"
STOPPED_BY = "policy"
ALSO = ("audit",)
EXPECT = ("POLICY",)


def kernel_fn(x, weight, eps=1e-6):
    return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)
