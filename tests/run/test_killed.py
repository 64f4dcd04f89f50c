"""kill -9 at any moment, then the same run again: nothing lost, nothing judged twice, and the tip is the best."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import git
import pytest
from scripted_night import STARTER_US, TARGETS, latency_us

from autokernel.run import history, unbooked

PROGRAM = Path(__file__).with_name("scripted_night.py")
ROOT = PROGRAM.parents[2]
EXPERIMENTS = 60


def start(folder: Path, experiments: int = EXPERIMENTS, killed_at: int | None = None) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    child = subprocess.Popen(
        [sys.executable, str(PROGRAM), str(folder), str(experiments), *([str(killed_at)] if killed_at else [])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n", child.stderr.read().decode()
    return child


def rows_in_git(folder: Path) -> int:
    return len(list((folder / ".git" / "refs" / "records").glob("*")))


def mending(folder: Path) -> bool:
    """Whether an attempt that failed is on the disk, of an experiment that has no row yet."""
    details = folder / ".git" / "refs" / "details" / str(rows_in_git(folder) + 1)
    return details.exists() and bool(
        json.loads(git.Repo(folder).git.cat_file("blob", details.read_text().strip()))["attempts"]
    )


def check(folder: Path, experiments: int) -> list[history.Row]:
    """What must hold of every workspace that was opened after its kills."""
    rows = history.read(folder)
    assert len(rows) == experiments
    repository = git.Repo(folder)
    sources = [repository.commit(r.commit).tree[f"kernels/{r.target}.py"].data_stream.read() for r in rows]
    pairs = Counter((row.target, source) for row, source in zip(rows, sources, strict=True))
    assert max(pairs.values()) == 1, "a source has two rows"
    for row in rows:
        assert repository.commit(f"refs/experiments/{row.experiment}").hexsha == row.commit
        assert repository.commit(row.commit).parents[0].hexsha == row.parent
        assert (folder / "experiments" / str(row.experiment) / "verdict.json").is_file()
    kept = [row for row in rows if row.decision == "keep"]
    assert repository.head.commit.hexsha == kept[-1].commit
    assert [c.hexsha for c in repository.iter_commits()][:-1] == [row.commit for row in reversed(kept)]
    for target in TARGETS:
        stood = [r.latency_us for r in rows if r.target == target.name and r.decision in ("keep", "baseline")]
        best = min(stood, default=STARTER_US)
        text = (folder / target.file).read_text()
        assert latency_us(text) == pytest.approx(best, rel=1e-6)
        assert text.encode() == repository.head.commit.tree[target.file].data_stream.read()
    assert not repository.is_dirty(untracked_files=True)
    return rows


def check_costs(folder: Path, rows: list[history.Row], kills: int) -> None:
    """Every exchange is in one place and was paid once; a kill loses at most the answer that came in that moment."""
    asked = (folder.parent / "asked").read_text().split()
    found = [exchange["id"] for entry in unbooked.read(folder) for exchange in entry.exchanges]
    for row in rows:
        place = folder / "experiments" / str(row.experiment)
        path = place / "exchange.jsonl"
        told = [json.loads(line)["id"] for line in path.read_text().splitlines()] if path.exists() else []
        assert row.tokens_in + row.tokens_out == 10 * len(told)
        assert row.cost_usd == pytest.approx(0.01 * len(told))
        assert len(list(place.glob("attempt-*.py"))) == len(list(place.glob("attempt-*.json"))) == row.attempts - 1
        found += told
    assert max(Counter(found).values()) == 1
    assert set(found) <= set(asked) and len(asked) - len(found) <= kills


def test_killed_at_random_moments_and_resumed(tmp_path):
    folder, dice, kills = tmp_path / "run", random.Random(7), 0
    while kills < 14:
        child = start(folder, 10_000)
        time.sleep(dice.uniform(0.0, 0.35))
        before = rows_in_git(folder)
        assert child.poll() is None, child.stderr.read().decode()
        child.kill()
        child.communicate()
        kills += 1
        assert rows_in_git(folder) >= before
    count = rows_in_git(folder) + 10
    child = start(folder, count)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 0, errors.decode()
    rows = check(folder, count)
    assert len(rows) > 20, "the kills came before anything was written: the test shows nothing"
    verdicts = len((tmp_path / "journal").read_text().splitlines())
    # A verdict is given again when a kill came before its record, or before its candidate was mended.
    assert verdicts - sum(row.attempts for row in rows) <= kills
    assert any(row.attempts > 1 and row.status == "PASS" for row in rows)
    check_costs(folder, rows, kills)


def test_killed_before_each_write_of_an_experiment(tmp_path):
    """Not left to chance: a kill before every 15th touch of the disk, from the first moments of a workspace on, and
    while its third and fourth experiments are mended.
    """
    killed_in_work = killed_while_mending = 0
    for moment in (*range(1, 150, 15), *range(265, 490, 15)):
        folder = tmp_path / str(moment) / "run"
        folder.parent.mkdir()
        child = start(folder, 4, killed_at=moment)
        _, errors = child.communicate(timeout=30)
        assert child.returncode in (0, -signal.SIGKILL), errors.decode()
        killed_in_work += child.returncode != 0 and (folder / "results.tsv").exists()
        killed_while_mending += child.returncode != 0 and mending(folder)
        child = start(folder, 6)
        _, errors = child.communicate(timeout=30)
        assert child.returncode == 0, errors.decode()
        check_costs(folder, check(folder, 6), kills=1)
    assert killed_in_work >= 5 and killed_while_mending >= 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_cleanly(tmp_path, number):
    folder = tmp_path / "run"
    child = start(folder, 10_000)
    while rows_in_git(folder) < 20 if (folder / ".git" / "refs" / "records").exists() else True:
        time.sleep(0.01)
    child.send_signal(number)
    _, errors = child.communicate(timeout=20)
    assert child.returncode == 128 + number, errors.decode()
    check(folder, rows_in_git(folder))


def test_the_second_run_is_refused_with_the_pid_of_the_first(tmp_path):
    folder = tmp_path / "run"
    first = start(folder, 10_000)
    while not (folder / "results.tsv").exists():
        time.sleep(0.01)
    second = start(folder)
    _, errors = second.communicate(timeout=20)
    assert second.returncode != 0
    assert f"pid {first.pid}" in errors.decode()
    assert first.poll() is None
    first.kill()
    first.communicate()
