"""Three ways through, by shape and dtype."""

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"


def kernel_fn(x, weight, eps=1e-6):
    if x.numel() == 0:
        return torch.empty_like(x)
    if x.dtype is torch.float32 and x.shape[0] > 8:
        return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)
    wide = x.double() if x.shape[1] < 128 else x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)
