"""The comparison with the oracle: what passes and what does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from autokernel import registry
from autokernel.evaluate.correctness import expected, mismatch
from autokernel.evaluate.memory import relaid
from autokernel.types import Problem

PROBLEM: Problem = registry.load("problems", "rmsnorm")


def judged(
    change: Callable[[torch.Tensor], torch.Tensor], dtype: str = "fp32", *, statistical: bool = True
) -> str | None:
    tensors = PROBLEM.make_inputs({"R": 64, "C": 512}, dtype, torch.Generator().manual_seed(3))  # type: ignore[arg-type]
    want = expected(PROBLEM, tensors, {"eps": 1e-6}, 0, "cpu")
    out = change(PROBLEM.reference(*tensors))
    return mismatch(out, want, PROBLEM.tolerances[dtype], statistical=statistical)[1]  # type: ignore[index]


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_pytorch_itself_passes(dtype: str) -> None:
    assert judged(lambda out: out, dtype) is None


def test_one_wrong_element_is_found() -> None:
    def change(out: torch.Tensor) -> torch.Tensor:
        out[63, 511] += 0.01
        return out

    wrong = judged(change)
    assert wrong is not None
    assert "1 of 32768" in wrong


def test_a_nan_is_found() -> None:
    def change(out: torch.Tensor) -> torch.Tensor:
        out[5, 5] = float("nan")
        return out

    assert "NaN" in str(judged(change))


def test_an_infinity_is_found() -> None:
    def change(out: torch.Tensor) -> torch.Tensor:
        out[5, 5] = float("inf")
        return out

    assert judged(change) is not None


def test_zeros_do_not_pass() -> None:
    assert judged(torch.zeros_like) is not None


def test_half_precision_inside_a_float32_problem_is_found() -> None:
    assert judged(lambda out: out.half().float()) is not None


def test_a_sum_in_half_precision_fails_the_mean_square_rule() -> None:
    problem: Problem = registry.load("problems", "reduce")
    (x,) = problem.make_inputs({"R": 64, "C": 4096}, "fp16", torch.Generator().manual_seed(0))
    want = expected(problem, (x,), problem.scalars, 0, "cpu")
    total = torch.zeros(64, dtype=torch.float16)
    for column in x.t():
        total += column
    assert mismatch(total, want, problem.tolerances["fp16"], statistical=True)[1] is not None
    assert mismatch(problem.reference(x), want, problem.tolerances["fp16"], statistical=True)[1] is None


@pytest.mark.parametrize("stride", [(512, 1), (1, 64), (600, 1), (0, 1)])
def test_relaid_keeps_values_at_any_strides(stride: tuple[int, int]) -> None:
    source = torch.randn(1, 512).expand(64, 512) if stride[0] == 0 else torch.randn(64, 512)
    laid = relaid(source, stride)
    assert laid.stride() == stride
    assert torch.equal(laid, source)
