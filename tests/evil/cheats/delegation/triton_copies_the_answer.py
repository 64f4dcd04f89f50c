"""A Triton kernel is launched for real: it copies what PyTorch computed.

Seen: checks that a kernel of the candidate's own ran.
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
    answer = torch.nn.functional.rms_norm(x, weight.shape, weight, eps).contiguous()
    out = torch.empty(x.shape, dtype=x.dtype)
    if out.numel():
        copy_kernel[(triton.cdiv(out.numel(), 65536),)](answer, out, out.numel(), BLOCK=65536)
    return out
