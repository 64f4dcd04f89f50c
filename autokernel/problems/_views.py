"""Views that bindings share: a region's tensor seen with the rank of a problem's signature, never a copy."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def is_viewable(x: torch.Tensor, shape: Sequence[int]) -> bool:
    """Whether ``x.view(shape)`` exists: its strides merge without moving an element. Costs nothing on meta tensors."""
    try:
        x.view(tuple(shape))
    except RuntimeError:
        return False
    return True


def rows_of(x: torch.Tensor, columns: int) -> torch.Tensor:
    """x of ``columns >= 1`` elements in its last dimensions -> [R, columns], a view. RuntimeError where none exists."""
    return x.view(x.numel() // columns, columns)


def has_rows(x: torch.Tensor, columns: int) -> bool:
    """Whether ``rows_of(x, columns)`` exists."""
    return columns > 0 and x.numel() % columns == 0 and is_viewable(x, (x.numel() // columns, columns))
