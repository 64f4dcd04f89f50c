"""The stages shared out over several runners of one file: the same verdict as from one, and the first failure told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from autokernel import registry
from autokernel.evaluate.pool import Nursery, close_all
from autokernel.evaluate.stages import Examination, Failed
from autokernel.evaluate.workshop import Workshop
from autokernel.types import Status

from .conftest import HONEST, WORK, scratch, torch_source

Team = Callable[[str, int], list[Examination]]


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """Starts so many runners of a source."""
    folder = scratch(tmp_path_factory)
    folder.mkdir(parents=True, exist_ok=True)
    workshop = Workshop(Nursery(folder, "cpu", 1))
    started: list[Examination] = []

    def start(source: str, count: int) -> list[Examination]:
        handles = workshop.start_all([source] * count, "torch")
        exams = [Examination(registry.load("problems", "rmsnorm"), handle, "cpu", None) for handle in handles]
        started.extend(exams)
        return exams

    yield start
    close_all(exam.handle for exam in started)
    for exam in started:
        exam.close()
    workshop.close()


def test_every_case_is_checked_by_somebody(team: Team) -> None:
    alone, *helpers = team(HONEST, 4)
    counted: dict[str, int] = {}
    calls = [count_checks(exam) for exam in (alone, *helpers)]
    alone.run_all((WORK,), 7, lambda stage, _, of: counted.update({stage: of}), lambda: helpers)
    assert sum(map(len, calls)) == sum(counted.values())
    assert all(calls[1:])  # each helper had its share
    assert alone.errors.keys() == {"smoke", "shapes", "stability", "edges"}


def test_nobody_waits_at_the_end_of_a_stage(team: Team) -> None:
    """While one runner is still at its first case of a stage, another goes on with the next stages."""
    slow, quick = team(HONEST, 2)
    further = threading.Event()
    held: list[bool] = []
    slow_check, quick_check = slow.check, quick.check

    def waiting(stage: str, case: object, seed: int) -> None:
        if stage != "smoke" and not held:
            held.append(further.wait(60))
        slow_check(stage, case, seed)  # type: ignore[arg-type]

    def going_on(stage: str, case: object, seed: int) -> None:
        if stage == "edges":
            further.set()
        quick_check(stage, case, seed)  # type: ignore[arg-type]

    slow.check, quick.check = waiting, going_on  # type: ignore[method-assign, assignment]
    dismissed: list[Examination] = []
    slow.run_all((WORK,), 5, helpers=lambda: [quick], dismiss=dismissed.append)
    assert held == [True]
    assert dismissed == [quick]


def count_checks(exam: Examination) -> list[str]:
    """Names of the cases that this one checks, as they come."""
    seen: list[str] = []
    check = exam.check

    def counted(stage: str, case: object, seed: int) -> None:
        seen.append(stage)
        check(stage, case, seed)  # type: ignore[arg-type]

    exam.check = counted  # type: ignore[method-assign, assignment]
    return seen


def test_the_first_failure_in_the_order_of_the_cases_is_told(team: Team) -> None:
    wrong_where_narrow = torch_source(
        "wide = x.float()\n"
        "out = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)\n"
        "return out if x.dtype == torch.float32 else out * 2"
    )
    reasons = []
    for helpers in (1, 3):
        alone, *others = team(wrong_where_narrow, helpers)
        with pytest.raises(Failed) as failure:
            alone.run_all((WORK,), 11, helpers=lambda others=others: others)
        assert failure.value.status is Status.SHAPES
        reasons.append(failure.value.reason.split(":")[0])
    assert reasons[0] == reasons[1]


def test_helpers_that_die_together_are_one_failure(team: Team) -> None:
    dies = torch_source(
        "if x.dtype != torch.float32:\n"
        "    os.abort()\n"
        "wide = x.float()\n"
        "return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight",
        before="import os",
    )
    alone, *others = team(dies, 4)
    with pytest.raises(Failed) as failure:
        alone.run_all((WORK,), 3, helpers=lambda: others)
    assert failure.value.status is Status.CRASH
    assert "SIGABRT" in failure.value.reason
