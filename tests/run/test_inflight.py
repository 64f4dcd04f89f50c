"""Several proposals at once: the judge never waits for what is not needed, and nothing is lost or judged twice."""

from __future__ import annotations

import threading
import time

import pytest
from scripted_night import EAGER_US, Watcher, latency_us, night, source
from test_loop import idea

from autokernel import report
from autokernel.extension import NothingUsable, Proposal, ProposerFailed, ProposerUnavailable
from autokernel.run import history
from autokernel.run.events import Waiting
from autokernel.run.orchestrator import MoveOn
from autokernel.types import Cost, source_id

CENT = Cost(6, 4, 0.01)


class Slow:
    """Answers after a pause, each answer its own; counts how many calls it has at the same time."""

    name = "slow"
    fix_attempts = 0

    def __init__(self, in_flight: int, pause_s: float = 0.02) -> None:
        self.in_flight, self._pause_s = in_flight, pause_s
        self.briefs, self.busy, self.most = [], 0, 0
        self._lock = threading.Lock()

    def propose(self, brief):
        with self._lock:
            self.briefs.append(brief)
            number = len(self.briefs)
            self.busy += 1
            self.most = max(self.most, self.busy)
        try:
            time.sleep(self._pause_s * (1 + number % 3))
            return self.answer(brief, number)
        finally:
            with self._lock:
                self.busy -= 1

    def answer(self, brief, number: int):
        faster = latency_us(brief.source) * (0.95 if number % 2 else 1.2)
        return Proposal(source(faster, remark=f"{brief.target.name} {number}"), f"idea {number}", CENT)


def test_a_night_with_four_in_flight_is_consistent(tmp_path):
    proposer = Slow(4)
    night(tmp_path / "run", 30, proposer=proposer)
    rows = history.read(tmp_path / "run")
    assert [row.experiment for row in rows] == list(range(1, 31)) and proposer.most == 4
    ideas = [row.idea for row in rows if row.decision in ("keep", "revert")]
    assert len(ideas) == len(set(ideas)) and set(ideas) <= {f"idea {n}" for n in range(1, len(proposer.briefs) + 1)}
    assert all(row.tokens_in == (6 if row.decision in ("keep", "revert") else 0) for row in rows)
    for name in ("softmax", "rmsnorm"):
        champion = history.champion(rows, name)
        if champion is not None:
            assert latency_us((tmp_path / f"run/kernels/{name}.py").read_text()) == pytest.approx(champion.latency_us)
    answered = len(ideas)
    late = report.build(tmp_path / "run").tokens - 10 * answered  # paid for, arrived, and not judged
    assert 0 <= late <= 80  # at most four for each of the two targets


def test_briefs_in_flight_together_differ_in_seed_and_know_of_each_other(tmp_path):
    proposer = Slow(3)
    night(tmp_path / "run", 6, proposer=proposer, aa_rate=0.0)
    by_history: dict[tuple[str, int], list[int]] = {}
    for brief in proposer.briefs:
        by_history.setdefault((brief.target.name, len(brief.history)), []).append(brief.seed)
    assert all(len(set(seeds)) == len(seeds) for seeds in by_history.values())
    assert len(by_history["softmax", 1]) >= 3
    assert proposer.briefs[0].seed == 0 and proposer.briefs[0].notes == ()
    assert "1 more" in proposer.briefs[1].notes[-1] and "2 more" in proposer.briefs[2].notes[-1]
    assert any(note.startswith("being judged now: 'idea") for brief in proposer.briefs for note in brief.notes)


def test_a_proposal_says_which_version_it_was_made_from(tmp_path):
    class Stale(Slow):
        """Its first two answers are both made from the starter; the first of them is kept."""

        def answer(self, brief, number):
            return Proposal(source(60.0 - 10 * number, remark=str(number)), f"idea {number}")

    folder, seen = tmp_path / "run", []

    class Telling(Watcher):
        def on_event(self, event):
            super().on_event(event)
            seen.append(event)

    proposer = Stale(2)
    night(folder, 3, proposer=proposer, watcher=Telling(), aa_rate=0.0)
    rows = history.read(folder)
    assert [row.decision for row in rows] == ["baseline", "keep", "keep"]
    assert rows[2].incumbent_us == rows[1].latency_us, "judged against what stands, not against what it was made from"
    assert [source_id(brief.source) for brief in proposer.briefs[:2]] == [source_id(source(120.0))] * 2


