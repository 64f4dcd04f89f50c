"""The loop and the desk, with a judge and proposers that follow a script, in a real workspace."""

from __future__ import annotations

import json
from pathlib import Path

import git
import pytest
from scripted_night import (
    TARGETS,
    ScriptedJudge,
    ScriptedProposer,
    Watcher,
    latency_us,
    night,
    source,
)

from autokernel.evaluate.client import JudgeFailed
from autokernel.extension import Proposal, ProposerUnavailable
from autokernel.run import history
from autokernel.run.events import ExperimentDone, MovedOn, Note, TargetChosen, Waiting
from autokernel.run.orchestrator import MoveOn
from autokernel.types import AutokernelError, Cost, Verdict


class Lines:
    """Proposes given latencies in turn for the first target, and nothing for the others."""

    name = "lines"
    in_flight = 1
    fix_attempts = 0

    def __init__(self, *proposals: Proposal | Exception | None) -> None:
        self.left, self.briefs = list(proposals), []

    def propose(self, brief):
        self.briefs.append(brief)
        if brief.target.name != "softmax" or not self.left:
            return None
        answer = self.left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def idea(latency: float, status: str = "PASS", cost: Cost = Cost()) -> Proposal:  # noqa: B008
    return Proposal(source(latency, status, "proposed"), f"make it {latency}", cost)


def test_keeps_reverts_and_failures_end_up_where_they_belong(tmp_path):
    proposer = Lines(idea(60.0), idea(90.0), idea(50.0, "CRASH"), idea(30.0, cost=Cost(7, 3, 0.5)))
    watcher = Watcher()
    reason = night(tmp_path / "run", None, proposer=proposer, watcher=watcher, aa_rate=0.0)
    assert reason.kind == "exhausted"
    rows = history.read(tmp_path / "run")
    found = [(row.target, row.decision, row.status, row.latency_us) for row in rows]
    assert found == [
        ("softmax", "baseline", "PASS", 120.0),
        ("softmax", "keep", "PASS", 60.0),
        ("softmax", "revert", "PASS", 90.0),
        ("softmax", "revert", "CRASH", None),
        ("softmax", "keep", "PASS", 30.0),
        ("rmsnorm", "baseline", "PASS", 120.0),
    ]
    assert rows[1].speedup == pytest.approx(2.0) and rows[2].speedup == pytest.approx(60 / 90)
    assert rows[4].speedup_vs_eager == pytest.approx(100 / 30) and rows[4].speedup_vs_best == pytest.approx(80 / 30)
    assert (rows[4].tokens_in, rows[4].tokens_out, rows[4].cost_usd) == (7, 3, 0.5)
    assert rows[3].speedup is None and rows[3].stage == "smoke"
    assert [latency_us(brief.source) for brief in proposer.briefs[:4]] == [120.0, 60.0, 60.0, 60.0]
    assert proposer.briefs[2].position.latency_us == 60.0
    assert [len(brief.history) for brief in proposer.briefs[:4]] == [1, 2, 3, 4]
    done = watcher.of(ExperimentDone)
    assert list(map(history.format_row, (event.row for event in done))) == list(map(history.format_row, rows))
    assert done[-1].projected_speedup == pytest.approx(1 / (1 - 0.4 * (1 - 30 / 100)))
    assert [event.target.name for event in watcher.of(TargetChosen)] == ["softmax", "rmsnorm"]
    verdict = json.loads((tmp_path / "run/experiments/4/verdict.json").read_text())
    assert Verdict.from_json(verdict).status.value == "CRASH"
    assert "CRASH" in (tmp_path / "run/experiments/4/log.txt").read_text()


