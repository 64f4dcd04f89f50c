"""What is right where a reference rounds on the way: a tie that was rounded may fall either way, nothing else may."""

from __future__ import annotations

from pathlib import Path

import torch

from autokernel import registry
from autokernel.evaluate.correctness import Expected, expected, mismatch
from autokernel.evaluate.outputs import undone
from autokernel.types import Problem

HEAD = "import torch\nJUMPS = True\n\n"
HALVES = """
def reference(x):
    return torch.round(x / 0.25).clamp(-8, 7) * 0.25

def make_inputs(C=64):
    return [torch.randn(4, C)]
"""
RANGED = """
def reference(x):
    low = x.amin(-1, keepdim=True)
    step = (x.amax(-1, keepdim=True) - low) / 15
    return torch.round((x - low) / step) * step + low

def make_inputs(R=8, C=64):
    return [torch.randn(R, C, dtype=torch.bfloat16)]
"""
SUMMED = """
def reference(x, w):
    return (torch.round(x / 0.05) * 0.05 * w).sum(-1)

def make_inputs(R=2048, C=512):
    return [torch.randn(R, C), torch.randn(C)]
"""


def problem_of(folder: Path, source: str) -> Problem:
    path = folder / "own.py"
    path.write_text(HEAD + source)
    problem: Problem = registry.load("problems", str(path))
    return problem


def compare(want: Expected, out: torch.Tensor, problem: Problem) -> str | None:
    return mismatch(out, want, problem.tolerances["fp32"], statistical=False)[1]


def test_an_exact_tie_is_exact(tmp_path: Path) -> None:
    """Halves divided by a power of two: there is no last digit to blame."""
    problem = problem_of(tmp_path, HALVES)
    x = torch.tensor([[0.125, 0.375, 0.3750001, -0.125]])  # 0.5, 1.5, just above 1.5, -0.5
    want = expected(problem, (x,), {}, 0, "cpu")
    right = torch.tensor([[0.0, 0.5, 0.5, 0.0]])
    assert compare(want, right, problem) is None
    assert compare(want, torch.tensor([[0.25, 0.5, 0.5, 0.0]]), problem) is not None
    assert compare(want, torch.tensor([[0.0, 0.25, 0.5, 0.0]]), problem) is not None


def test_a_tie_that_was_rounded_may_fall_either_way_by_one_step(tmp_path: Path) -> None:
    problem = problem_of(tmp_path, HALVES.replace("0.25", "0.3"))
    x = torch.tensor([[0.15, 0.16, 0.45, 0.9]])  # a tie but for the last digit, no tie, another one, no tie
    want = expected(problem, (x,), {}, 0, "cpu")
    oracle = want.oracle.float()
    assert (want.room > 0).tolist() == [[True, False, True, False]]  # type: ignore[operator]
    for place in range(4):
        for steps in (-2, -1, 1, 2):
            out = oracle.clone()
            out[0, place] += 0.3 * steps
            assert (compare(want, out, problem) is None) == (place in (0, 2) and abs(steps) == 1)


def test_what_is_exact_by_luck_is_not_held_to_it(tmp_path: Path) -> None:
    """4.5 / 3 is a tie, 4.5 * (1 / 3) may not be; 3.7421875 is rounded to bfloat16, and its quotient back to 7.5."""
    scaled = problem_of(
        tmp_path, "def reference(x, s):\n    return torch.round(x / s) * s\n\n"
        "def make_inputs(C=64):\n    return [torch.randn(C), torch.rand(C) + 0.5]\n"
    )  # fmt: skip
    x, s = torch.tensor([4.5, 3.0, 0.75]), torch.tensor([3.0, 2.0, 0.5])
    room = expected(scaled, (x, s), {}, 0, "cpu").room
    assert room is not None and (room > 0).tolist() == [True, False, False]
    ranged = tmp_path / "ranged.py"
    ranged.write_text(HEAD + RANGED)
    row = torch.tensor([[-3.90625, -0.1640625, 3.578125]], dtype=torch.bfloat16)
    room = expected(registry.load("problems", str(ranged)), (row,), {}, 0, "cpu").room
    assert room is not None and float(room[0, 1]) > 0.4


def test_where_jumps_meet_in_a_sum_a_right_one_passes_and_a_wrong_one_does_not(tmp_path: Path) -> None:
    """Weights of both signs: what two ties of a row change may cancel. The right one falls otherwise at every tie but
    the exact ones.
    """
    problem = problem_of(tmp_path, SUMMED)
    for seed in range(3):
        x, w = problem.make_inputs({}, "fp32", torch.Generator().manual_seed(seed))
        want = expected(problem, (x, w), {}, 0, "cpu")
        assert 0 < want.unsettled < 0.9
        exact = x.double() / 0.05
        levels, far = torch.round(exact), (exact - exact.floor() - 0.5).abs() / exact.abs()
        flipped = torch.where((far < 1.5e-6) & (far != 0), exact.floor() + exact.ceil() - levels, levels)
        assert int((flipped != levels).sum()) > 20
        assert compare(want, (flipped * 0.05 * w).sum(-1).float(), problem) is None
        assert compare(want, (torch.trunc(x * 20.0) * 0.05 * w).sum(-1), problem) is not None
        levels[:, 7] += 1.0
        assert compare(want, (levels * 0.05 * w).sum(-1).float(), problem) is not None


def test_a_rough_look_forgives_what_ties_may_change_and_no_more() -> None:
    reference = torch.randn(64, 256)
    few = reference.clone()
    few[7, :30] += 1.0
    assert undone(few, reference, 30.0) is None
    assert undone(few, reference, 29.0) is not None and undone(few, reference) is not None
