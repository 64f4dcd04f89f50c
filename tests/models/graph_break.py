"""A model that prints between two layers and branches on a value: three graphs, one of them called twice."""

import torch
import torch.nn.functional as F
from torch import nn

FEATURES = 64


class Layer(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class Model(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.first, self.second = Layer(features), Layer(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        print("between the layers")
        x = self.second(x)
        if x.sum() > 1e9:
            x = x + 1
        return F.softmax(x, dim=-1)


def get_inputs() -> list[torch.Tensor]:
    return [torch.randn(32, FEATURES)]


def get_init_inputs() -> list[int]:
    return [FEATURES]
