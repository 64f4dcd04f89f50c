"""A runner that is not at work stands still, and what it returned is read out of its memory while it does.

Between its turns a runner is stopped (SIGSTOP, which no process can refuse) with all its threads: it cannot slow its
rival, look at inputs before the clock runs, or finish late what it already handed in. What it says of its outputs is
no more than where they lie; the judge copies the bytes itself, with process_vm_readv. Linux only; no torch.

Not covered: work that a runner has queued on a GPU, or left to the kernel (pages to be written back); helpers that
left the process tree where the kernel grants no PID namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

STOP_LIMIT_S = 5.0
_libc = ctypes.CDLL(None, use_errno=True)


class _Span(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class NotStill(Exception):
    """The processes of a runner are not what they should be: it has helpers, or does not stop."""


class Freezer:
    """Stops and resumes all that runs below one reaper (the first process of a runner's namespace)."""

    def __init__(self, reaper_pid: int) -> None:
        self._reaper_pid = reaper_pid
        self.frozen: list[int] = []

    def freeze(self, *, alone: bool) -> int:
        """Stop everything; the runner's process id. With ``alone``, raises NotStill when the runner has started
        processes of its own, which could resume it. Also raises NotStill when it does not stop or has ended.
        """
        if self.frozen:
            return self.frozen[0]
        found: list[int] = []
        while new := [pid for pid in descendants(self._reaper_pid) if pid not in found]:
            for pid in new:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            found += new
        self.frozen = found
        if not found:
            raise NotStill("the process has ended")
        if alone and len(found) > 1:
            raise NotStill(f"the candidate keeps {len(found) - 1} other processes while it is timed")
        deadline = time.monotonic() + STOP_LIMIT_S
        while not all(stopped(pid) for pid in found):
            if time.monotonic() > deadline:
                raise NotStill("the process does not stop")
        return found[0]

    def thaw(self) -> None:
        """Resume what was stopped."""
        for pid in self.frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.frozen = []


def descendants(pid: int) -> Iterator[int]:
    """All processes below this one, parents before children. Needs /proc/*/task/*/children (Linux 3.5)."""
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split():
                    yield int(child)
                    yield from descendants(int(child))


def stopped(pid: int) -> bool:
    """Whether every thread of the process is stopped, or the process gone."""
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                state = Path(f"/proc/{pid}/task/{thread}/stat").read_text().rpartition(") ")[2][:1]
                if state not in "TtZX":
                    return False
    return True


def read_memory(pid: int, address: int, nbytes: int) -> bytearray:
    """Bytes of another process. Raises PermissionError where the kernel forbids it, OSError for a bad address."""
    buffer = bytearray(nbytes)
    done = 0
    while done < nbytes:
        ours = _Span(ctypes.addressof(ctypes.c_char.from_buffer(buffer, done)), nbytes - done)
        theirs = _Span(address + done, nbytes - done)
        count = _libc.process_vm_readv(pid, ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0)
        if count <= 0:
            number = ctypes.get_errno() if count < 0 else 14
            raise OSError(number, os.strerror(number))
        done += int(count)
    return buffer
