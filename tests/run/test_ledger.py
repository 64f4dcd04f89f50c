"""The workspace's repository: what recovery repairs, what it refuses, and that nobody else's git is touched."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess

import git
import pytest
from scripted_night import TARGETS, latency_us, night, source, starters

from autokernel.run import history, workspace
from autokernel.run.ledger import Ledger
from autokernel.types import AutokernelError, Candidate, Comparison, Cost, Measurements, Status, Verdict

COUNT = 12


@pytest.fixture
def run(tmp_path):
    """A workspace with a dozen experiments."""
    night(tmp_path / "run", COUNT)
    return tmp_path / "run"


def reopen(folder):
    """Opens a workspace as a resumed run does; gives its ledger's rows and what it had to say."""
    notes: list[str] = []
    with workspace.lock(folder), contextlib.closing(Ledger(folder, TARGETS, starters, notes.append)) as ledger:
        return list(ledger.rows), notes


def git_says(folder, *command):
    return subprocess.run(
        ["git", "-C", str(folder), *command], capture_output=True, text=True, check=True
    ).stdout.strip()


BREAK = {
    "gone": lambda text: None,
    "empty": lambda text: b"",
    "header only": lambda text: text[: text.index(b"\n") + 1],
    "last row lost": lambda text: text[: text.rstrip(b"\n").rindex(b"\n") + 1],
    "cut inside a row": lambda text: text[:-50],
    "cut after a row": lambda text: text[:-1],
    "a cell too few": lambda text: text.replace(b"\tcpp\t", b"\t", 1),
    "a number broken": lambda text: text.replace(b"120\t", b"fast\t", 1),
    "a decision changed": lambda text: text.replace(b"\tbaseline\t", b"\tkeep\t", 1),
    "garbage at the end": lambda text: text + b"\x00\xff\n",
    "garbage in the middle": lambda text: text[:900] + b"\xff\x00\n\t" + text[900:],
    "rows in another order": lambda text: b"\n".join([text.split(b"\n")[0], *text.split(b"\n")[:0:-1]]),
    "windows line ends": lambda text: text.replace(b"\n", b"\r\n"),
}


@pytest.mark.parametrize("name", BREAK)
def test_a_broken_table_is_restored_from_the_refs_and_never_reset(run, name):
    path = run / "results.tsv"
    before = path.read_bytes()
    broken = BREAK[name](before)
    if broken is None:
        path.unlink()
    else:
        assert broken != before
        path.write_bytes(broken)
    rows, notes = reopen(run)
    assert path.read_bytes() == before
    assert len(rows) == COUNT and len(history.read(path)) == COUNT
    asides = list(run.glob("results.tsv.broken-*"))
    if broken is None or before.startswith(broken):  # rows that a kill or a lost disk page kept from the file
        assert not asides
        assert bool(notes) == bool(broken and not broken.endswith(b"\n"))
    else:
        assert [aside.read_bytes() for aside in asides] == [broken]
        line = next(
            n for n, (a, b) in enumerate(zip(broken.split(b"\n"), before.split(b"\n"), strict=False), 1) if a != b
        )
        assert f"line {line} " in notes[0]
    assert reopen(run)[1] == []


def test_rows_that_git_does_not_know_are_not_thrown_away(run):
    path, last = run / "results.tsv", history.read(run)[-1]
    for place in ("experiments", "records"):
        git_says(run, "update-ref", "-d", f"refs/{place}/{COUNT}")
    before = path.read_bytes()
    if last.decision == "keep":
        git_says(run, "update-ref", "refs/heads/main", last.parent)
    with pytest.raises(AutokernelError, match=f"line {COUNT + 1}: experiment {COUNT}"):
        reopen(run)
    assert path.read_bytes() == before


def test_a_lost_repository_is_told_and_the_table_kept(run):
    before = (run / "results.tsv").read_bytes()
    shutil.rmtree(run / ".git")
    with pytest.raises(AutokernelError, match=r"\.git.* is gone"):
        reopen(run)
    assert (run / "results.tsv").read_bytes() == before