def test_the_same_file_twice_in_flight_is_judged_once(tmp_path):
    class Twins(Slow):
        def answer(self, brief, number):
            return idea(60.0 - (number + 1) // 2)

    night(tmp_path / "run", 5, proposer=Twins(2), aa_rate=0.0)
    latencies = [row.latency_us for row in history.read(tmp_path / "run")]
    assert len(latencies) == len(set(latencies)) == 5


def test_a_call_that_hangs_holds_up_neither_the_budget_nor_the_end(tmp_path):
    forever = threading.Event()

    class Hanging(Slow):
        def answer(self, brief, number):
            forever.wait(60.0)

    started_s = time.monotonic()
    reason = night(tmp_path / "run", None, proposer=Hanging(2), aa_rate=0.0, budget_s=0.5)
    assert reason.kind == "budget" and time.monotonic() - started_s < 20.0
    assert [row.decision for row in history.read(tmp_path / "run")] == ["baseline"]
    forever.set()


def test_one_call_that_hangs_does_not_hold_up_the_others(tmp_path):
    forever = threading.Event()

    class HalfHanging(Slow):
        def answer(self, brief, number):
            return forever.wait(60.0) and None if number == 1 else super().answer(brief, number)

    night(tmp_path / "run", 8, proposer=HalfHanging(2), aa_rate=0.0)
    assert len(history.read(tmp_path / "run")) == 8
    forever.set()


def test_a_rate_limit_stops_the_asking_and_not_the_judging(tmp_path):
    class Limited(Slow):
        def answer(self, brief, number):
            if number in (2, 3):
                raise ProposerUnavailable("429", 0.0, CENT)
            return super().answer(brief, number)

    watcher = Watcher()
    night(tmp_path / "run", 6, proposer=Limited(3), aa_rate=0.0, watcher=watcher)
    assert len(history.read(tmp_path / "run")) == 6
    assert {event.reason for event in watcher.of(Waiting)} <= {"429"}


def test_what_was_paid_for_is_judged_before_a_failure_ends_the_run(tmp_path):
    class Broke(Slow):
        def answer(self, brief, number):
            if number == 1:
                raise ProposerFailed("no money left", CENT)
            return super().answer(brief, number)

    proposer = Broke(3)
    reason = night(tmp_path / "run", None, proposer=proposer, aa_rate=0.0)
    assert (reason.kind, reason.message) == ("proposer", "no money left")
    ideas = [row.idea for row in history.read(tmp_path / "run")[1:]]
    assert len(ideas) >= 2 and set(ideas) == {f"idea {n}" for n in range(2, len(proposer.briefs) + 1)}


def test_nothing_left_is_heard_once_all_have_answered(tmp_path):
    class Drying(Slow):
        def answer(self, brief, number):
            return idea(EAGER_US + number) if number in (2, 3) else None

    reason = night(tmp_path / "run", None, proposer=Drying(3), aa_rate=0.0)
    assert reason.kind == "exhausted"
    rows = history.read(tmp_path / "run")
    assert sorted(row.latency_us for row in rows) == [102.0, 103.0, 120.0, 120.0]


def test_an_error_of_a_thread_is_as_loud_as_any_other(tmp_path):
    class Buggy(Slow):
        def answer(self, brief, number):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        night(tmp_path / "run", None, proposer=Buggy(2), aa_rate=0.0)
    night(tmp_path / "run", 3, proposer=Slow(1), aa_rate=0.0)
    assert len(history.read(tmp_path / "run")) == 3


def test_answers_for_a_target_that_was_left_are_used_when_it_is_visited_again(tmp_path):
    proposer = Slow(2, pause_s=0.05)
    rules = MoveOn(reverts=1, speedup=1e9, peak_pct=1e9)
    night(tmp_path / "run", 14, proposer=proposer, aa_rate=0.0, rules=rules)
    rows = history.read(tmp_path / "run")
    assert {row.target for row in rows} == {"softmax", "rmsnorm"} and len(rows) == 14
    ideas = [row.idea for row in rows if row.decision != "baseline"]
    assert len(ideas) == len(set(ideas)) and proposer.most <= 2
    for row in rows:
        if row.decision != "baseline":
            assert proposer.briefs[int(row.idea.split()[1]) - 1].target.name == row.target
    assert len(proposer.briefs) - len(ideas) <= 4, "what waited was used before more was asked for"


def test_refusals_of_several_are_counted_together(tmp_path):
    class Refusing(Slow):
        def answer(self, brief, number):
            raise NothingUsable(f"refusal {number}", CENT)

    reason = night(tmp_path / "run", None, proposer=Refusing(2), aa_rate=0.0)
    assert reason.kind == "exhausted" and [r.decision for r in history.read(tmp_path / "run")] == ["baseline"] * 2
