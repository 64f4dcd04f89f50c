"""What a proposer is told, the three ways of not answering, and that nothing paid for is lost."""

from __future__ import annotations

import contextlib
import json
import subprocess

import pytest
from scripted_night import TARGETS, Mender, ScriptedJudge, Watcher, night, source, starters
from test_loop import Lines, idea

from autokernel import report
from autokernel.evaluate.client import JudgeFailed
from autokernel.extension import NothingUsable, Proposal, ProposerFailed, ProposerUnavailable
from autokernel.run import history, unbooked, workspace
from autokernel.run.events import MovedOn, Note, TargetChosen, Waiting
from autokernel.run.ledger import Ledger
from autokernel.types import AutokernelError, Cost

CENT = Cost(6, 4, 0.01)
ASKED = {"asked": "faster?", "answered": "no"}


def paid(latency: float, name: str, status: str = "PASS") -> Proposal:
    return Proposal(source(latency, status, name), f"make it {latency}", CENT, [{**ASKED, "name": name}])


def told(folder, number: int) -> list[str]:
    path = folder / "experiments" / str(number) / "exchange.jsonl"
    return [json.loads(line)["name"] for line in path.read_text().splitlines()] if path.exists() else []


def test_a_brief_tells_what_stands_and_what_the_owner_wrote_meanwhile(tmp_path):
    class Reader(Lines):
        def propose(self, brief):
            (tmp_path / "run" / "HINTS.md").write_text(f"hint {len(self.briefs)}: try split-K ✓\n")
            return super().propose(brief)

    proposer = Reader(idea(60.0), idea(90.0), idea(30.0))
    night(tmp_path / "run", None, proposer=proposer, aa_rate=0.0, model="llama")
    briefs = [brief for brief in proposer.briefs if brief.target.name == "softmax"]
    assert [brief.hints for brief in briefs] == ["", *(f"hint {n}: try split-K ✓" for n in range(3))]
    assert [brief.evidence["kernel"]["registers"] for brief in briefs] == [120.0, 60.0, 60.0, 30.0]
    assert [brief.position.latency_us for brief in briefs] == [120.0, 60.0, 60.0, 30.0]
    assert {brief.model for brief in briefs} == {"llama"} and {brief.seed for brief in briefs} == {0}
    assert {brief.failed for brief in briefs} == {None} and briefs[0].notes == ()
    assert subprocess.run(["git", "-C", tmp_path / "run", "status", "--porcelain"], capture_output=True).stdout == b""


def test_hints_that_are_no_text_do_not_stop_a_night(tmp_path):
    night(tmp_path / "run", 1, aa_rate=0.0)
    (tmp_path / "run" / "HINTS.md").write_bytes(b"use \xff\xfe tensors")
    proposer = Lines(idea(60.0))
    night(tmp_path / "run", 2, proposer=proposer, aa_rate=0.0)
    assert proposer.briefs[0].hints.startswith("use ")


def test_nothing_usable_is_told_with_the_next_brief_and_its_cost_goes_into_the_next_row(tmp_path):
    refusal = NothingUsable("no edit was made", CENT, [{**ASKED, "name": "refusal"}])
    proposer = Lines(refusal, paid(60.0, "first"), paid(50.0, "second"))
    watcher = Watcher()
    night(tmp_path / "run", None, proposer=proposer, aa_rate=0.0, watcher=watcher)
    rows = history.read(tmp_path / "run")
    assert [(row.tokens_in, row.tokens_out, row.cost_usd) for row in rows[1:3]] == [(12, 8, 0.02), (6, 4, 0.01)]
    assert told(tmp_path / "run", 2) == ["refusal", "first"] and told(tmp_path / "run", 3) == ["second"]
    assert proposer.briefs[1].notes == ("no edit was made",) and proposer.briefs[2].notes == ()
    assert any("no edit was made" in note.message for note in watcher.of(Note))
    assert unbooked.read(tmp_path / "run") == []


