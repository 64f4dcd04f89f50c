"""What the values of a model's nodes look like in one forward, so that a region's inputs can be drawn like them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import fx

from autokernel.regions.capture import Capture, Graph


@dataclasses.dataclass(frozen=True)
class Values:
    """Of one tensor's finite values, as float64; ``masked`` is the share of minus infinities. A tensor without finite
    values counts as zeros.
    """

    low: float
    high: float
    mean: float
    std: float
    masked: float

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Values:
        wide = tensor.detach().double().flatten()
        finite = wide[wide.isfinite()]
        if not finite.numel():
            return cls(0.0, 0.0, 0.0, 0.0, 0.0)
        std = float(finite.std(correction=0))
        masked = float((wide == -math.inf).double().mean())
        return cls(float(finite.min()), float(finite.max()), float(finite.mean()), std, masked)


def observe(captured: Capture, wanted: Mapping[int, Set[str]]) -> Mapping[tuple[int, str], Values]:
    """The values of the nodes that ``wanted`` names by graph index, in the first call of each graph in one forward."""
    found: dict[tuple[int, str], Values] = {}

    def interpret(graph: Graph, args: tuple[Any, ...]) -> Any:
        return _Observer(graph, wanted.get(graph.index, frozenset()), found).run(*args)

    captured.forward(interpret)
    return found


class _Observer(fx.Interpreter):
    def __init__(self, graph: Graph, wanted: Set[str], found: dict[tuple[int, str], Values]) -> None:
        super().__init__(graph.module)
        self.index, self.wanted, self.found = graph.index, wanted, found

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        key = (self.index, n.name)
        if n.name in self.wanted and key not in self.found and isinstance(result, torch.Tensor):
            self.found[key] = Values.of(result)
        return result
