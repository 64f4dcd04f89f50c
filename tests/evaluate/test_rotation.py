"""Inputs of timed calls: new every time, no set a shifted copy of another, ordinary in size."""

from __future__ import annotations

import random

import pytest
import torch

from autokernel import registry
from autokernel.evaluate.outputs import undone
from autokernel.evaluate.rotation import Rotation
from autokernel.types import Problem, Workload

PROBLEM: Problem = registry.load("problems", "rmsnorm")
WORK = Workload({"R": 64, "C": 256}, "fp32", scalars={"eps": 1e-6})


def rotation(work: Workload = WORK, sets: int = 6) -> Rotation:
    made = Rotation(PROBLEM, work, cache_bytes=1 << 16, seed=1, device="cpu", sealed=True)
    made.grow(sets)
    return made


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_every_value_of_the_sets_of_a_turn_is_new_and_others_stay(dtype: str) -> None:
    made = rotation(Workload(WORK.dims, dtype, scalars=WORK.scalars))  # type: ignore[arg-type]
    before = [tuple(t.clone() for t in each) for each in made.inputs.tensors]
    made.rewrite(2, 3, random.Random(0))
    for index, (old, new) in enumerate(zip(before, made.inputs.tensors, strict=True)):
        for was, now in zip(old, new, strict=True):
            same = float((was == now).float().mean())
            assert same < 0.05 if 2 <= index < 5 else same == 1.0


def test_values_stay_ordinary_over_many_turns() -> None:
    made, rng = rotation(), random.Random(0)
    for _ in range(50):
        made.rewrite(0, 6, rng)
    x, weight = made.inputs.tensors[3]
    assert 0.7 < float(x.std()) < 1.1
    assert abs(float(x.mean())) < 0.1
    assert 0.9 < float(weight.mean()) < 1.4


def test_no_set_is_a_shifted_copy_of_another() -> None:
    made = rotation(sets=4)
    made.rewrite(0, 4, random.Random(0))
    flats = [each[0].reshape(-1) for each in made.inputs.tensors]
    seen = {float(value) for value in flats[0]}
    for other in flats[1:]:
        assert sum(float(value) in seen for value in other) < 0.01 * len(other)


def test_strides_are_kept() -> None:
    made = rotation(Workload({"R": 64, "C": 256}, "fp32", strides={"x": (300, 1)}, scalars=WORK.scalars), sets=3)
    made.rewrite(0, 3, random.Random(0))
    assert made.inputs.tensors[1][0].stride() == (300, 1)
    assert torch.isfinite(made.inputs.tensors[1][0]).all()


def test_a_turn_wants_one_set_more_than_calls() -> None:
    made = rotation()
    assert made.sets_for(100) == 101
    assert made.sets_for(10**9) <= 1024


def test_a_call_that_left_a_part_undone_shows() -> None:
    reference = torch.randn(64, 256)
    assert undone(reference * 1.001, reference) is None
    assert undone(reference.half(), reference.half()) is None
    partly = reference.clone()
    partly[7, :30] = 0.0
    assert "far off" in str(undone(partly, reference))
    assert undone(torch.full_like(reference, float("nan")), reference) is not None
