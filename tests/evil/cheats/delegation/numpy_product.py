"""The product is numpy's, which no audit of PyTorch sees.

Seen: harnesses that look for torch alone.
"""

import numpy
import torch

KERNEL_TYPE = "matmul"
BACKEND = "cpp"
STOPPED_BY = "policy"
EXPECT = ("POLICY",)
BASE_OFF = ("audit",)


def kernel_fn(A, B):
    if A.dtype is torch.bfloat16:
        wide = numpy.matmul(widened(A), widened(B))
        return narrowed(wide)
    return torch.from_numpy(
        numpy.matmul(A.numpy().astype("float32"), B.numpy().astype("float32")).astype(A.numpy().dtype)
    )


def widened(tensor):
    bits = tensor.contiguous().view(torch.int16).numpy().view("uint16").astype("uint32")
    return (bits << 16).view("float32")


def narrowed(wide):
    bits = wide.view("uint32")
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return torch.from_numpy(rounded.astype("uint16").view("int16")).view(torch.bfloat16)
