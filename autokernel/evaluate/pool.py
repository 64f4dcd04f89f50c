"""The judge's handles on the nursery and its runners: spawn, ask with a deadline, read the log, end.

Whatever a runner does, ``Handle.ask`` returns its answer or raises RunnerFailed, which says how it ended.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from autokernel.evaluate import sandbox
from autokernel.evaluate.answers import checked, plain
from autokernel.evaluate.freezer import Freezer
from autokernel.evaluate.protocol import Channel, PeerGone, PeerLate, PeerNonsense, pair
from autokernel.isolation import Limits, remove_tree

LOG_TAIL_BYTES = 8000
START_S = 120.0
DYING_S = 5.0  # what a process that closed its channel may take to end, gigabytes to free on a busy machine included


class RunnerFailed(Exception):
    """A runner did not answer as it should. ``kind`` is how: it refused or raised, was late, or died."""

    def __init__(self, kind: Literal["refused", "late", "died"], reason: str, log_tail: str = "") -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason
        self.log_tail = log_tail


CPU_THREADS = {
    "OMP_PROC_BIND": "close",  # a thread that wanders, or shares a core with its partner, is the largest noise
    "OMP_PLACES": "cores",
    "GOMP_SPINCOUNT": "20000",  # idle threads of one side must be asleep when the other's turn begins
}


class Handle:
    """One runner, from spawn to end."""

    def __init__(
        self, nursery: Nursery, channel: Channel, nursery_pid: int, reaper_fd: int, scratch: Path, log_fd: int
    ) -> None:
        self._nursery = nursery
        self._channel = channel
        self._log_fd = log_fd
        self._nursery_pid = nursery_pid  # of the reaper, in the nursery's namespace;
        self.pid = _pid_here(reaper_fd)  # and in this process's
        self.reaper_fd = reaper_fd  # readable when the reaper has ended, and with it all that the runner started
        self.scratch = scratch
        self.levels: Mapping[str, bool] = {}
        self.closed = False
        self.freezer = Freezer(self.pid)
        self._runner_pid: int | None = None

    def fileno(self) -> int:
        """What is readable when an answer has come, or the runner has ended."""
        return self._channel.fileno()

    def ask(
        self,
        op: str,
        fields: Mapping[str, Any] | None = None,
        fds: Sequence[int] = (),
        deadline_s: float = 30.0,
        spin_s: float = 0.0,
    ) -> dict[str, Any]:
        """The answer to one request; for ``spin_s`` it is waited for awake. Raises RunnerFailed; after "late" or "died"
        the runner is gone.
        """
        self.post(op, fields, fds)
        return self.wait(op, deadline_s, spin_s)

    def post(self, op: str, fields: Mapping[str, Any] | None = None, fds: Sequence[int] = ()) -> None:
        """Send a request whose answer ``wait`` will bring: two runners can so be at work at once."""
        with contextlib.suppress(PeerGone, PeerLate):  # wait finds the channel closed, and says how it ended
            self._channel.send({"op": op, **(fields or {})}, fds)
        self.freezer.thaw()  # only now: a runner that stood still does not run before it has its request

    def wait(self, op: str, deadline_s: float, spin_s: float = 0.0) -> dict[str, Any]:
        """The answer to the request that was posted. Raises RunnerFailed."""
        try:
            answer = checked(self._channel.receive(deadline_s, spin_s)[0])
        except PeerLate:
            tail = self.log_tail()
            self.close()
            raise RunnerFailed("late", f"no answer to '{op}' within {deadline_s:.0f} s: killed", tail) from None
        except PeerGone:
            tail = self.log_tail()
            raise RunnerFailed(
                "died", f"the process ended during '{op}': {self.close(grace_s=DYING_S)}", tail
            ) from None
        except PeerNonsense as error:
            tail = self.log_tail()
            self.close()
            raise RunnerFailed(
                "died", f"the result channel was forged or broken during '{op}': {error}", tail
            ) from None
        if answer.get("ok") is not True:
            told = " ".join(answer.get("message", "no reason given").split())[:500]
            tail = answer.get("traceback", "")[-LOG_TAIL_BYTES:]
            raise RunnerFailed("refused", told, tail or self.log_tail())
        return answer

    def ran_ns(self) -> int | None:
        """For how long the runner's first thread, which makes the calls, has had a processor, in all. None: unknown."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            if self._runner_pid is None:
                self._runner_pid = int(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()[0])
            return int(Path(f"/proc/{self._runner_pid}/task/{self._runner_pid}/schedstat").read_text().split()[0])
        return None

    def log_tail(self) -> str:
        """The end of what the candidate printed, whatever it made of the file's name."""
        if self.closed:
            return ""
        size = os.fstat(self._log_fd).st_size
        return plain(os.pread(self._log_fd, LOG_TAIL_BYTES, max(0, size - LOG_TAIL_BYTES)).decode(errors="replace"))

    def hang_up(self) -> None:
        """Tell the runner that nothing will be asked any more: it ends by itself, or when it is closed."""
        self._channel.close()
        self.freezer.thaw()

    def close(self, grace_s: float = 0.0) -> str:
        """End the runner and all it started, remove its scratch folder; say how it had ended. Idempotent.

        A runner that is already on its way out has ``grace_s`` to end by itself, so that its status is its own.
        """
        if self.closed:
            return "closed"
        self._channel.close()
        status = self._nursery.reap(self._nursery_pid, grace_s)
        self.closed = True
        os.close(self._log_fd)
        os.close(self.reaper_fd)
        remove_tree(self.scratch)
        return status


