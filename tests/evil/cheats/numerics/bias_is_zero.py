"""The bias is not added.

Seen: problem sets whose parameters are zero.
"""

import torch

KERNEL_TYPE = "layernorm"
BACKEND = "torch"
STOPPED_BY = "oracle"
EXPECT = ("SMOKE",)


def honest(x, weight, bias, eps):
    return torch.nn.functional.layer_norm(x.float(), weight.shape, weight.float(), bias.float(), eps).to(x.dtype)


def kernel_fn(x, weight, bias, eps=1e-5):
    return honest(x, weight, torch.zeros_like(bias), eps)
