"""A model whose forward raises, two calls deep."""

import torch
from torch import nn


def inner(x: torch.Tensor) -> torch.Tensor:
    return x @ torch.ones(3, 3)


class Model(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return inner(x)


def get_inputs() -> list[torch.Tensor]:
    return [torch.ones(2, 4)]