@pytest.mark.parametrize("ref", ["refs/experiments/3", "refs/records/5"])
def test_a_gap_in_the_refs_is_told(run, ref):
    git_says(run, "update-ref", "-d", ref)
    with pytest.raises(AutokernelError, match=rf"\[{ref[-1]}\] are incomplete"):
        reopen(run)


@pytest.mark.parametrize("damage", ["empty ref", "empty record", "no ref", "no objects", "HEAD"])
def test_a_broken_repository_is_one_clear_line(run, damage):
    tip = run / ".git" / "refs" / "heads" / "main"
    if damage == "empty ref":
        tip.write_text("")
    elif damage == "empty record":
        (run / ".git" / "refs" / "records" / "4").write_text("")
    elif damage == "no ref":
        tip.unlink()
    elif damage == "HEAD":
        (run / ".git" / "HEAD").unlink()
    else:
        shutil.rmtree(run / ".git" / "objects")
    with pytest.raises(AutokernelError) as refusal:
        reopen(run)
    assert str(run) in str(refusal.value) and "--fresh" in str(refusal.value)


def test_a_branch_moved_by_hand_is_told_with_the_command_that_mends_it(run):
    kept = [row for row in history.read(run) if row.decision == "keep"]
    (run / "kernels" / "softmax.py").write_text(source(1.0))
    git_says(run, "-c", "core.hooksPath=/dev/null", "commit", "--quiet", "-am", "by hand")
    with pytest.raises(AutokernelError, match="reset --hard") as refusal:
        reopen(run)
    command = str(refusal.value).split("`")[1].removeprefix(f"git -C {run} ").split()
    git_says(run, *command)
    rows, _ = reopen(run)
    assert len(rows) == COUNT and git_says(run, "rev-parse", "main") == kept[-1].commit


def test_an_edit_by_hand_is_set_aside_and_said(run):
    path = run / TARGETS[0].file
    before = path.read_text()
    path.write_text(source(1.0, remark="mine"))
    _, notes = reopen(run)
    assert path.read_text() == before
    assert len(notes) == 1 and "set-aside" in notes[0]
    assert [p.read_text() for p in (run / "set-aside").iterdir()] == [source(1.0, remark="mine")]


def test_folders_of_experiments_come_back_from_the_refs(run):
    before = {p.relative_to(run): p.read_bytes() for p in (run / "experiments").rglob("*") if p.is_file()}
    shutil.rmtree(run / "experiments")
    reopen(run)
    assert {p.relative_to(run): p.read_bytes() for p in (run / "experiments").rglob("*") if p.is_file()} == before


def test_garbage_collection_by_hand_changes_nothing(run):
    rows = history.read(run)
    git_says(run, "gc", "--quiet", "--prune=now")
    assert list(map(history.format_row, reopen(run)[0])) == list(map(history.format_row, rows))
    night(run, COUNT + 5)
    assert len(history.read(run)) == COUNT + 5
    assert git_says(run, "fsck", "--strict") == ""


def test_experiments_come_back_whole(run):
    with workspace.lock(run), contextlib.closing(Ledger(run, TARGETS, starters)) as ledger:
        first = {t.name: ledger.experiments(t.name) for t in TARGETS}
        tip = ledger.tip
    with workspace.lock(run), contextlib.closing(Ledger(run, TARGETS, starters)) as ledger:
        assert {t.name: ledger.experiments(t.name) for t in TARGETS} == first
        assert ledger.tip == tip
        softmax = first["softmax"]
        assert softmax[0].candidate.parent == "" and softmax[1].candidate.parent == softmax[0].candidate.id
        assert all(ledger.judged(TARGETS[0], e.candidate.source) for e in softmax)
        assert not ledger.judged(TARGETS[1], softmax[-1].candidate.source)


def test_a_recorded_keep_that_was_not_carried_out_is_finished(tmp_path):
    folder = tmp_path / "run"
    with workspace.lock(folder), contextlib.closing(Ledger(folder, TARGETS, starters)) as ledger:
        parent, candidate = ledger.tip, Candidate("softmax", source(50.0), "", "faster", "me")
        proposed = ledger.propose(TARGETS[0], candidate, "candidate", 0.0)
        verdict = Verdict(Status.PASS, "done", "", measurements=Measurements(50.0, {}, None, {}, 0.1))
        ledger.record(proposed, verdict, Comparison(0.5, 0.4, 0.6, 8, True, "", 100.0, 50.0), "keep", 1.0)
        assert latency_us(ledger.incumbent(TARGETS[0])) == 50.0
    git_says(folder, "update-ref", "refs/heads/main", parent)
    rows, _ = reopen(folder)
    assert git_says(folder, "rev-parse", "main") == rows[0].commit
    assert latency_us((folder / TARGETS[0].file).read_text()) == 50.0


