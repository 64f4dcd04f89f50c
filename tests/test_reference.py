"""The façade lists every problem's own oracle, and each oracle gives numbers worked out by hand."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from autokernel import registry, runfile
from autokernel.types import Problem

REFERENCE = runfile.run(Path(__file__).parents[1] / "reference.py", "reference")
NAMES = registry.names("problems")


def test_the_facade_lists_every_problem() -> None:
    assert sorted(REFERENCE.__all__) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_function_is_the_oracle_of_its_problem(name: str) -> None:
    problem: Problem = registry.load("problems", name)
    function = getattr(REFERENCE, name)
    assert function is problem.reference
    assert list(inspect.signature(function).parameters) == [*problem.inputs, *problem.scalars]
    defaults = {n: p.default for n, p in inspect.signature(function).parameters.items() if n in problem.scalars}
    assert defaults == dict(problem.scalars)
    assert "[" in (function.__doc__ or ""), "shapes belong in the docstring"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_each_function_keeps_the_dtype(name: str, dtype: torch.dtype) -> None:
    problem: Problem = registry.load("problems", name)
    inputs = problem.make_inputs(problem.shapes["cpu"][0], "fp32", torch.Generator().manual_seed(0))
    out = problem.reference(*(t.to(dtype) if t.is_floating_point() else t for t in inputs))
    assert out.dtype == dtype and bool(torch.isfinite(out).all())


def wide(*values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


SILU_OF_ONE = 1 / (1 + math.exp(-1))
BY_HAND: dict[str, tuple[Callable[[], torch.Tensor], torch.Tensor]] = {
    "matmul": (lambda: REFERENCE.matmul(wide([1, 2], [3, 4]), wide([5], [6])), wide([17], [39])),
    "softmax": (lambda: REFERENCE.softmax(wide([0, math.log(3)])), wide([0.25, 0.75])),
    "layernorm": (
        lambda: REFERENCE.layernorm(wide([1, 3]), wide(2, 2), wide(5, 6), eps=0.0),
        wide([3, 8]),
    ),
    "rmsnorm": (lambda: REFERENCE.rmsnorm(wide([1, 7]), wide(5, 10), eps=0.0), wide([1, 14])),
    "cross_entropy": (
        lambda: REFERENCE.cross_entropy(wide([0, 0], [0, math.log(3)]), torch.tensor([0, 1])),
        torch.tensor((math.log(2) + math.log(4 / 3)) / 2, dtype=torch.float64),
    ),
    "reduce": (lambda: REFERENCE.reduce(wide([1, 2], [3, 4]), dim=0), wide(4, 6)),
    "rotary_embedding": (
        lambda: REFERENCE.rotary_embedding(wide([[[1, 2, 3, 4]]]), wide([0, 0.6]), wide([1, 0.8])),
        wide([[[-2, 1, -1.4, 4.8]]]),
    ),
    # Query 0 sees key 0; query 1 weighs the keys 1 : 3.
    "flash_attention": (
        lambda: REFERENCE.flash_attention(
            wide([[[1], [1]]]), wide([[[0], [math.log(3)]]]), wide([[[8], [16]]]), causal=True, sm_scale=1.0
        ),
        wide([[[8], [14]]]),
    ),
    "fused_mlp": (
        lambda: REFERENCE.fused_mlp(wide([1, 1]), wide([0.5, 0.5]), wide([2, 1]), wide([1], [10])),
        wide([3 * SILU_OF_ONE, 30 * SILU_OF_ONE]),
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_numbers_worked_out_by_hand(name: str) -> None:
    compute, expected = BY_HAND[name]
    torch.testing.assert_close(compute(), expected, rtol=1e-12, atol=1e-12)


def test_grouped_queries_share_keys_in_order() -> None:
    """Query heads 0 and 1 read head 0 of K and V, heads 2 and 3 read head 1."""
    q = torch.zeros(1, 4, 1, 1, dtype=torch.float64)
    v = wide([[[1.0]], [[2.0]]])
    out = REFERENCE.flash_attention(q, torch.zeros_like(v), v)
    assert out.flatten().tolist() == [1, 1, 2, 2]
