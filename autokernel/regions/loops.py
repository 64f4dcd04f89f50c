"""What a region computes as loops over rows and columns: values in terms of values before them, and their axes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import torch

COSTLY = frozenset("exp exp2 expm1 log log2 log1p sigmoid tanh erf sin cos pow".split())


class NotLoops(Exception):
    """A region that is not rows and columns."""


@dataclasses.dataclass(frozen=True)
class Count:
    """The product of these sizes."""

    sizes: tuple[str, ...]


@dataclasses.dataclass(eq=False)
class Value:
    """``op`` is "input", one of POINTWISE, "cast", "number", or a reduction: sum, max, min (mean and var are written
    with these). ``axes`` has one entry a dimension: an axis, or None where the size is 1.
    """

    op: str
    args: tuple[Any, ...]
    dtype: torch.dtype
    axes: list[Axis | None]

    @property
    def reduces(self) -> bool:
        return self.op in ("sum", "max", "min")


class Axis:
    """A dimension of the loops; equal ones are united as operations line them up."""

    def __init__(self, size: str | None) -> None:
        self._into: Axis | None = None
        self._size = size

    @property
    def root(self) -> Axis:
        axis = self
        while axis._into is not None:
            axis = axis._into
        return axis

    @property
    def size(self) -> str:
        """The size's name. Raises NotLoops where no input has it."""
        size = self.root._size
        if size is None:
            raise NotLoops("a dimension that no input has")
        return size

    def unite(self, other: Axis) -> None:
        mine, theirs = self.root, other.root
        if mine is not theirs:
            if mine._size and theirs._size and mine._size != theirs._size:
                raise NotLoops("sizes that differ are lined up")
            theirs._into = mine
            mine._size = mine._size or theirs._size


@dataclasses.dataclass(frozen=True)
class Loops:
    """``values`` in order, the output's last; ``rows`` and ``columns`` are axes, outermost first. Where nothing is
    reduced, the columns are the output's last dimension.
    """

    inputs: tuple[Value, ...]
    values: tuple[Value, ...]
    rows: tuple[Axis, ...]
    columns: tuple[Axis, ...]

    @property
    def output(self) -> Value:
        return self.values[-1]

    @property
    def reductions(self) -> tuple[Value, ...]:
        return tuple(v for v in self.values if v.reduces)

    def by_element(self, value: Value) -> bool:
        """Whether the value differs from column to column."""
        return any(a.root in self.columns for a in value.axes if a is not None)

    def passes(self) -> list[list[Value]]:
        """The reductions that one sweep over the columns can do together, in order."""
        depth: dict[Value, int] = {}
        for value in self.values:
            before = max((depth.get(a, 0) for a in value.args if isinstance(a, Value)), default=0)
            depth[value] = before + value.reduces
        levels = sorted({depth[v] for v in self.reductions})
        return [[v for v in self.reductions if depth[v] == level] for level in levels]

    def needed(self, wanted: Sequence[Value], kept: Collection[Value] = ()) -> list[Value]:
        """What has to be computed for each column to have these: values that differ by column, in order. Those that
        are ``kept`` from an earlier sweep need nothing.
        """
        found: set[Value] = set()
        stack = [v for v in wanted if self.by_element(v)]
        while stack:
            value = stack.pop()
            if value not in found:
                found.add(value)
                if not value.reduces and value not in kept:
                    stack += [a for a in value.args if isinstance(a, Value) and self.by_element(a)]
        return [v for v in (*self.inputs, *self.values) if v in found]

    def worth_keeping(self) -> list[Value]:
        """The costly values that two sweeps need."""
        sweeps = [self.needed([v.args[0] for v in reductions]) for reductions in self.passes()]
        sweeps.append(self.needed([self.output]))
        count = Counter(v for sweep in sweeps for v in sweep if v.op in COSTLY)
        return [v for v in self.values if count[v] > 1]
