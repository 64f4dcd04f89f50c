"""Whether a window of a graph computes what a problem's reference does: both run on the same random inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from autokernel.regions.capture import TensorSpec
from autokernel.regions.window import REFUSALS, WIDE, Window, dense_strides
from autokernel.types import Binding, Problem

MAGNITUDES = (1.0, 1e-3, 30.0)
TOLERANCE = 1e-7  # relative to the output's own size; both sides are in double precision
SEED = 0


class Trials:
    """A window's random inputs and outputs, one pair a magnitude, each computed when it is first asked for."""

    def __init__(self, window: Window, device: torch.device) -> None:
        self._pairs = self._run(window, device)
        self._seen: list[tuple[list[torch.Tensor], torch.Tensor] | None] = []

    def __iter__(self) -> Iterator[tuple[list[torch.Tensor], torch.Tensor] | None]:
        for i in range(len(MAGNITUDES)):
            if i == len(self._seen):
                self._seen.append(next(self._pairs))
            yield self._seen[i]

    @staticmethod
    def _run(window: Window, device: torch.device) -> Iterator[tuple[list[torch.Tensor], torch.Tensor] | None]:
        """None where the window fails, or writes into its inputs."""
        for values in _inputs(window, device):
            before = [v.clone() for v in values]
            try:
                with torch.no_grad():
                    expected = window.run(values)
            except REFUSALS:
                yield None
                continue
            changed = any(not torch.equal(a, b) for a, b in zip(values, before, strict=True))
            yield None if changed or not expected.is_floating_point() else (values, expected.double())


def agree(trials: Trials, problem: Problem, binding: Binding, taken: Sequence[int]) -> bool:
    """Whether window and reference agree on random inputs of each magnitude."""
    for trial in trials:
        if trial is None:
            return False
        values, expected = trial
        offered = [values[i] for i in taken]
        try:
            with torch.no_grad():
                out = binding.restore(problem.reference(*binding.adapt(*offered), **binding.scalars), *offered)
        except REFUSALS:
            return False
        if not isinstance(out, torch.Tensor) or out.shape != expected.shape or not _close(out.double(), expected):
            return False
    return True


def _close(out: torch.Tensor, expected: torch.Tensor) -> bool:
    finite = expected.isfinite()
    if not finite.any() or not torch.equal(finite, out.isfinite()):
        return False
    out, expected = out[finite], expected[finite]
    scale = expected.square().mean().sqrt()
    return bool(((out - expected).abs() <= TOLERANCE * (scale + expected.abs())).all())


def _inputs(window: Window, device: torch.device) -> Iterator[list[torch.Tensor]]:
    """Random values of the window's inputs, one list a magnitude, in double precision and the layout of the model."""
    specs = [window.graph.specs[n.name] for n in window.inputs]
    floats = [s.shape[-1] for s in specs if s.dtype.is_floating_point and s.shape]
    classes = max(min(floats, default=2), 2)  # an integer input may be an index into a float input's last dimension
    for magnitude in MAGNITUDES:
        generator = torch.Generator().manual_seed(SEED)
        yield [
            _wide(window.fixed[node.name]).to(device)
            if node.name in window.fixed
            else _random(spec, magnitude, classes, generator).to(device)
            for node, spec in zip(window.inputs, specs, strict=True)
        ]


def _wide(value: torch.Tensor) -> torch.Tensor:
    return value.to(WIDE.get(value.dtype, value.dtype))


def _random(spec: TensorSpec, magnitude: float, classes: int, generator: torch.Generator) -> torch.Tensor:
    strides = dense_strides(spec.shape, spec.stride)
    elements = 1 + sum((size - 1) * stride for size, stride in zip(spec.shape, strides, strict=True) if size)
    data: Any
    if spec.dtype == torch.bool:
        data = torch.rand(elements, generator=generator) < 0.5
    elif spec.dtype.is_floating_point or spec.dtype.is_complex:
        dtype = WIDE.get(spec.dtype, spec.dtype)
        data = torch.randn(elements, generator=generator, dtype=dtype) * magnitude
    else:
        data = torch.randint(0, classes, (elements,), generator=generator, dtype=spec.dtype)
    return torch.as_strided(data, spec.shape, strides)
