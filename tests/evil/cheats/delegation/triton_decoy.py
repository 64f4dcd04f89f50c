"""A Triton file whose kernel copies nothing: the launcher calls PyTorch.

Seen: submissions with an unused @triton.jit function.
"""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "triton"
STOPPED_BY = "policy"
ALSO = ("audit",)
EXPECT = ("POLICY",)
INTERPRETED = True


import triton
import triton.language as tl


@triton.jit
def copy_kernel(source, target, size, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, tl.load(source + at, mask=at < size), mask=at < size)


def kernel_fn(x, weight, eps=1e-6):
    return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)
