"""What failed goes back to its proposer before it counts: one experiment, one row, every attempt kept."""

from __future__ import annotations

import json
import subprocess

import pytest
from scripted_night import ScriptedJudge, Watcher, latency_us, night, source
from test_loop import Lines, idea

from autokernel import present, report
from autokernel.display import announcement
from autokernel.extension import NothingUsable, Proposal, ProposerFailed, ProposerUnavailable
from autokernel.run import history
from autokernel.run.events import ExperimentDone, ExperimentStarted, Mending
from autokernel.types import Cost, Verdict
from autokernel.wording import verdict_line

CENT = Cost(6, 4, 0.01)


class Fixer(Lines):
    fix_attempts = 2


def paid(latency: float, status: str = "PASS", remark: str = "") -> Proposal:
    return Proposal(source(latency, status, remark), f"{remark or latency}", CENT, [{"name": f"{remark}{latency}"}])


def files(folder, number: int) -> set[str]:
    return {path.name for path in (folder / "experiments" / str(number)).iterdir()}


def test_a_candidate_that_failed_is_mended_and_kept_as_one_experiment(tmp_path):
    folder = tmp_path / "run"
    proposer = Fixer(paid(60.0, "BUILD", "tile"), paid(60.0, "EDGES", "mask"), paid(60.0, "PASS", "tail"), idea(30.0))
    watcher = Watcher()
    night(folder, 3, proposer=proposer, watcher=watcher, aa_rate=0.0)
    rows = history.read(folder)
    assert [(row.decision, row.status, row.attempts, row.latency_us) for row in rows] == [
        ("baseline", "PASS", 1, 120.0),
        ("keep", "PASS", 3, 60.0),
        ("keep", "PASS", 1, 30.0),
    ]
    assert rows[1].idea == "tile; mended: tail"
    assert (rows[1].tokens_in, rows[1].tokens_out, rows[1].cost_usd) == (18, 12, 0.03)
    failed = [brief.failed for brief in proposer.briefs]
    assert [attempt and (attempt.number, attempt.idea, attempt.verdict.status.value) for attempt in failed] == [
        None,
        (1, "tile", "BUILD"),
        (2, "tile; mended: mask", "EDGES"),
        None,
    ]
    assert latency_us(proposer.briefs[1].source) == 120.0 and failed[1].source == source(60.0, "BUILD", "tile")
    place = folder / "experiments" / "2"
    attempts = {"attempt-1.py", "attempt-1.json", "attempt-2.py", "attempt-2.json", "exchange.jsonl"}
    assert files(folder, 2) == files(folder, 3) | attempts
    assert (place / "attempt-1.py").read_text() == source(60.0, "BUILD", "tile")
    second = json.loads((place / "attempt-2.json").read_text())
    assert second["idea"] == "tile; mended: mask"
    assert Verdict.from_json(second["verdict"]).status.value == "EDGES"
    assert len((place / "exchange.jsonl").read_text().splitlines()) == 3
    assert [(event.number, event.attempt) for event in watcher.of(ExperimentStarted)] == [
        (1, 1),
        (2, 1),
        (2, 2),
        (2, 3),
        (3, 1),
    ]
    assert [(event.status, event.asked, event.of) for event in watcher.of(Mending)] == [
        ("BUILD", 1, 2),
        ("EDGES", 2, 2),
    ]
    assert len(watcher.of(ExperimentDone)) == 3
    assert announcement(watcher.of(Mending)[1]) == ["#2: EDGES: as the script says; asking for a fix (2 of 2)"]
    repository = subprocess.run(["git", "-C", folder, "rev-list", "main"], capture_output=True, text=True, check=True)
    assert repository.stdout.split()[:2] == [rows[2].commit, rows[1].commit] and rows[1].parent != rows[1].commit
    assert "fixed, attempt 3" in verdict_line(rows[1]) and "attempt" not in verdict_line(rows[2])
    built = report.build(folder)
    assert built.fixed == 1 and "fixed, attempt 3" in present.markdown(built)


def test_two_attempts_are_all_and_the_last_verdict_counts(tmp_path):
    failing = [paid(60.0, "SMOKE", f"try {n}") for n in range(4)]
    night(tmp_path / "run", 3, proposer=Fixer(*failing, idea(50.0)), aa_rate=0.0)
    rows = history.read(tmp_path / "run")
    assert [(row.decision, row.status, row.attempts) for row in rows[1:]] == [
        ("revert", "SMOKE", 3),
        ("keep", "PASS", 2),
    ]
    assert rows[1].cost_usd == pytest.approx(0.03) and rows[2].cost_usd == pytest.approx(0.01)


@pytest.mark.parametrize("status", ["POLICY", "IMPLAUSIBLE"])
def test_a_broken_rule_is_not_asked_to_be_broken_better(tmp_path, status):
    proposer = Fixer(paid(60.0, status), paid(50.0))
    night(tmp_path / "run", 3, proposer=proposer, aa_rate=0.0)
    assert [row.status for row in history.read(tmp_path / "run")] == ["PASS", status, "PASS"]
    assert [brief.failed for brief in proposer.briefs] == [None, None]


