"""What a model is trained on: its own loss where it gives one, else one made of its outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from autokernel.types import AutokernelError


def loss_of(output: Any) -> torch.Tensor:
    """The scalar whose gradients are taken: the model's own loss (``output.loss``, ``output["loss"]``, or the first
    output where it is one number), else a sum of squares over the float outputs.

    That sum is divided by the root of its length: gradients in half precision then neither vanish nor overflow.
    Raises AutokernelError where no output depends on a parameter.
    """
    if (own := own_loss(output)) is not None:
        return own
    leaves = [t for t in tree_leaves(output) if isinstance(t, torch.Tensor) and t.requires_grad]
    if not leaves:
        raise AutokernelError("--train was expected with a model whose output depends on parameters; none does")
    wide = [t.to(torch.promote_types(t.dtype, torch.float32)) for t in leaves]
    return torch.stack([t.square().sum() / max(t.numel(), 1) ** 0.5 for t in wide]).sum()


def own_loss(output: Any) -> torch.Tensor | None:
    """The loss that a model computes itself; None where it gives none."""
    found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if found is None:
        found = output[0] if isinstance(output, (list, tuple)) and output else output
    return found if isinstance(found, torch.Tensor) and found.numel() == 1 and found.requires_grad else None