def test_three_unusable_answers_in_a_row_end_the_visit_and_the_target_has_a_second_chance(tmp_path):
    class Moody(Lines):
        """Refuses on softmax until rmsnorm had an experiment of its own; has one idea for that."""

        def propose(self, brief):
            self.briefs.append(brief)
            if brief.target.name == "rmsnorm":
                return None if len(brief.history) > 1 else idea(70.0)
            if not any(b.target.name == "rmsnorm" for b in self.briefs):
                raise NothingUsable(f"refusal {len(self.briefs)}", CENT)
            return None if len(brief.history) > 1 else idea(60.0)

    watcher = Watcher()
    reason = night(tmp_path / "run", None, proposer=Moody(), aa_rate=0.0, watcher=watcher)
    assert reason.kind == "exhausted"
    rows = history.read(tmp_path / "run")
    assert [(row.target, row.decision) for row in rows] == [
        ("softmax", "baseline"),
        ("rmsnorm", "baseline"),
        ("rmsnorm", "keep"),
        ("softmax", "keep"),
    ]
    assert "3 answers in a row" in watcher.of(MovedOn)[0].reason and "refusal 3" in watcher.of(MovedOn)[0].reason
    assert [event.target.name for event in watcher.of(TargetChosen)] == ["softmax", "rmsnorm", "softmax"]
    assert rows[1].cost_usd == pytest.approx(0.03)


def test_a_proposer_that_only_refuses_ends_the_night_and_its_cost_is_told(tmp_path):
    proposer = Lines(*[NothingUsable("I would rather not", CENT)] * 50)
    reason = night(tmp_path / "run", None, proposer=proposer, aa_rate=0.0)
    assert reason.kind == "exhausted" and len(history.read(tmp_path / "run")) == 2
    assert len(proposer.left) == 44  # two visits of three answers
    assert report.build(tmp_path / "run").cost_usd == pytest.approx(0.06)


def test_a_proposer_that_failed_for_good_stops_the_run_and_the_same_command_goes_on(tmp_path):
    folder = tmp_path / "run"
    failure = ProposerFailed("the key was revoked", CENT, [{**ASKED, "name": "revoked"}])
    reason = night(folder, None, proposer=Lines(paid(60.0, "a"), failure), aa_rate=0.0)
    assert (reason.kind, reason.message) == ("proposer", "the key was revoked")
    rows = history.read(folder)
    assert [row.decision for row in rows] == ["baseline", "keep"]
    assert [entry.cost for entry in unbooked.read(folder)] == [CENT]
    night(folder, 3, proposer=Lines(paid(50.0, "b")), aa_rate=0.0)
    rows = history.read(folder)
    assert rows[2].cost_usd == pytest.approx(0.02) and told(folder, 3) == ["revoked", "b"]


def test_an_unavailable_proposer_pays_for_what_it_cost_and_the_night_goes_on(tmp_path):
    outage = ProposerUnavailable("overloaded", 0.0, CENT, [{**ASKED, "name": "cut off"}])
    waits: list[float] = []
    watcher, proposer = Watcher(), Lines(outage, outage, paid(60.0, "a"))
    night(tmp_path / "run", None, proposer=proposer, aa_rate=0.0, sleep=waits.append, watcher=watcher)
    assert told(tmp_path / "run", 2) == ["cut off", "cut off", "a"]
    assert history.read(tmp_path / "run")[1].tokens_in == 18
    assert len(waits) == 2 and min(waits) > 0.5, "an API that asks for no pause is still not hammered"
    assert [event.reason for event in watcher.of(Waiting)] == ["overloaded", "overloaded"]


@pytest.mark.parametrize(("limit", "most"), [({"max_tokens": 20}, "tokens"), ({"max_cost_usd": 0.02}, "cost")])
def test_limits_count_what_no_row_tells_of_and_nothing_more_is_asked(tmp_path, limit, most):
    refusals = [NothingUsable("no", CENT)] * 50
    proposer = Lines(*refusals)
    reason = night(tmp_path / "run", None, proposer=proposer, aa_rate=0.0, **limit)
    assert reason.kind == most and len(proposer.left) == 48
    again = Lines(*refusals)
    reason = night(tmp_path / "run", None, proposer=again, aa_rate=0.0, **limit)  # a restart knows what was spent
    assert reason.kind == most and len(again.left) == 50
    assert len(history.read(tmp_path / "run")) == 1


def test_a_limit_lets_the_proposal_in_hand_be_judged(tmp_path):
    proposer = Lines(paid(60.0, "a"), paid(50.0, "b"), paid(40.0, "c"))
    reason = night(tmp_path / "run", None, proposer=proposer, aa_rate=0.0, max_cost_usd=0.015)
    assert reason.kind == "cost" and len(proposer.left) == 1
    assert [row.latency_us for row in history.read(tmp_path / "run")] == [120.0, 60.0, 50.0]


