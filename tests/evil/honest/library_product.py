"""The best library call there is: allowed in a file that says it is PyTorch."""

import torch

KERNEL_TYPE = "matmul"
BACKEND = "torch"


def kernel_fn(A, B):
    return torch.nn.functional.linear(A, B.t())
