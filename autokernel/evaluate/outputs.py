"""Outputs of timed calls, as they lie in a runner that stands still: nothing it says of them is taken for granted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch

from autokernel.evaluate.correctness import Expected
from autokernel.evaluate.memory import extent
from autokernel.evaluate.stages import Failed, described
from autokernel.types import Status

ROUGHLY = 0.05  # within this share, and this share of the magnitude, a call is taken to have done its work


def undone(out: torch.Tensor, reference: torch.Tensor, few: float = 0.0) -> str | None:
    """Why an output cannot be that of a call that did its work, or None: roughly compared with PyTorch's own. Of its
    elements so ``few`` may be far off.
    """
    if reference.numel() == 0:
        return None
    got, right = out.float(), reference.float()
    scale = float(right.nan_to_num(0.0, 0.0, 0.0).square().mean().sqrt())
    close = torch.isclose(got, right, rtol=ROUGHLY, atol=ROUGHLY * scale, equal_nan=True)
    return None if int((~close).sum()) <= few else f"{int((~close).sum())} of {close.numel()} elements are far off"


Read = Callable[[int, int], torch.Tensor]  # (address, bytes) -> what lies there, uint8; raises OSError


def lying(
    read: Read, answer: Mapping[str, Any], which: int, want: Expected, name: str, *, apart: bool = True
) -> torch.Tensor:
    """The output of one call as it lies in the memory of a stopped process, or of its device; ``apart`` asks that no
    two of the turn overlap. Raises Failed, or PermissionError.
    """
    described(answer, want, Status.IMPLAUSIBLE, name)
    try:
        at, stride = [int(address) for address in answer["at"]], [int(step) for step in answer["stride"]]
    except (KeyError, TypeError, ValueError) as error:
        raise Failed(Status.IMPLAUSIBLE, f"{name}: the answer does not say where its outputs lie ({error})") from None
    shape = list(want.oracle.shape)
    span = extent(shape, stride) if len(stride) == len(shape) and min(stride, default=0) >= 0 else -1
    if span < 0 or span > 2 * want.oracle.numel() + 4096:
        raise Failed(Status.IMPLAUSIBLE, f"{name}: strides {stride} are not those of an output of shape {shape}")
    if span == 0:
        return torch.empty(shape, dtype=want.dtype, device=want.oracle.device)
    nbytes = span * want.dtype.itemsize
    if len(at) <= which or (apart and any(low + nbytes > high for low, high in pairwise(sorted(at)))):
        raise Failed(Status.IMPLAUSIBLE, f"{name}: outputs of different calls overlap in memory")
    try:
        raw = read(at[which], nbytes)
    except PermissionError:
        raise
    except OSError as error:
        raise Failed(Status.IMPLAUSIBLE, f"{name}: its output cannot be read ({error.strerror})") from None
    return raw.view(want.dtype).as_strided(shape, stride)
