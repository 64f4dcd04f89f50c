"""The tier that is due, what bounds a target, and what a gain is worth: plain rules, checked by hand."""

from __future__ import annotations

import dataclasses

import pytest
from recorded_runs import recorded

from autokernel.guide.figures import Call, bound, calls, ceilings, worth
from autokernel.guide.problem import describe
from autokernel.guide.progress import due, tier_of
from autokernel.hardware import Hardware
from autokernel.types import Candidate, Decision, Experiment, Measurements, Status, Target, Verdict, Workload

TARGET = Target("t", "rmsnorm", "cpp", (), 0.4, 100.0, 20.0)


def experiment(number: int, idea: str, decision: Decision = "revert", author: str = "anthropic") -> Experiment:
    candidate = Candidate("t", f"# {number}", "", idea, author)
    return Experiment(number, "", TARGET, candidate, Verdict(Status.BUILD, "build", "no"), None, decision, 1.0, "")


@pytest.mark.parametrize(
    ("idea", "author", "tier"),
    [
        ("tier 4: split-K over 8 programs", "anthropic", 4),
        ("Tier 2: exp2 instead of exp", "anthropic", 2),
        ("use exp2 with log2(e) folded in", "openai", 3),
        ("split-K over four programs, partial sums in order", "openai", 4),
        ("TMA descriptors for A and B", "openai", 5),
        ("one pass over x: vectorized loads of 16 bytes", "openai", 2),
        ("online softmax: rescale only when the maximum grew", "openai", 6),
        ("num_warps 8", "openai", 1),
        ("tier 1: GRAIN 1 -> 4096 (elements)", "playbook", 1),
        ("tier 3: MR 6 -> 8, NV 2 -> 3: two constants together, values by TPE over 9 trials", "playbook", 1),
        ("tier 2: square: x.square() reads x once", "playbook", None),
        ("something else entirely", "openai", None),
    ],
)
def test_an_idea_belongs_to_a_tier(idea: str, author: str, tier: int | None) -> None:
    assert tier_of(experiment(1, idea, author=author)) == tier


def test_the_order_of_tiers_follows_what_bounds_the_kernel() -> None:
    assert [due((), b).tier for b in ("memory", "compute", "launch", "")] == [1, 1, 6, 1]
    spent = [experiment(n, "tier 1: BLOCK") for n in (1, 2, 3)]
    assert [due(spent, b).tier for b in ("memory", "compute", "launch", "")] == [2, 3, 6, 2]
    assert due(spent[:2], "memory").tier == 1


def test_a_tier_that_won_last_goes_on_until_it_stops_winning() -> None:
    history = [experiment(n, "tier 1: BLOCK") for n in (1, 2, 3)] + [experiment(4, "tier 5: wgmma", "keep")]
    assert due(history, "memory").tier == 5
    history += [experiment(n, "tier 5: TMA") for n in (5, 6)]
    assert due(history, "memory").tier == 5 and "experiment 4 won in it" in due(history, "memory").reason
    history += [experiment(7, "tier 5: again")]
    assert due(history, "memory").tier == 2


def test_baselines_and_repetitions_are_no_ideas() -> None:
    history = [experiment(n, "tier 1: BLOCK", "aa") for n in range(9)] + [experiment(9, "tier 1: start", "baseline")]
    assert due(history, "memory").tier == 1 and "0 of 3" in due(history, "memory").reason


def test_a_tier_that_a_target_does_not_have_is_never_due() -> None:
    spent = [experiment(n, "tier 1: x") for n in range(3)] + [experiment(3 + n, "tier 3: x") for n in range(3)]
    assert due(spent, "compute").tier == 2
    spent += [experiment(6 + n, "tier 2: x") for n in range(3)]
    assert due(spent, "compute").tier == 5 and due(spent, "compute", {1, 2, 3, 6}).tier == 6


def test_nothing_is_due_when_all_was_tried() -> None:
    history = [experiment(10 * tier + n, f"tier {tier}: x") for tier in range(1, 7) for n in range(3)]
    assert due(history, "compute").tier is None


# ---------------------------------------------------------------------------------------------- figures

H200 = Hardware(
    "cuda", "NVIDIA H200", 132, 1, 50 << 20, {"268435456": 4000.0}, {"fp32": 50.0, "fp16": 650.0, "bf16": 650.0}
)


@pytest.mark.parametrize(
    ("problem", "dims", "expected"),
    [
        ("rmsnorm", {"R": 8192, "C": 4096}, "memory"),
        ("rmsnorm", {"R": 16, "C": 4096}, "launch"),
        ("matmul", {"M": 4096, "K": 4096, "N": 4096}, "compute"),
        ("matmul", {"M": 16, "K": 8192, "N": 28672}, "memory"),
    ],
)
def test_what_bounds_a_target(problem: str, dims: dict[str, int], expected: str) -> None:
    costs = calls([Workload(dims, "fp16")], describe(problem), H200)
    assert bound(costs, "cuda") == expected


def test_bytes_and_flops_become_microseconds() -> None:
    (call,) = calls([Workload({"R": 8192, "C": 4096}, "fp16", 7)], describe("rmsnorm"), H200)
    assert call.nbytes == 2 * (2 * 8192 * 4096 + 4096)
    assert call.memory_us == pytest.approx(call.nbytes / 4e12 * 1e6)
    assert call.compute_us == pytest.approx(4 * 8192 * 4096 / 650e12 * 1e6)
    assert call.floor_us == call.memory_us


def test_without_ceilings_nothing_is_claimed() -> None:
    costs = calls([Workload({"R": 8, "C": 4}, "fp16")], describe("rmsnorm"), None)
    assert costs == (Call(costs[0].workload, 128, 136, 0.0, 0.0),) and bound(costs, "cpu") == ""
    assert ceilings({}) is None and ceilings({"device": "cpu"}) is None


def test_what_a_gain_is_worth_to_the_model() -> None:
    """40 % of the forward; the incumbent takes half of eager's time: the forward is 1 / (0.6 + 0.2) as fast."""
    measured = Measurements(50.0, {"eager": 100.0, "compile": 80.0}, 40.0, {}, 1.0)
    gain = worth(TARGET, measured)
    assert gain.now == pytest.approx(1 / 0.8)
    assert gain.share_now == pytest.approx(0.2 / 0.8)
    assert gain.at_ten == pytest.approx(1 / 0.78)
    assert gain.at_floor == pytest.approx(1 / (0.6 + 0.4 * 0.2))


def test_a_kernel_slower_than_eager_is_not_put_into_the_model() -> None:
    gain = worth(TARGET, Measurements(300.0, {"eager": 100.0}, 7.0, {}, 1.0))
    assert (gain.now, gain.share_now) == (pytest.approx(1.0), pytest.approx(0.4))


def test_the_recorded_runs_are_whole() -> None:
    for name in ("rmsnorm", "matmul"):
        brief = recorded(name)
        assert brief.position is not None and brief.history and ceilings(brief.hardware) is not None
        assert dataclasses.replace(brief) == brief