def close_all(handles: Iterable[Handle]) -> None:
    """End runners side by side: one that holds a GPU takes 80 ms to go."""
    found = [handle for handle in handles if not handle.closed]
    for handle in found:
        handle.hang_up()
    for handle in found:
        handle.close()


class Nursery:
    """The warm process that forks runners (see nursery.py). It comes up while its owner does other things: whoever
    needs it first waits for it.

    ``off`` names levels of isolation that a test leaves out for all runners. ``warm`` False imports no torch: its
    runners can only say which levels they reached. ``threads`` are those of a runner on the CPU.
    """

    def __init__(
        self,
        folder: Path,
        device: str,
        threads: int,
        limits: Limits | None = None,
        off: frozenset[str] = frozenset(),
        *,
        warm: bool = True,
    ) -> None:
        self.folder = folder
        self.device = device
        self.threads = threads
        self.limits = limits or Limits()
        self.off = off
        self._up = False
        ours, theirs = pair()
        self._control = ours
        self._asking = threading.Lock()  # runners that share the stages may end at the same time
        kept = dict(os.environ) if "env" in off else sandbox.scrubbed_environment()
        self._environment = {
            **kept,
            "OMP_NUM_THREADS": str(threads),
            **(CPU_THREADS if device == "cpu" else {}),
            "OPENBLAS_NUM_THREADS": "1",  # numpy's own pool: a nursery must fork from a single thread
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # read when torch is imported: it compiles where it is, in no pool
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # a look for GPUs must not open CUDA before the fork
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        }
        self._environment.pop("OMP_WAIT_POLICY", None)  # the judge's own choice: runners wait as a user's program does
        self._process = subprocess.Popen(
            [sys.executable, "-m", "autokernel.evaluate.nursery", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**self._environment, **self._own_settings()},
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        start = {"device": device, "limits": self.limits.to_json(), "off": sorted(off), "warm": warm}
        with contextlib.suppress(PeerGone):  # whoever waits for it is told
            self._control.send(start)

    @staticmethod
    def _own_settings() -> dict[str, str]:
        """What the nursery is told and its runners are not: it has to find caches and readable folders."""
        names = ("HOME", "AUTOKERNEL_CACHE", "AUTOKERNEL_READABLE")
        return {name: os.environ[name] for name in names if name in os.environ}

    @property
    def pid(self) -> int:
        return self._process.pid

    def levels(self) -> Mapping[str, bool]:
        """The levels of isolation that a runner reaches here: one is started, asked and ended."""
        handle = self.spawn(self.folder / "cache" / "probe", {})
        levels = handle.levels
        handle.close()
        remove_tree(self.folder / "cache" / "probe")
        return levels

    def spawn(
        self, cache: Path, environment: Mapping[str, str], *, confine: bool = True, off: frozenset[str] = frozenset()
    ) -> Handle:
        """A fresh runner that has loaded nothing. ``confine`` False is for our own baselines only; ``off`` names levels
        that a test leaves out for this one.
        """
        cache.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix="runner-", dir=self.folder))
        log_fd = os.open(scratch / "log.txt", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        ours, theirs = pair(trusted=False)
        home = {"HOME": str(scratch), "TMPDIR": str(scratch), "XDG_CACHE_HOME": str(cache)}
        message = {
            "op": "spawn",
            "scratch": str(scratch),
            "cache": str(cache),
            "environment": {**self._environment, **home, **environment},
            "confine": confine,
            "off": sorted(off | self.off),
        }
        answer, (reaper_fd,) = self._ask(message, [theirs.fileno(), log_fd])
        theirs.close()
        handle = Handle(self, ours, int(answer["pid"]), reaper_fd, scratch, log_fd)
        try:
            hello, _ = ours.receive(START_S)
        except (PeerGone, PeerLate, PeerNonsense) as error:
            tail = handle.log_tail()
            raise RuntimeError(f"a runner did not come up: {error}; {tail} {handle.close()}") from error
        handle.levels = hello["levels"]
        return handle

    def reap(self, pid: int, grace_s: float) -> str:
        """End one runner; how it had ended."""
        answer, _ = self._ask({"op": "reap", "pid": pid, "grace_s": grace_s})
        return str(answer["status"])

    def _ask(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
        with self._asking:
            if not self._up:
                try:
                    self._control.receive(START_S)
                except (PeerGone, PeerLate) as error:
                    self._process.kill()
                    self._process.wait()
                    raise RuntimeError(f"the process that starts runners did not come up: {error}") from error
                self._up = True
            self._control.send(message, fds)
            return self._control.receive(START_S)

    def close(self) -> None:
        self._control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2)
            return
        self._process.kill()
        self._process.wait()


def _pid_here(fd: int) -> int:
    """The process behind a pidfd, as this process's namespace numbers it."""
    text = Path(f"/proc/self/fdinfo/{fd}").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("Pid:")))


def levels_here(device: str) -> Mapping[str, bool]:
    """The levels of isolation that this machine grants to a runner of the device, tried for real, without torch."""
    with tempfile.TemporaryDirectory(prefix="autokernel-levels-") as folder:
        nursery = Nursery(Path(folder).resolve(), device, 1, warm=False)
        try:
            return nursery.levels()
        finally:
            nursery.close()
