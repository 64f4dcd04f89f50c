"""A recorded run again: the same candidates in the same order, attempts included, and nothing else."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "run"))  # the scripted night

from scripted_night import TARGETS, Mender, ScriptedProposer, Watcher, night, source, target

from autokernel.extension import Brief, ProposerFailed, ProposerOptions
from autokernel.proposers.replay import create
from autokernel.registry import load
from autokernel.run import history
from autokernel.run.events import Note
from autokernel.run.orchestrator import MoveOn
from autokernel.types import AutokernelError, Experiment, source_id

COUNT = 20


def replay(folder: Path):
    return create(ProposerOptions(recorded=folder))


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A run with kept, reverted, failed and mended experiments and A/A repetitions on two targets."""
    folder = tmp_path_factory.mktemp("original") / "run"
    night(folder, COUNT, proposer=Mender(), rules=MoveOn(reverts=2, speedup=1e9, peak_pct=1e9))
    rows = history.read(folder)
    assert {row.target for row in rows} == {"softmax", "rmsnorm"}
    assert {row.decision for row in rows} == {"baseline", "aa", "keep", "revert"}
    assert {row.attempts for row in rows} >= {1, 2, 3}
    return folder


@pytest.fixture
def recorded(original, tmp_path) -> Path:
    shutil.copytree(original, tmp_path / "recorded")
    return tmp_path / "recorded"


def proposals(folder: Path, name: str) -> list[tuple[str, str, int, list[str]]]:
    """The proposals of a run for one target in order: idea, source, attempts, earlier attempts."""
    found = []
    for row in history.read(folder):
        if row.target == name and row.decision in ("keep", "revert"):
            place = folder / "experiments" / str(row.experiment)
            earlier = [(place / f"attempt-{n}.py").read_text() for n in range(1, row.attempts)]
            found.append((row.idea, (place / "candidate.py").read_text(), row.attempts, earlier))
    return found


def test_a_replay_makes_the_same_candidates_in_the_same_order(recorded, tmp_path):
    again, watcher = tmp_path / "again", Watcher()
    reason = night(again, None, proposer=replay(recorded), aa_rate=0.0, watcher=watcher)
    assert reason.kind == "exhausted"
    for name in ("softmax", "rmsnorm"):
        assert proposals(again, name) == proposals(recorded, name) != []
    rows = history.read(again)
    assert not watcher.of(Note), "nothing was proposed in vain"
    assert {row.proposer for row in rows} == {"starter", "replay"} and sum(row.cost_usd for row in rows) == 0.0
    before = [(r.idea, r.status, r.decision) for r in history.read(recorded) if r.decision in ("keep", "revert")]
    assert sorted((r.idea, r.status, r.decision) for r in rows if r.proposer == "replay") == sorted(before)


def test_a_replay_that_was_stopped_goes_on_where_it_was(recorded, tmp_path):
    again = tmp_path / "again"
    for experiments in (3, 9, None):
        night(again, experiments, proposer=replay(recorded), aa_rate=0.1)
    for name in ("softmax", "rmsnorm"):
        assert proposals(again, name) == proposals(recorded, name)


def test_a_replay_of_a_replay_is_the_same(recorded, tmp_path):
    night(tmp_path / "again", None, proposer=replay(recorded), aa_rate=0.0)
    night(tmp_path / "third", None, proposer=replay(tmp_path / "again"), aa_rate=0.0)
    assert proposals(tmp_path / "third", "softmax") == proposals(recorded, "softmax")


def test_a_source_comes_back_byte_for_byte(tmp_path):
    class Odd(ScriptedProposer):
        def propose(self, brief):
            if len(brief.history) > 1:
                return None
            proposal = super().propose(brief)
            return type(proposal)(f"{proposal.source}# é\r\n\x0c\t漢\n\n\n", "odd \t idea", proposal.cost)

    night(tmp_path / "run", None, proposer=Odd(), aa_rate=0.0)
    night(tmp_path / "again", None, proposer=replay(tmp_path / "run"), aa_rate=0.0)
    first, second = (
        {row.target: (tmp_path / run / "experiments" / str(row.experiment) / "candidate.py").read_bytes()
         for row in history.read(tmp_path / run) if row.proposer != "starter"}
        for run in ("run", "again")
    )  # fmt: skip
    assert first == second and len(first) == 2 and all(b"\r\n\x0c" in data for data in first.values())


def brief(of=TARGETS[0], past: tuple[Experiment, ...] = ()) -> Brief:
    return Brief(of, source(120.0), None, past, {}, 0)


def test_targets_of_another_model_are_told(recorded):
    with pytest.raises(ProposerFailed, match=r"targets softmax, rmsnorm; 'matmul' is not one"):
        replay(recorded).propose(brief(target("matmul")))


def test_a_target_that_was_known_and_not_tried_has_nothing_to_replay(recorded):
    profile = {"targets": [{"name": name} for name in ("softmax", "rmsnorm", "matmul")]}
    (recorded / "profile.json").write_text(json.dumps(profile))
    assert replay(recorded).propose(brief(target("matmul"))) is None


def test_the_first_candidate_that_was_not_tried_is_next(recorded):
    proposer = replay(recorded)
    first = proposer.propose(brief())
    assert first is not None and source_id(first.source) != source_id(source(120.0))
    assert proposer.propose(brief()) == first, "nothing is remembered but by the history"


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: shutil.rmtree(folder), "no such folder"),
        (lambda folder: (folder / "results.tsv").unlink(), "no such file"),
        (lambda folder: (folder / "results.tsv").write_text("nonsense\n"), "line 1"),
        (lambda folder: shutil.rmtree(folder / "experiments" / "2"), "experiment 2 cannot be read back"),
        (lambda folder: (folder / "profile.json").write_text("{"), "the profile of a run"),
        (lambda folder: (folder / "results.tsv").write_text(history.render(history.read(folder)[:1])), "no proposal"),
    ],
)
def test_what_is_no_recorded_run_is_one_line(recorded, spoil, told):
    spoil(recorded)
    with pytest.raises(AutokernelError, match=told) as refusal:
        replay(recorded)
    assert "\n" not in str(refusal.value)


def test_a_replay_of_nothing_asks_for_the_option():
    with pytest.raises(AutokernelError, match=r"--replay DIR"):
        load("proposers", "replay")(ProposerOptions())
