"""Roundings on the way: a fake quantisation by one constant step, and a sum with what int8 keeps of each row."""

from __future__ import annotations

import torch
from torch import nn

WIDTH, SEQ, BATCH = 96, 24, 2
STEP = 0.05


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = self.up(x)
        coarse = torch.clamp(torch.round(wide / STEP), -128, 127) * STEP
        y = self.down(coarse)
        step = y.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
        levels = torch.round(y / step).clamp(-128, 127).to(torch.int8)
        return levels.to(y.dtype) * step + x


def get_inputs() -> list[torch.Tensor]:
    return [torch.randn(BATCH, SEQ, WIDTH)]
