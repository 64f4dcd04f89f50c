"""The daemon's side of the judge: start it, hand it assignments, start another if it dies. No torch here.

Nothing that a candidate does reaches the daemon except as a Verdict. A judge that dies is restarted and the
assignment tried once more; one that dies twice on the same assignment is a fault of this house and raises JudgeFailed.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from autokernel.evaluate.defences import checked
from autokernel.evaluate.protocol import Channel, PeerGone, PeerLate, PeerNonsense, pair
from autokernel.isolation import Limits, demand, remove_tree
from autokernel.redact import without_secrets
from autokernel.types import AutokernelError, Comparison, Target, Verdict

SILENCE_S = 900.0  # the judge reports every stage; longer silence than any deadline within it means that it hangs
LOG_TAIL_BYTES = 2000

OnEvent = Callable[[Mapping[str, Any]], None]


@dataclasses.dataclass(frozen=True)
class JudgeOptions:
    """``device`` is a torch device string; ``min_gain`` the least gain that is worth keeping, as a fraction;
    ``threads`` those of a runner on the CPU (default: the cores this process may use). ``policy`` off skips the
    reading of the source, so that the walls behind it can be tested. ``require`` names levels of isolation (see
    autokernel.isolation) without which nothing is judged; ``isolation_off`` names those that a test leaves out, and
    each verdict's environment then says so. ``limits`` bound what one runner may use; ``spares`` is how many are made
    ahead of a candidate (default: all that its verdict takes on a GPU, none on a CPU).
    """

    device: str = "cpu"
    min_gain: float = 0.005
    threads: int | None = None
    policy: bool = True
    require: frozenset[str] = frozenset()
    limits: Limits = dataclasses.field(default_factory=Limits)
    isolation_off: frozenset[str] = frozenset()
    spares: int | None = None


@dataclasses.dataclass(frozen=True)
class Assignment:
    """One file to judge. With ``incumbent`` (its source) a passing candidate is also compared with it; ``baselines``
    times eager, torch.compile and the library call in the same session; ``thorough`` takes more rounds of these.
    """

    target: Target
    source: str
    incumbent: str | None = None
    baselines: bool = True
    thorough: bool = False
    disabled: frozenset[str] = frozenset()  # defences that a test switches off; the verdict's environment names them


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """``comparison`` exists iff the verdict is PASS and there was an incumbent. ``seconds`` is wall time."""

    verdict: Verdict
    comparison: Comparison | None
    seconds: float


class JudgeFailed(AutokernelError):
    """The judge itself failed: not the candidate's doing, as far as can be told."""


class Judge(Protocol):
    """Whoever can judge an assignment."""

    def evaluate(self, assignment: Assignment, on_event: OnEvent = ...) -> Evaluation: ...


class JudgeClient:
    """A judge process and the conversation with it. Use as a context manager; ``scratch`` is removed at the end."""

    def __init__(self, scratch: Path, options: JudgeOptions | None = None) -> None:
        self.options = options or JudgeOptions()
        self._scratch = scratch
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._hardware: Mapping[str, Any] = {}
        self._isolation: Mapping[str, bool] = {}
        remove_tree(scratch)  # what a killed run left behind
        try:
            scratch.mkdir(parents=True)
        except OSError as error:
            raise AutokernelError(
                f"cannot create {scratch} ({error.strerror}): a writable results folder is needed"
            ) from error
        self._start()

    def __enter__(self) -> JudgeClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def hardware(self) -> Mapping[str, Any]:
        """The device and its measured ceilings, as ``Hardware.to_json`` gives them."""
        return self._hardware

    @property
    def isolation(self) -> Mapping[str, bool]:
        """The levels of isolation that runners reach on this machine, by name."""
        return self._isolation

    @property
    def pid(self) -> int:
        """Process id of the judge."""
        if self._process is None:
            raise JudgeFailed("the judge is not running")
        return self._process.pid

    def evaluate(self, assignment: Assignment, on_event: OnEvent = lambda _: None) -> Evaluation:
        """Judge one assignment. Raises JudgeFailed when the judge died twice on it."""
        started = time.perf_counter()
        try:
            answer = self._ask(assignment, on_event)
        except (PeerGone, PeerLate, PeerNonsense):
            self._stop()
            self._start()
            try:
                answer = self._ask(assignment, on_event)
            except (PeerGone, PeerLate, PeerNonsense) as error:
                raise JudgeFailed(
                    f"the judge died twice on a candidate for '{assignment.target.name}' ({error}): {self._log_tail()}"
                ) from error
        comparison = answer["comparison"]
        return Evaluation(
            Verdict.from_json(answer["verdict"]),
            Comparison.from_json(comparison) if comparison else None,
            time.perf_counter() - started,
        )

    def close(self) -> None:
        """End the judge with all its runners and remove the scratch folder. Idempotent."""
        self._stop()
        remove_tree(self._scratch)

    def _ask(self, assignment: Assignment, on_event: OnEvent) -> dict[str, Any]:
        assert self._channel is not None
        self._channel.send(
            {
                "target": assignment.target.to_json(),
                "source": assignment.source,
                "incumbent": assignment.incumbent,
                "baselines": assignment.baselines,
                "thorough": assignment.thorough,
                "disabled": sorted(checked(assignment.disabled)),
            }
        )
        while True:
            answer, _ = self._channel.receive(SILENCE_S)
            if answer["event"] == "done":
                return answer
            on_event(answer)

    def _start(self) -> None:
        ours, theirs = pair()
        folder = Path(tempfile.mkdtemp(prefix="judge-", dir=self._scratch))
        # Idle threads of the judge must not spin while a runner is timed. Libraries read this at their start.
        environment = {
            **without_secrets(os.environ),
            "OMP_NUM_THREADS": str(self._threads()),
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        with open(self._scratch / "judge.log", "ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "autokernel.evaluate", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C in the terminal is the daemon's to handle
            )
        theirs.close()
        self._channel = ours
        start = {
            "folder": str(folder.resolve()),
            "device": self.options.device,
            "threads": self._threads(),
            "min_gain": self.options.min_gain,
            "policy": self.options.policy,
            "limits": self.options.limits.to_json(),
            "isolation_off": sorted(self.options.isolation_off),
            "spares": self.options.spares,
        }
        try:
            ours.send(start)
            ready, _ = ours.receive(SILENCE_S)
        except (PeerGone, PeerLate, PeerNonsense) as error:
            tail = self._log_tail()
            self._stop()
            raise JudgeFailed(f"the judge did not start on device '{self.options.device}': {tail or error}") from error
        self._hardware, self._isolation = ready["hardware"], ready["isolation"]
        try:
            demand(self.options.require, self._isolation)
        except AutokernelError:
            self.close()
            raise

    def _threads(self) -> int:
        return self.options.threads or len(os.sched_getaffinity(0))

    def _stop(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.send_signal(signal.SIGKILL)
                self._process.wait()
            self._process = None

    def _log_tail(self) -> str:
        """The last line that the judge printed: the error of its traceback."""
        try:
            text = (self._scratch / "judge.log").read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
        except OSError:
            return ""
        return text.strip().splitlines()[-1] if text.strip() else ""
