"""Greedy: the version that stands is the one to edit."""

from __future__ import annotations

import pytest

from autokernel.registry import load, names
from autokernel.types import Candidate, Experiment, Measurements, Status, Target, Verdict, Workload

TARGET = Target("softmax", "softmax", "cpp", (Workload({"R": 1, "C": 1}, "fp32"),), 0.5, 100.0, 10.0)


def past(number: int, decision: str, status: Status = Status.PASS) -> Experiment:
    measured = Measurements(1.0, {}, None, {}, 0.1) if status is Status.PASS else None
    candidate = Candidate("softmax", f"source {number}", "", "", "")
    return Experiment(
        number, "", TARGET, candidate, Verdict(status, "", "", measurements=measured), None, decision, 1, ""
    )


def test_greedy_edits_the_last_version_that_was_kept():
    greedy = load("strategies", "greedy")()
    history = [past(1, "baseline"), past(2, "revert")]
    assert greedy.ask(history) == "source 1"
    history += [past(3, "keep"), past(4, "revert"), past(5, "aa")]
    for experiment in history:
        greedy.tell(experiment)
    assert greedy.ask(history) == "source 3"


def test_there_is_nothing_to_edit_before_a_baseline_passes():
    with pytest.raises(ValueError, match="baselined before it is edited"):
        load("strategies", "greedy")().ask([past(1, "baseline", Status.BUILD)])


@pytest.mark.parametrize("name", names("strategies"))
def test_every_strategy_keeps_the_protocol(name):
    """A strategy that is made late and told of everything asks for what one that was there all along asks for."""
    history = [past(1, "baseline"), past(2, "revert"), past(3, "keep"), past(4, "revert")]
    always, late = load("strategies", name)(), load("strategies", name)()
    assert always.name == name
    for count, experiment in enumerate(history, start=1):
        always.tell(experiment)
        assert always.ask(history[:count]) in {e.candidate.source for e in history[:count]}
    for experiment in history:
        late.tell(experiment)
    assert late.ask(history) == always.ask(history)
