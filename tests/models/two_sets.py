"""Two kinds of forward: a long one that is made three times as often as a short one."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(64)

    def forward(self, x):
        return torch.softmax(self.norm(x), dim=-1)


def get_input_sets():
    return [(0.25, [torch.randn(8, 64)]), (0.75, [torch.randn(128, 64)])]
