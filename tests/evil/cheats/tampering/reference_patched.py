"""The harness's own modules are found in sys.modules; reference and tolerances are replaced.

Seen: harnesses that a candidate can import.
"""

import sys

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "process"
EXPECT = ("SMOKE",)


for found in list(sys.modules.values()):
    if hasattr(found, "mismatch"):
        found.mismatch = lambda *_, **__: (0.0, None)
    problem = getattr(found, "PROBLEM", None)
    if problem is not None:
        object.__setattr__(problem, "reference", lambda x, *_, **__: torch.zeros_like(x))


def kernel_fn(x, weight, eps=1e-6):
    return torch.zeros_like(x)
