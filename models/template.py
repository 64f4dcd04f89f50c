"""A model file: what autokernel profiles and makes faster. Copy this file and put your own model in it.

The convention is KernelBench's: a class ``Model`` and two functions. Anything that PyTorch runs may stand here;
import what you need. Weights stay random (the profiler seeds them), because a kernel's time does not depend on them.

    autokernel profile my_model.py              where its time goes, and what can be won
    autokernel run my_model.py --budget 10m     make it faster
"""

from __future__ import annotations

import torch
from torch import nn

# Sizes decide what is worth optimizing: use those that you run in production.
BATCH, FEATURES, CLASSES = 256, 1024, 4096


# Optional: the settings of ``--set NAME=VALUE``. Values arrive as the type of the parameter's default. It is called
# before get_init_inputs and get_inputs. Without this function the model takes no settings.
def configure(batch: int = BATCH, features: int = FEATURES) -> None:
    global BATCH, FEATURES
    BATCH, FEATURES = batch, features


class Model(nn.Module):
    # Required. ``Model(*get_init_inputs())`` must work. autokernel calls ``.eval()`` and moves it to the device and
    # dtype of ``--device`` and ``--dtype``, so create nothing on a fixed device here.
    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.head = nn.Linear(features, classes)

    # Required. Called as ``model(*get_inputs())`` without gradients. Plain tensor code is captured whole; a print or
    # a branch on a tensor's value breaks the graph in two, which works but hides what spans the break.
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.head(self.norm(x)), dim=-1)


# Required. The arguments of one forward, on the CPU. Floating-point tensors are converted to ``--dtype``.
def get_inputs() -> list[torch.Tensor]:
    return [torch.randn(BATCH, FEATURES)]


# Optional, in place of get_inputs: several kinds of forward, each with how often it is made beside the others. Counts
# and times of the profile are then those of one round of forwards: weights of 3 and 1 are a round of four.
#
#     def get_input_sets() -> list[tuple[float, list[torch.Tensor]]]:
#         return [(3, [torch.randn(BATCH, FEATURES)]), (1, [torch.randn(1, FEATURES)])]


# Required by KernelBench, optional here: the arguments of the constructor.
def get_init_inputs() -> list[int]:
    return [FEATURES, CLASSES]
