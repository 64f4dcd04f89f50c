"""torch.allclose, torch.equal and torch.testing are replaced by functions that agree.

Seen: harnesses that compare in the process of the candidate.
"""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "process"
EXPECT = ("SMOKE",)


torch.allclose = torch.equal = lambda *_, **__: True
torch.testing.assert_close = lambda *_, **__: None


def kernel_fn(x, weight, eps=1e-6):
    return torch.zeros_like(x)