def test_the_branch_tells_the_story_of_what_was_kept(tmp_path):
    night(tmp_path / "run", None, proposer=Lines(idea(60.0), idea(90.0), idea(30.0)), aa_rate=0.0)
    repository = git.Repo(tmp_path / "run")
    subjects = [commit.summary for commit in repository.iter_commits("main")]
    assert subjects[0] == "[iter 4] softmax: make it 30.0"
    assert subjects[1] == "[iter 2] softmax: make it 60.0"
    assert len(subjects) == 3 and not repository.is_dirty(untracked_files=True)
    reverted = repository.commit("refs/experiments/3")
    assert reverted.hexsha not in {commit.hexsha for commit in repository.iter_commits("main")}
    assert latency_us(reverted.tree["kernels/softmax.py"].data_stream.read().decode()) == 90.0


def test_a_duplicate_is_answered_from_history_with_a_note_to_its_proposer(tmp_path):
    proposer = Lines(idea(130.0), idea(130.0), idea(60.0))
    judge, watcher = ScriptedJudge(), Watcher()
    night(tmp_path / "run", None, proposer=proposer, judge=judge, watcher=watcher, aa_rate=0.0)
    softmax = [a.source for a in judge.assignments if a.target.name == "softmax"]
    assert len(softmax) == len(set(softmax)) == 3
    assert "experiment 2, PASS, revert" in proposer.briefs[2].notes[0]
    assert any("judged before" in note.message for note in watcher.of(Note))


def test_a_proposer_that_only_repeats_itself_has_nothing_left(tmp_path):
    reason = night(tmp_path / "run", None, proposer=Lines(*[idea(90.0)] * 50), aa_rate=0.0)
    assert reason.kind == "exhausted"
    assert len(history.read(tmp_path / "run")) == 3


def test_an_unavailable_proposer_is_waited_for_and_spends_no_experiment(tmp_path):
    waits: list[float] = []
    proposer = Lines(ProposerUnavailable("rate limit", 12.0), ProposerUnavailable("rate limit", 30.0), idea(60.0))
    watcher = Watcher()
    night(tmp_path / "run", None, proposer=proposer, watcher=watcher, aa_rate=0.0, sleep=waits.append)
    assert waits == pytest.approx([12.0, 30.0], abs=0.5)
    assert [event.seconds for event in watcher.of(Waiting)] == waits
    assert [row.decision for row in history.read(tmp_path / "run")] == ["baseline", "keep", "baseline"]


def test_waiting_ends_with_the_budget(tmp_path):
    proposer = Lines(*[ProposerUnavailable("no network", 3600.0)] * 5)
    reason = night(tmp_path / "run", None, proposer=proposer, aa_rate=0.0, budget_s=0.3)
    assert reason.kind == "budget"


def test_any_other_failure_of_a_proposer_is_loud_and_the_run_resumes(tmp_path):
    with pytest.raises(ZeroDivisionError):
        night(tmp_path / "run", None, proposer=Lines(idea(60.0), ZeroDivisionError()), aa_rate=0.0)
    assert len(history.read(tmp_path / "run")) == 2
    night(tmp_path / "run", None, proposer=Lines(idea(30.0)), aa_rate=0.0)
    assert [row.decision for row in history.read(tmp_path / "run")] == ["baseline", "keep", "keep", "baseline"]


class Mortal(ScriptedJudge):
    """Does not survive the candidates whose remark says so."""

    def evaluate(self, assignment, on_event=lambda event: None):
        if "CRASH" in assignment.source:
            raise JudgeFailed("the judge died twice")
        return super().evaluate(assignment, on_event)


def test_a_candidate_that_kills_the_judge_has_crashed(tmp_path):
    proposer = Lines(idea(50.0, "CRASH"), idea(60.0))
    night(tmp_path / "run", None, proposer=proposer, judge=Mortal(), aa_rate=0.0)
    rows = history.read(tmp_path / "run")
    assert [(row.status, row.stage, row.decision) for row in rows[1:3]] == [
        ("CRASH", "judge", "revert"),
        ("PASS", "done", "keep"),
    ]


