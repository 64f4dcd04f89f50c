"""The real command in a process of its own; helpers lie beside these tests and are imported by name."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from autokernel.cli import main

sys.path.insert(0, str(Path(__file__).parent))

from owner_folder import BENCH, KERNEL, ROOT

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def autokernel() -> Command:
    """autokernel(*arguments, cwd=folder): the command, without a terminal."""

    def run(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
        line = [sys.executable, "-m", "autokernel", *arguments]
        return subprocess.run(
            line, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )

    return run


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An owner's folder with a kernel and a bench script."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "fast.c").write_text(KERNEL)
    (folder / "bench.sh").write_text(BENCH)
    return folder


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Command:
    """As ``autokernel``, but in this process: for what only looks or refuses."""

    def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(cwd)
        done = CliRunner().invoke(main, list(arguments))
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)

    return run
