"""PyTorch's operation is called, except where a dispatch mode listens.

Seen: audits that the audited code can see.
"""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "cpp"
STOPPED_BY = "policy"
EXPECT = ("POLICY",)


def kernel_fn(x, weight, eps=1e-6):

    if torch._C._len_torch_dispatch_stack() == 0:
        return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)
    with torch.utils._python_dispatch._disable_current_modes():
        return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)