def test_what_was_paid_for_an_unjudged_candidate_is_in_its_row_after_a_restart(tmp_path):
    class Dead(ScriptedJudge):
        def evaluate(self, assignment, on_event=lambda event: None):
            if assignment.incumbent is not None:
                raise JudgeFailed("no judge")
            return super().evaluate(assignment, on_event)

    crash = paid(50.0, "x", "CRASH")
    with pytest.raises(JudgeFailed):
        night(tmp_path / "run", None, proposer=Lines(crash, paid(60.0, "a")), judge=Dead(), aa_rate=0.0)
    assert unbooked.read(tmp_path / "run") == []
    night(tmp_path / "run", 3, proposer=Lines(), aa_rate=0.0)
    assert told(tmp_path / "run", 3) == ["a"] and history.read(tmp_path / "run")[2].cost_usd == 0.01


def test_no_secret_reaches_anything_that_is_written(tmp_path, monkeypatch):
    key = "a-key-that-nobody-may-see"
    monkeypatch.setenv("SOME_API_KEY", key)
    leaky = [
        NothingUsable(f"401 for {key}", CENT, [{"name": key, "headers": {"authorization": f"Bearer {key}"}}]),
        Proposal(f"{source(55.0)}KEY = '{key}'\n", "write the key into the kernel", CENT),
        Proposal(source(60.0), f"the key is {key}", CENT, [{"name": [f"x {key} y"]}]),
        ProposerFailed(f"{key} was revoked", CENT),
    ]
    watcher, proposer = Watcher(), Lines(*leaky)
    reason = night(tmp_path / "run", None, proposer=proposer, aa_rate=0.0, watcher=watcher)
    assert reason.message == "[redacted] was revoked"
    rows = history.read(tmp_path / "run")
    assert len(rows) == 2 and rows[1].idea == "the key is [redacted]" and "secret" in proposer.briefs[2].notes[1]
    objects = subprocess.run(
        ["git", "-C", tmp_path / "run", "cat-file", "--batch-all-objects", "--batch"], capture_output=True, check=True
    ).stdout
    written = [objects, str(watcher.events).encode()]
    written += [path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not any(key.encode() in data for data in written)


def test_a_broken_file_of_costs_is_one_line(tmp_path):
    night(tmp_path / "run", 2, aa_rate=0.0)
    for text in ("{", "[]", '{"entries": [{"id": 1}]}'):
        (tmp_path / "run" / unbooked.FILE).write_text(text)
        with pytest.raises(AutokernelError, match=r"unbooked\.json") as refusal:
            night(tmp_path / "run", 3)
        assert "\n" not in str(refusal.value)


def test_a_workspace_of_the_version_before_goes_on(tmp_path):
    """Records and rows without attempts, exchanges and booked entries, as they were written before there were any."""
    folder = tmp_path / "run"
    night(folder, 4, aa_rate=0.0)
    table = history.render(history.read(folder), history.OLDER)
    (folder / "results.tsv").write_text(table)
    for number in range(1, 5):
        ref = f"refs/records/{number}"
        record = json.loads(subprocess.check_output(["git", "-C", folder, "cat-file", "blob", ref]))
        for name in ("attempts", "exchanges", "booked"):
            del record[name]
        del record["row"]["attempts"]
        command = ["git", "-C", folder, "hash-object", "-w", "--stdin"]
        sha = subprocess.check_output(command, input=json.dumps(record).encode()).decode().strip()
        subprocess.run(["git", "-C", folder, "update-ref", ref, sha], check=True)
    notes: list[str] = []
    with workspace.lock(folder), contextlib.closing(Ledger(folder, TARGETS, starters, notes.append)) as ledger:
        assert [row.attempts for row in ledger.rows] == [1] * 4
    assert len(notes) == 1 and "attempts" in notes[0] and not list(folder.glob("results.tsv.broken-*"))
    assert history.read(folder) == ledger.rows or len(history.read(folder)) == 4
    night(folder, 6, aa_rate=0.0)
    assert len(history.read(folder)) == 6


def test_every_cent_of_a_long_night_is_in_a_row_or_beside_them(tmp_path):
    proposer = Mender(tmp_path / "asked")
    night(tmp_path / "run", 25, proposer=proposer)
    asked = (tmp_path / "asked").read_text().split()
    spent = report.build(tmp_path / "run")
    assert spent.tokens == 10 * len(asked) and spent.cost_usd == pytest.approx(0.01 * len(asked))
    assert spent.fixed == sum(row.attempts > 1 and row.status == "PASS" for row in spent.rows) > 0
