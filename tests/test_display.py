"""The board says what the events say; the plain display prints one line an experiment."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from autokernel.display import Board, Live, Plain, open_display
from autokernel.run import events
from autokernel.run.history import Row
from autokernel.types import Target
from autokernel.wording import clock, verdict_line

TARGETS = tuple(
    Target(name, name, "cpp", (), share=share, eager_us=100.0, floor_us=10.0)
    for name, share in (("matmul", 0.6), ("rmsnorm", 0.2))
)


def make_row(number: int, decision: str = "keep", status: str = "PASS", target: str = "matmul") -> Row:
    passed = status == "PASS"
    return Row(
        experiment=number, time="2026-01-01T00:00:00Z", target=target, problem=target, backend="cpp",
        proposer="playbook", idea=f"idea {number}", status=status, stage="timing" if passed else "smoke",
        decision=decision,  # type: ignore[arg-type]
        latency_us=50.0 if passed else None, incumbent_us=60.0 if passed else None, speedup=1.2 if passed else None,
        ci_low=1.1 if passed else None, ci_high=1.3 if passed else None, speedup_vs_eager=3.0 if passed else None,
        speedup_vs_best=1.5 if passed else None, pct_peak=40.0 if passed else None, seconds=2.0, tokens_in=0,
        tokens_out=0, cost_usd=0.0, commit="a" * 40, parent="b" * 40,
    )  # fmt: skip


def started(
    budget_s: float | None = 300.0, max_experiments: int | None = None, rows: tuple[Row, ...] = ()
) -> events.RunStarted:
    return events.RunStarted(
        name="llama-cpu", folder="results/llama-cpu", model="models/llama.py", device="cpu", proposer="playbook",
        strategy="greedy", targets=TARGETS, rows=rows, budget_s=budget_s, max_experiments=max_experiments,
    )  # fmt: skip


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def drawn(board: Board, width: int = 110) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(Live(console, board).render())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_budget_is_the_nearer_limit() -> None:
    now = Clock()
    board = Board(now)
    assert board.budget() == (0.0, "")
    board.take(started(budget_s=300.0, max_experiments=10))
    now.seconds += 60
    assert board.budget() == (pytest.approx(0.2), "4m00s of 5m00s left")
    for number in (1, 2, 3):
        board.take(events.ExperimentDone(make_row(number), "", 1.1))
    assert board.budget() == (pytest.approx(0.3), "7 of 10 experiments left")
    now.seconds += 1000
    assert board.budget() == (1.0, "0s of 5m00s left")


def test_counts_separate_failed_from_reverted() -> None:
    board = Board()
    board.take(started(rows=(make_row(1, "baseline"), make_row(2, "revert"), make_row(3, "revert", "BUILD"))))
    board.take(events.ExperimentDone(make_row(4, "keep"), "", 1.1))
    board.take(events.ExperimentDone(make_row(5, "aa"), "", 1.1))
    assert board.counts() == {"kept": 1, "reverted": 1, "failed": 1, "A/A": 1}


def test_the_panel_shows_target_idea_stage_best_and_budget() -> None:
    board = Board(Clock())
    board.take(started(rows=(make_row(1, "baseline"),)))
    board.take(events.TargetChosen(TARGETS[0], 1, 0.4))
    board.take(events.ExperimentStarted(2, TARGETS[0], "candidate", "MC 64 -> 128: larger panels"))
    board.take(events.JudgeStage(2, "stability", 3, 9))
    picture = drawn(board)
    for expected in ("llama-cpu", "▶  matmul", "60%", "#2 matmul", "MC 64 -> 128", "✓ shapes", "▸ stability 3/9",
                     "· edges", "1.50×", "5m00s of 5m00s left", "1 experiments"):  # fmt: skip
        assert expected in picture
    board.take(events.ExperimentDone(make_row(2), "", 1.31))
    assert "1.31×" in drawn(board)
    assert "MC 64" not in drawn(board)


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_panel_fits_any_terminal(width: int) -> None:
    board = Board()
    board.take(started(rows=(make_row(1, "baseline"),)))
    board.take(events.ExperimentStarted(2, TARGETS[0], "candidate", "long " * 100))
    board.take(events.JudgeStage(2, "timing", 1, 2))
    assert max(map(len, drawn(board, width).splitlines())) <= width


def test_markup_in_an_idea_is_text() -> None:
    board = Board()
    board.take(started())
    board.take(events.ExperimentStarted(1, TARGETS[0], "candidate", "x[red]y[/] out[/nonsense]"))
    assert "x[red]y[/] out[/nonsense]" in drawn(board)


def plain_lines(*happened: events.Event) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    with Plain(console) as display:
        for event in happened:
            display.on_event(event)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_plain_prints_one_line_an_experiment_however_long() -> None:
    lines = plain_lines(
        started(),
        events.ExperimentStarted(1, TARGETS[0], "candidate", "x"),
        events.JudgeStage(1, "smoke", 1, 1),
        events.ExperimentDone(make_row(1, "revert", "BUILD"), "error:\n  [bold]undefined[/] " + "x" * 300, 1.0),
    )
    assert lines[0].startswith("run llama-cpu in results/llama-cpu: models/llama.py on cpu")
    assert lines[1] == "targets: matmul 60%, rmsnorm 20%"
    assert len(lines) == 3
    assert "failed" in lines[2]
    assert "BUILD at smoke: error: [bold]undefined[/]" in lines[2]


def test_plain_says_each_phase_of_the_profile_once() -> None:
    phases = [events.ProfileProgress(phase, phase, n, 3) for phase in ("capture", "match") for n in range(3)]
    assert plain_lines(*phases) == ["profile: capture: capture", "profile: match: match"]


def test_verification_is_no_profile_and_says_each_step() -> None:
    steps = [events.ProfileProgress("verify", message) for message in ("loading x.py", "ours: rmsnorm", "ours: matmul")]
    assert plain_lines(*steps) == ["verify: loading x.py", "verify: ours: rmsnorm", "verify: ours: matmul"]
    board = Board()
    board.take(steps[1])
    assert "verify  ours: rmsnorm" in drawn(board) and "profile" not in drawn(board)


def test_every_event_that_a_person_should_see_is_said() -> None:
    lines = plain_lines(
        events.MovedOn(TARGETS[0], "5 experiments in a row reverted"),
        events.Waiting("rate limited", 30.0),
        events.Note("line 7 was restored"),
        events.HeadlineStarted(TARGETS[1], 0, 2),
        events.Stopped("the budget is spent"),
    )
    assert lines == [
        "leaving matmul: 5 experiments in a row reverted",
        "waiting 30s: rate limited",
        "line 7 was restored",
        "measuring the champion of rmsnorm (1 of 2)",
        "the budget is spent",
    ]


def test_a_verdict_line_has_the_interval() -> None:
    assert "+20.0 % [+10.0, +30.0] | idea 3" in verdict_line(make_row(3))


def test_clock_reads_as_a_person_does() -> None:
    assert [clock(s) for s in (-3, 42.9, 250, 3900)] == ["0s", "42s", "4m10s", "1h05m"]


def test_no_terminal_means_plain_lines() -> None:
    assert isinstance(open_display(), Plain)