def test_what_is_slower_is_reverted_and_not_mended(tmp_path):
    proposer = Fixer(paid(160.0), paid(50.0))
    night(tmp_path / "run", 3, proposer=proposer, aa_rate=0.0)
    assert [row.decision for row in history.read(tmp_path / "run")] == ["baseline", "revert", "keep"]
    assert [brief.failed for brief in proposer.briefs] == [None, None]


BROKEN = paid(60.0, "BUILD", "broken")


@pytest.mark.parametrize(
    ("answers", "cost", "asked"),
    [
        ([None], 0.01, 1),
        ([NothingUsable("a refusal", CENT), NothingUsable("another", CENT)], 0.03, 2),
        ([BROKEN, NothingUsable("a refusal", CENT)], 0.03, 2),
        ([ProposerFailed("no money left", CENT)], 0.02, 1),
    ],
    ids=["nothing", "refusals", "the same file again", "failed for good"],
)
def test_a_fix_that_does_not_come_leaves_the_failure_as_it_is(tmp_path, answers, cost, asked):
    proposer = Fixer(BROKEN, *answers, idea(50.0))
    reason = night(tmp_path / "run", 3, proposer=proposer, aa_rate=0.0)
    rows = history.read(tmp_path / "run")
    assert (rows[1].status, rows[1].decision, rows[1].attempts) == ("BUILD", "revert", 1)
    assert rows[1].cost_usd == pytest.approx(cost)
    assert sum(brief.failed is not None for brief in proposer.briefs) == asked
    if isinstance(answers[0], ProposerFailed):
        assert reason.kind == "proposer" and len(rows) == 2
    else:
        assert rows[2].decision == "keep"
        assert proposer.briefs[-1].notes == (), "what went wrong with a fix is no word on the next proposal"


def test_an_unusable_fix_is_told_to_the_next_attempt_and_an_outage_counts_as_none(tmp_path):
    outage = ProposerUnavailable("busy", 5.0)
    fixed = paid(60.0, "PASS", "fixed")
    proposer, waits = Fixer(BROKEN, outage, NothingUsable("no edit"), outage, fixed), []
    night(tmp_path / "run", 2, proposer=proposer, aa_rate=0.0, sleep=waits.append)
    row = history.read(tmp_path / "run")[1]
    assert (row.status, row.attempts, row.decision) == ("PASS", 2, "keep") and len(waits) == 2
    assert [brief.notes for brief in proposer.briefs[1:]] == [(), (), ("no edit",), ("no edit",)]


def test_an_attempt_that_failed_is_a_duplicate_for_whoever_proposes_it_again(tmp_path):
    proposer = Fixer(BROKEN, paid(60.0, "PASS", "fixed"), BROKEN, idea(30.0))
    judge = ScriptedJudge()
    night(tmp_path / "run", 3, proposer=proposer, judge=judge, aa_rate=0.0)
    assert [a.source for a in judge.assignments].count(BROKEN.source) == 1
    assert "was mended" in proposer.briefs[3].notes[0]
    again = Fixer(BROKEN, idea(20.0))  # a restart knows of it
    night(tmp_path / "run", 4, proposer=again, aa_rate=0.0)
    assert "was mended" in again.briefs[1].notes[0] and history.read(tmp_path / "run")[3].latency_us == 20.0


def test_limits_end_the_mending(tmp_path):
    proposer = Fixer(BROKEN, paid(60.0, "BUILD", "worse"), paid(60.0))
    reason = night(tmp_path / "run", None, proposer=proposer, aa_rate=0.0, max_cost_usd=0.015)
    assert reason.kind == "cost" and len(proposer.left) == 1
    assert [(row.status, row.attempts) for row in history.read(tmp_path / "run")] == [("PASS", 1), ("BUILD", 2)]


def test_a_run_stopped_while_it_mends_goes_on_with_the_attempt_that_was_committed(tmp_path):
    folder = tmp_path / "run"

    class Stopped(Exception):
        pass

    class Stopping(ScriptedJudge):
        def evaluate(self, assignment, on_event=lambda event: None):
            if "second" in assignment.source:
                raise Stopped
            return super().evaluate(assignment, on_event)

    script = [BROKEN, paid(60.0, "BUILD", "second"), paid(60.0, "PASS", "third")]
    with pytest.raises(Stopped):
        night(folder, 3, proposer=Fixer(*script[:2]), judge=Stopping(), aa_rate=0.0)
    assert len(history.read(folder)) == 1
    again = Fixer(script[2])
    night(folder, 2, proposer=again, aa_rate=0.0)
    row = history.read(folder)[1]
    assert (row.status, row.attempts, row.tokens_in) == ("PASS", 3, 18)
    assert again.briefs[0].failed.number == 2 and row.idea == "broken; mended: third"
    assert len((folder / "experiments/2/exchange.jsonl").read_text().splitlines()) == 3
