"""No kernel that cheats is kept, no honest one is refused, and each defence is shown to be what stops its cheats.

``pytest tests/evil --evil-all`` (or ``make evil``) judges every file; without the option a spread of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from autokernel.evaluate.client import JudgeClient
from autokernel.evaluate.defences import DEFENCES, SWITCHABLE
from autokernel.isolation import LEVELS
from autokernel.types import AutokernelError

from .harness import Book, Kernel, ended, judged, kept, kernels

ROOT = Path(__file__).parents[2]
CHEATS, HONEST = kernels("cheats"), kernels("honest")
CUDA_CHEATS = kernels("cheats", device="cuda")


def cases(every: list[Kernel]) -> list[object]:
    return [pytest.param(kernel, id=f"{kernel.kind}/{kernel.name}") for kernel in every]


@pytest.mark.parametrize("kernel", cases(CHEATS))
def test_a_cheat_is_not_kept(judge: JudgeClient, book: Book, kernel: Kernel) -> None:
    evaluation = judged(judge, kernel, kernel.base_off, compared=kernel.compared)
    book.stopped(kernel, evaluation)
    assert not kept(evaluation), evaluation
    assert ended(evaluation) in kernel.names("EXPECT"), evaluation.verdict
    assert evaluation.verdict.environment.get("disabled", []) == sorted(kernel.base_off)


@pytest.mark.parametrize("kernel", cases([k for k in CHEATS if k.neighbours]))
def test_its_defence_stops_it_without_the_neighbours(judge: JudgeClient, book: Book, kernel: Kernel) -> None:
    for neighbour in kernel.neighbours:
        evaluation = judged(judge, kernel, kernel.base_off | {neighbour}, compared=kernel.compared)
        assert not kept(evaluation), (neighbour, evaluation)
        book.without_neighbour(kernel)


@pytest.mark.parametrize("kernel", cases([k for k in CHEATS if k.switchable]))
def test_without_its_defence_it_gets_through(judge: JudgeClient, book: Book, kernel: Kernel) -> None:
    if kernel.names("ALSO"):
        evaluation = judged(judge, kernel, kernel.base_off | {kernel.stopped_by}, compared=kernel.compared)
        assert not kept(evaluation), evaluation
    off = kernel.base_off | {kernel.stopped_by, *kernel.names("WITH"), *kernel.names("ALSO")}
    evaluation = judged(judge, kernel, off, compared=kernel.must_win)
    assert kept(evaluation), evaluation
    assert kernel.stopped_by in evaluation.verdict.environment["disabled"]
    book.got_through(kernel)


@pytest.mark.parametrize(
    ("judge_without", "kernel"),
    [
        pytest.param(k.stopped_by, k, id=f"{k.kind}/{k.name}")
        for k in CHEATS
        if k.stopped_by in LEVELS and "ALONE" not in k.constants
    ],
    indirect=["judge_without"],
)
def test_without_its_level_of_the_sandbox_it_gets_through(
    judge_without: JudgeClient, book: Book, kernel: Kernel
) -> None:
    evaluation = judged(judge_without, kernel, kernel.base_off, compared=kernel.must_win)
    assert kept(evaluation), evaluation
    book.got_through(kernel)


@pytest.mark.parametrize("kernel", cases(HONEST))
def test_an_honest_kernel_passes(judge: JudgeClient, book: Book, kernel: Kernel) -> None:
    evaluation = judged(judge, kernel, set(), compared=False)
    book.honest(kernel, evaluation)
    assert kept(evaluation), evaluation.verdict
    assert "disabled" not in evaluation.verdict.environment


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", cases(CUDA_CHEATS))
def test_a_cheat_on_a_gpu_is_not_kept(judge_on_gpu: JudgeClient, book: Book, kernel: Kernel) -> None:
    evaluation = judged(judge_on_gpu, kernel, kernel.base_off, compared=kernel.compared)
    book.stopped(kernel, evaluation)
    assert not kept(evaluation), evaluation
    assert ended(evaluation) in kernel.names("EXPECT"), evaluation.verdict


def test_there_are_enough_of_them_and_each_says_what_it_is() -> None:
    assert len(CHEATS) >= 60
    assert len(HONEST) >= 30
    for kernel in CHEATS:
        assert kernel.stopped_by in DEFENCES or kernel.stopped_by in LEVELS, kernel.path
        assert "Seen: " in kernel.doc, kernel.path
        assert kernel.names("EXPECT"), kernel.path


def test_every_switchable_defence_stops_a_cheat_that_gets_through_without_it() -> None:
    assert {k.stopped_by for k in CHEATS if k.switchable} == SWITCHABLE


def test_the_document_names_every_defence() -> None:
    text = (ROOT / "docs" / "judge.md").read_text()
    assert [name for name, told in DEFENCES.items() if f"| {name} | {told} |" not in text] == []


def test_only_a_defence_can_be_switched_off(judge: JudgeClient) -> None:
    with pytest.raises(AutokernelError, match="known are all-kept"):
        judged(judge, HONEST[0], {"everything"}, compared=False)
