"""Runs a kernel file that has passed the judge under a tool of the CUDA toolkit: a profiler or a sanitizer. No torch.

The process is one of its own, without the owner's keys, its build products in a folder of their own. It is not
confined as a runner is: see exercise.py. It gives up after a time limit, with everything that it started.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from autokernel import registry
from autokernel.isolation import remove_tree
from autokernel.redact import without_secrets
from autokernel.types import AutokernelError, Workload

LOG_BYTES = 16 << 20
MODULE = "autokernel.evaluate.exercise"
LEASH = "autokernel.proposers._leash"  # nothing that it starts outlives this process, however that ends


@dataclasses.dataclass(frozen=True)
class Exercise:
    """Which calls of which file a tool is to watch: one of each workload, or without any, small ones of every dtype.
    ``problem`` and ``backend`` as a Target names them; ``device`` is a torch device string.
    """

    source: str
    problem: str
    backend: str
    device: str
    workloads: tuple[Workload, ...] = ()
    profile: bool = False


@dataclasses.dataclass(frozen=True)
class Ended:
    """How one run ended: its exit status (None: it took too long), the calls that it made (0 unless all returned), what
    the tool wrote, and the last that the process itself printed.
    """

    status: int | None
    calls: int
    log: str
    printed: str

    @property
    def last_line(self) -> str:
        lines = [line.strip() for line in self.printed.splitlines() if line.strip()]
        return lines[-1] if lines else f"exit status {self.status}"


class Folder:
    """Where one file is exercised: its source, what was built of it, and what tools wrote."""

    def __init__(self, path: Path, exercise: Exercise) -> None:
        self.log = path / "tool.log"
        self._path = path
        self._cache = path / "cache"
        self._cache.mkdir()
        self._told = path / "told.json"
        self._request = path / "request.json"
        kernel = path / "kernel.py"
        kernel.write_text(exercise.source, encoding="utf-8")
        request = {
            "kernel": str(kernel),
            "problem": exercise.problem,
            "device": exercise.device,
            "workloads": [work.to_json() for work in exercise.workloads],
            "profile": exercise.profile,
            "told": str(self._told),
        }
        self._request.write_text(json.dumps(request))
        self._environment = {
            **without_secrets(os.environ),
            **registry.load("backends", exercise.backend).environment(str(self._cache)),
            "PYTHONPATH": os.pathsep.join(each for each in sys.path if each),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def run(self, tool: Sequence[str], limit_s: float, environment: Mapping[str, str] | None = None) -> Ended:
        """Exercise it under a tool, the words of whose command come before the program's (none: under no tool)."""
        for stale in (self.log, self._told):
            stale.unlink(missing_ok=True)
        printed = self._path / "printed"
        status: int | None = None
        leash, held = os.pipe()
        try:
            with open(printed, "wb") as output:
                process = subprocess.Popen(
                    [sys.executable, "-m", LEASH, str(leash), *tool, sys.executable, "-m", MODULE, str(self._request)],
                    cwd=self._path,
                    env={**self._environment, **(environment or {})},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[leash],
                    start_new_session=True,
                )
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    status = process.wait(limit_s)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # also what it left behind
                process.wait()
        finally:
            os.close(leash)
            os.close(held)
        return Ended(status, self._calls(), _tail(self.log), _tail(printed))

    def _calls(self) -> int:
        try:
            return int(json.loads(self._told.read_text())["calls"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0


@contextlib.contextmanager
def folder(exercise: Exercise) -> Iterator[Folder]:
    """A folder for this file, removed at the end."""
    path = Path(tempfile.mkdtemp(prefix="autokernel-tool-"))
    try:
        yield Folder(path, exercise)
    finally:
        remove_tree(path)


def command(name: str) -> str | None:
    """The path of a tool of the CUDA toolkit: on the PATH, or where the toolkit's installer puts it."""
    return shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")


def needed(name: str, why: str, device: str) -> str:
    """The path of a tool without which the owner's wish cannot be met. AutokernelError where it cannot."""
    if not device.startswith("cuda"):
        raise AutokernelError(f"expected a GPU for {why}, got --device {device}")
    found = command(name)
    if found is None:
        raise AutokernelError(f"expected {name} for {why}, found none: install the CUDA toolkit, or put it on the PATH")
    return found


def suits(problem: str) -> None:
    """AutokernelError for a problem that has no inputs of its own to call a kernel on."""
    if problem.endswith(".json"):
        raise AutokernelError(f"expected a kernel with a reference to run under a tool, got a bench command: {problem}")


def bare(name: str) -> str:
    """softmax for ``void softmax<float, 4>(const float *)``: a kernel's name as its source and its compiler have it."""
    return re.sub(r"^void\s+", "", name.strip()).split("<")[0].split("(")[0].strip()[:200]


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - LOG_BYTES))
            return file.read(LOG_BYTES).decode(errors="replace")
    except OSError:
        return ""