def test_a_proposal_without_a_verdict_waits_to_be_judged(tmp_path):
    folder = tmp_path / "run"
    candidate = Candidate("softmax", source(50.0), "abc", "two\nlines", "me")
    with workspace.lock(folder), contextlib.closing(Ledger(folder, TARGETS, starters)) as ledger:
        ledger.unbooked.add(Cost(3, 2, 0.1), [{"question": "faster?", "answer": "yes"}])
        proposed = ledger.propose(TARGETS[0], candidate, "candidate", 4.0)
        assert (proposed.cost, proposed.spent_s) == (Cost(3, 2, 0.1), 4.0) and len(proposed.exchanges) == 1
        assert ledger.unbooked.total() == Cost()
    with workspace.lock(folder), contextlib.closing(Ledger(folder, TARGETS, starters)) as ledger:
        assert ledger.pending == proposed
        assert ledger.rows == [] and not ledger.judged(TARGETS[0], candidate.source)


def test_the_users_own_repository_sees_nothing(tmp_path, monkeypatch):
    theirs = tmp_path / "checkout"
    subprocess.run(["git", "init", "--quiet", str(theirs)], check=True)
    hook = theirs / ".git" / "hooks" / "post-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/hook-ran\n")
    hook.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text(
        f"[core]\n hooksPath = {hook.parent}\n[commit]\n gpgsign = true\n[user]\n name = Owner\n email = o@example\n"
    )
    before = {p: p.read_bytes() for p in (theirs / ".git").rglob("*") if p.is_file()}
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_DIR", str(theirs / ".git"))  # as inside a hook or an editor's terminal
    monkeypatch.setenv("GIT_WORK_TREE", str(theirs))
    monkeypatch.setenv("GIT_INDEX_FILE", str(theirs / ".git" / "index"))
    monkeypatch.chdir(theirs)
    folder = theirs / "results" / "run"
    night(folder, 5)
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        assert name in os.environ
        monkeypatch.delenv(name)
    assert {p: p.read_bytes() for p in (theirs / ".git").rglob("*") if p.is_file()} == before
    assert git_says(theirs, "status", "--porcelain") == ""
    assert not (tmp_path / "hook-ran").exists()
    repository = git.Repo(folder)
    assert {commit.author.name for commit in repository.iter_commits()} == {"autokernel"}
    assert not repository.is_dirty(untracked_files=True)


def test_a_full_disk_is_one_line_and_the_run_resumes(tmp_path):
    """A file-size limit of the process stands in for a disk without space: the kernel refuses the same write."""
    folder = tmp_path / "run"
    night(folder, 3)
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "sys.path[:0] = sys.argv[2:];"
        "from scripted_night import night; from pathlib import Path; from autokernel.types import AutokernelError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))\n"
        "try: night(Path(sys.argv[1]), 30)\n"
        "except AutokernelError as error: print(error); sys.exit(2)\n"
    )
    here = os.path.dirname(__file__)
    paths = [here, os.path.dirname(os.path.dirname(here))]
    done = subprocess.run(
        [os.sys.executable, "-c", script, str(folder), *paths], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stdout.strip().splitlines()) == 1 and str(folder) in done.stdout
    night(folder, 8)
    assert len(history.read(folder)) == 8
    assert git_says(folder, "fsck", "--strict") == ""


def test_verdicts_are_kept_in_full(run):
    row = next(row for row in history.read(run) if row.status == "PASS")
    verdict = json.loads((run / "experiments" / str(row.experiment) / "verdict.json").read_text())
    assert verdict["measurements"]["baselines_us"] == {"eager": 100.0, "compile": 80.0}
    assert history.format_row(row).count("\t") == len(history.COLUMNS) - 1
