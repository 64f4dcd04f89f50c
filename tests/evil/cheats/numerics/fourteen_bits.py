"""Operands of a float32 product are cut to 14 and 15 bits of mantissa: within every elementwise budget.

Seen: TF32 and its relatives behind a large absolute tolerance.
"""

import torch

KERNEL_TYPE = "matmul"
BACKEND = "torch"
STOPPED_BY = "rms"
ALSO = ("stability",)
WITH = ("edges", "held-out")
EXPECT = ("SHAPES",)


def honest(A, B):
    return A @ B


def kernel_fn(A, B):
    if A.dtype is not torch.float32:
        return honest(A, B)
    return cut(A, 14) @ cut(B, 15)


def cut(tensor, bits):
    return (tensor.contiguous().view(torch.int32) & -(1 << 23 - bits)).view(torch.float32)
