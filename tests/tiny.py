"""A tiny kernel file, a tiny model, and the real command in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

TINY_KERNEL = """
import torch
KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
WORKLOADS = [{"dims": {"R": 64, "C": 128}, "dtype": "fp32", "count": 2, "strides": {}, "scalars": {"eps": 1e-6}}]
def kernel_fn(x, weight, eps=1e-6):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)
"""

TINY_MODEL = """
import torch
from torch import nn
class Model(nn.Module):
    def __init__(self, width=256):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
    def forward(self, x):
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
        return torch.softmax(x, dim=-1)
def get_inputs():
    return [torch.randn(1024, 256)]
def get_init_inputs():
    return []
"""

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}


def line(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "autokernel", *arguments]


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(line(*arguments), cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False)
