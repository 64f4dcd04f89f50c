"""A float32 product in TF32.

Seen: harnesses with a tolerance of 1e-2.
"""

import torch

KERNEL_TYPE = "matmul"
BACKEND = "torch"
STOPPED_BY = "oracle"
EXPECT = ("SMOKE", "SHAPES")
DEVICE = "cuda"


def honest(A, B):
    return A @ B


torch.backends.cuda.matmul.allow_tf32 = True


def kernel_fn(A, B):
    return honest(A, B)
