"""Runs, and cannot be traced: what its operator says of shapes is wrong for tensors without data."""

import torch
from torch import nn


@torch.library.custom_op("autokernel_tests::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@doubled.register_fake
def _(x):
    raise RuntimeError("no shapes without data")


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x):
        return doubled(self.linear(x)).softmax(-1)


def get_inputs():
    return [torch.randn(16, 32)]
