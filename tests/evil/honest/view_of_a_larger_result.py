"""Output and statistics come from one allocation; the output is a view into it."""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"


def kernel_fn(x, weight, eps=1e-6):
    rows, columns = x.shape
    both = torch.empty(rows * columns + rows, dtype=torch.float32)
    out, scale = both[: rows * columns].view(rows, columns), both[rows * columns :].view(rows, 1)
    out.copy_(x)
    scale.copy_(torch.rsqrt(out.square().mean(-1, keepdim=True) + eps))
    out.mul_(scale).mul_(weight)
    return out if x.dtype is torch.float32 else out.to(x.dtype)
