"""Regions that no built-in problem covers: two twisted norms of different widths, a GELU epilogue, a masked softmax
whose scale is a parameter, and a cumulative sum from the right.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, SEQ, BATCH = 96, 24, 2


class Twisted(nn.Module):
    """An RMS norm of a sum, squashed, with its input added: no problem is like this."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(size) + 0.5)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        h = x + 0.5 * residual
        wide = h.float()
        squashed = torch.tanh(wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(h.dtype)
        return squashed * self.weight + h


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Twisted(WIDTH), Twisted(2 * WIDTH)
        self.up, self.gate = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.bias = nn.Parameter(torch.randn(2 * WIDTH))
        self.temperature = nn.Parameter(torch.tensor(0.3))
        self.register_buffer("mask", torch.ones(SEQ, SEQ, dtype=torch.bool).tril())

    def forward(self, x: torch.Tensor, residual: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.first(x, residual)
        z = F.gelu(self.up(y) + self.bias, approximate="tanh") * self.gate(y)
        shares = torch.softmax((scores * self.temperature).masked_fill(~self.mask, float("-inf")), -1)
        wide = self.second(torch.sort(z, -1).values, z)
        return wide, shares, torch.cumsum(scores.flip(-1), -1)


def get_inputs() -> list[torch.Tensor]:
    return [
        torch.randn(BATCH, SEQ, WIDTH),
        torch.randn(BATCH, SEQ, WIDTH),
        torch.randn(BATCH, 4, SEQ, SEQ),
    ]
