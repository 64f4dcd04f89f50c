"""kill -9 of the real command at random moments, resumed each time: is anything lost, or judged twice?

    python benchmarks/kills.py --kills 20

Runs ``autokernel run`` on a small model in a temporary folder, kills the daemon with SIGKILL after a random time, and
looks at what lies on the disk; then the same command again. At the end one more run must finish cleanly.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import click
import git
import psutil

from autokernel.run import history

MODEL = """
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(256) + 0.5)

    def forward(self, x):
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
        return torch.softmax(x, dim=-1)


def get_inputs():
    return [torch.randn(2048, 256)]


def get_init_inputs():
    return []
"""


def command(folder: Path, experiments: int) -> list[str]:
    return [
        *(sys.executable, "-m", "autokernel", "run", str(folder / "tiny.py"), "--no-verify", "--budget", "10m"),
        *("--max-experiments", str(experiments), "--run", "killed", "--quiet"),
    ]


def rows_of(workspace: Path) -> list[history.Row]:
    return history.read(workspace) if (workspace / "results.tsv").exists() else []


def left_behind(workspace: Path) -> list[psutil.Process]:
    """Processes of a killed run that are still there after two seconds."""
    deadline = time.monotonic() + 2
    while True:
        mine = []
        for process in psutil.process_iter(["cmdline"]):
            line = " ".join(process.info["cmdline"] or ())
            if "autokernel.evaluate" in line or f"--out {workspace}" in line:
                mine.append(process)
        if not mine or time.monotonic() > deadline:
            return mine
        time.sleep(0.1)


def check(workspace: Path, before: list[history.Row]) -> list[history.Row]:
    """What must hold after a run came back: every row that was there is there, unchanged, and no source has two."""
    rows = rows_of(workspace)
    assert rows[: len(before)] == before, "a row was lost or changed"
    assert [row.experiment for row in rows] == list(range(1, len(rows) + 1)), "the numbers have a gap"
    repository = git.Repo(workspace)
    blobs = [(r.target, repository.commit(r.commit).tree[f"kernels/{r.target}.py"].hexsha) for r in rows]
    twice = [key for key, count in Counter(blobs).items() if count > 1]
    assert not twice, f"judged twice: {twice}"
    kept = [row for row in rows if row.decision == "keep"]
    if kept:
        assert repository.head.commit.hexsha == kept[-1].commit, "the tip is not the last kept kernel"
    return rows


@click.command(help=__doc__)
@click.option("--kills", default=20, show_default=True)
@click.option("--longest", default=14.0, show_default=True, help="Seconds after the start before which a kill falls.")
@click.option("--seed", default=0, show_default=True)
def main(kills: int, longest: float, seed: int) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tiny.py").write_text(MODEL)
        workspace = folder / "results" / "killed"
        before: list[history.Row] = []
        for number in range(1, kills + 1):
            child = subprocess.Popen(command(folder, 10_000), cwd=folder, stdout=subprocess.DEVNULL)
            wait_s = rng.uniform(0.3, longest)
            time.sleep(wait_s)
            assert child.poll() is None, f"the run ended by itself with exit status {child.returncode}"
            child.kill()
            child.wait()
            orphans = left_behind(workspace)
            assert not orphans, f"left behind: {orphans}"
            seen = rows_of(workspace)
            print(f"kill {number:2} after {wait_s:5.1f} s: {len(seen)} rows on disk")
            before = seen if len(seen) >= len(before) else before
        finished = subprocess.run(command(folder, len(before) + 2), cwd=folder, check=False)
        assert finished.returncode == 0, f"exit status {finished.returncode}"
        rows = check(workspace, before)
        print(
            f"{kills} kills, {len(rows)} rows, {sum(r.decision == 'keep' for r in rows)} kept: nothing lost or doubled"
        )


if __name__ == "__main__":
    main()
