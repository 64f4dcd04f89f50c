"""Inputs of a reference with jumps that lie on ties and beside them: a kernel that rounds otherwise is wrong on these.

Nothing is known of the reference but what it does. Its first rounding is watched, and one input is chosen, of which it
reads a value an element; what it reads is taken for a slope times the sum of that input and an offset. Other float
inputs become powers of two, so that ties are exact wherever the reference scales by an input, or by a power of two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from autokernel.evaluate.jumps import ROUNDINGS, Jump, Watch, recording

Call = Callable[..., torch.Tensor]
BESIDE = (0.0, 2.0**-6, -(2.0**-6), 0.0)  # of a step from the tie, in turn: further than the judge lets a value be off
MOST_LEVELS = 2**20


class _Rounding:
    """The first rounding of a call, and the input that it reads element by element, as far as shapes tell: the other
    float arguments are at powers of two, those not below ``least``.
    """

    def __init__(self, call: Call, tensors: Sequence[torch.Tensor], arguments: int, least: float = 0.0) -> None:
        self.call, self.arguments, self.tensors = call, arguments, list(tensors)
        found = self._first()
        self.position = found[0] if found is not None else -1
        self.first = found[1] if found is not None else None
        for i, t in enumerate(self.tensors[:arguments]):
            if t.is_floating_point() and i != self.position:
                wide = t.double()
                power = torch.where(wide == 0, 0.0, wide.abs().log2().round().exp2().clamp(min=least))
                self.tensors[i] = (power * wide.sign()).to(t.dtype)

    def with_input(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.tensors[self.position] = x.to(self.tensors[self.position].dtype)
        return tuple(self.tensors)

    def before(self, x: torch.Tensor) -> torch.Tensor:
        """What the rounding reads where the input is this one, in float64."""
        self.tensors[self.position], kept = x, self.tensors[self.position]
        found = self._first()
        self.tensors[self.position] = kept
        return found[1].value if found is not None else torch.full_like(x, math.nan)

    def slope(self, x: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
        """By how much that grows with the input, where the input is moved; NaN elsewhere."""
        step = torch.where(moved, x.abs() * 2.0**-6 + 2.0**-20, 0.0)
        return (self.before(x + step) - self.before(x)) / step

    def _first(self) -> tuple[int, Jump] | None:
        jumps: list[Jump] = []
        with Watch(recording(jumps)):
            self.call(*(t.double() if t.is_floating_point() else t for t in self.tensors))
        for jump in jumps:
            for position, tensor in enumerate(self.tensors[: self.arguments]):
                fits = tensor.is_floating_point() and tensor.dim() and tensor.shape == jump.value.shape
                if fits and tensor.numel() and not jump.inside and jump.name in ROUNDINGS | {"_to_copy"}:
                    return position, jump
        return None


def on_ties(
    call: Call, tensors: Sequence[torch.Tensor], arguments: int, generator: torch.Generator
) -> tuple[torch.Tensor, ...]:
    """The smaller half of the values of an input is moved to ties and beside them; the larger half stays, for a scale
    may follow from it. The inputs as they are where none is read element by element.
    """
    rounding = _Rounding(call, tensors, arguments)
    if rounding.first is None:
        return tuple(tensors)
    x = tensors[rounding.position].double()
    moved = x.abs() <= x.abs().median()
    slope = rounding.slope(x, moved)
    beside = torch.tensor(BESIDE, dtype=x.dtype).repeat(math.ceil(x.numel() / len(BESIDE)))[: x.numel()].view(x.shape)
    for _ in range(2):
        value = rounding.before(x)
        tie = torch.floor(value) + 0.5 if rounding.first.name == "round" else torch.round(value)
        x = torch.where(moved, x + ((tie + beside - value) / slope).nan_to_num(0.0, 0.0, 0.0), x)
    return rounding.with_input(x)


def on_levels(
    call: Call, tensors: Sequence[torch.Tensor], arguments: int, generator: torch.Generator
) -> tuple[torch.Tensor, ...]:
    """What is rounded becomes whole numbers and halves, with the reference's own largest level in each row: a scale
    that follows from the largest value of a row is then 1, and every half a tie.
    """
    rounding = _Rounding(call, tensors, arguments, least=1.0)
    most = float(rounding.first.value.abs().nan_to_num(0.0, 0.0, 0.0).max().round()) if rounding.first else 0.0
    if not 1 <= most <= MOST_LEVELS:
        return tuple(tensors)
    x = tensors[rounding.position].double()
    slope = rounding.slope(x, x.abs() <= x.abs().median()).nanmedian(-1, keepdim=True).values
    offset = (rounding.before(x) / slope - x).nan_to_num(0.0, 0.0, 0.0)
    halves = torch.randint(-2 * int(most), 2 * int(most) + 1, x.shape, generator=generator) / 2
    halves[..., x.shape[-1] // 2] = most
    return rounding.with_input(halves - offset)