def test_a_judge_that_dies_twice_in_a_row_stops_the_run_and_the_candidate_waits(tmp_path):
    proposer = Lines(idea(50.0, "CRASH"), idea(51.0, "CRASH"), idea(52.0))
    with pytest.raises(JudgeFailed):
        night(tmp_path / "run", None, proposer=proposer, judge=Mortal(), aa_rate=0.0)
    assert len(history.read(tmp_path / "run")) == 2
    judge = ScriptedJudge()
    night(tmp_path / "run", 3, proposer=Lines(), judge=judge, aa_rate=0.0)
    assert latency_us(judge.assignments[0].source) == 51.0  # committed before the judge died, so judged now


def test_aa_experiments_are_judged_against_the_incumbent_and_never_kept(tmp_path):
    judge = ScriptedJudge()
    night(tmp_path / "run", 40, judge=judge, aa_rate=0.25)
    rows = history.read(tmp_path / "run")
    repeated = [row for row in rows if row.decision == "aa"]
    assert 4 <= len(repeated) <= 18
    assert history.false_keeps(rows) == (0, len(repeated))
    for row in repeated:
        assignment = judge.assignments[row.experiment - 1]
        assert assignment.source != assignment.incumbent and assignment.source.startswith(assignment.incumbent.rstrip())
    first = [row.experiment for row in repeated]
    night(tmp_path / "again", 40, aa_rate=0.25)
    assert first == [row.experiment for row in history.read(tmp_path / "again") if row.decision == "aa"]


def test_limits_count_the_whole_run(tmp_path):
    assert night(tmp_path / "run", 5).kind == "experiments"
    assert night(tmp_path / "run", 5).kind == "experiments"
    assert len(history.read(tmp_path / "run")) == 5
    night(tmp_path / "run", 9)
    assert len(history.read(tmp_path / "run")) == 9


def test_a_starter_that_fails_is_left_with_a_clear_word_and_the_others_go_on(tmp_path):
    class Refusing(ScriptedJudge):
        def evaluate(self, assignment, on_event=lambda event: None):
            source_ = assignment.source.replace('"PASS"', '"BUILD"') if assignment.target is TARGETS[0] else None
            return super().evaluate(
                assignment if source_ is None else type(assignment)(assignment.target, source_), on_event
            )

    watcher = Watcher()
    night(tmp_path / "run", 6, judge=Refusing(), watcher=watcher, aa_rate=0.0)
    rows = history.read(tmp_path / "run")
    assert (rows[0].target, rows[0].decision, rows[0].status) == ("softmax", "baseline", "BUILD")
    assert {row.target for row in rows[1:]} == {"rmsnorm"}
    assert watcher.of(MovedOn)[0].reason == "its starter does not pass"


def test_five_reverts_move_on_and_the_target_is_visited_again(tmp_path):
    watcher = Watcher()
    night(
        tmp_path / "run",
        16,
        proposer=ScriptedProposer(),
        judge=ScriptedJudge(),
        watcher=watcher,
        aa_rate=0.0,
        rules=MoveOn(reverts=1, speedup=1e9, peak_pct=1e9),
    )
    chosen = [(event.target.name, event.visit) for event in watcher.of(TargetChosen)]
    assert chosen[:2] == [("softmax", 1), ("rmsnorm", 1)] and {"softmax", "rmsnorm"} == {name for name, _ in chosen}
    assert max(visit for _, visit in chosen) >= 2


def test_ideas_may_hold_anything(tmp_path):
    strange = Proposal(source(60.0), "tab\t newline\n cr\r \\ \u2028 \ud800 'quotes\" 漢")
    night(tmp_path / "run", None, proposer=Lines(strange), aa_rate=0.0)
    rows = history.read(tmp_path / "run")
    assert rows[1].idea.startswith("tab\t newline\n cr\r \\")
    night(tmp_path / "run", None, proposer=Lines(), aa_rate=0.0)  # the row read back from git is the same
    assert history.read(tmp_path / "run") == rows


def test_full_and_read_only_disks_are_told_in_one_line(tmp_path):
    with pytest.raises(AutokernelError, match="/proc"):
        night(Path("/proc/autokernel-run"), 1)
