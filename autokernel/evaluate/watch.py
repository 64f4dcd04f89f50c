"""What a runner and all it started use together, seen by its reaper: what rlimits, which count each process, cannot.

A tick costs three system calls; folders, memory and threads are counted only when the machine's own counters moved, and
every few seconds, so that a timed call is left in peace. Between two ticks a candidate can overshoot: some hundred
megabytes of files, no more. Linux only; no torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from pathlib import Path

from autokernel.isolation import GIB, MIB, Limits

TICK_S = 0.1
COUNT_S = 3.0  # count at least so often
MOVED_BYTES, MOVED_PROCESSES = 64 * MIB, 64  # of the machine's counters: then count at once
RESERVE_SHARE = 0.03  # of the machine's disk or memory: whoever takes from the last of it is ended

EXCEEDED = {  # exit codes of a reaper that ended its runner; a runner's own status is never above 192
    200: "its files exceed {disk_gib:.2g} GiB",
    201: "it keeps more than {files} files",
    202: "it printed more than {log_mib:.0f} MiB",
    203: "its processes hold more than {memory_gib:.2g} GiB of memory together",
    204: "it runs more than {processes} processes and threads",
    205: "it takes the last of this machine's disk or memory",
}

_libc = ctypes.CDLL(None, use_errno=True)


def told(code: int, limits: Limits) -> str:
    """An exit code of EXCEEDED in words."""
    return "ended because " + EXCEEDED[code].format(
        disk_gib=limits.disk_bytes / GIB,
        files=limits.files,
        log_mib=limits.log_bytes / MIB,
        memory_gib=limits.memory_bytes / GIB,
        processes=limits.processes,
    )


class _SysInfo(ctypes.Structure):
    """struct sysinfo of a 64-bit kernel."""

    _fields_ = (
        *[(name, ctypes.c_ulong) for name in ("uptime", "load1", "load5", "load15")],
        *[(name, ctypes.c_ulong) for name in ("total", "free", "shared", "buffer", "total_swap", "free_swap")],
        ("processes", ctypes.c_ushort),
        ("_padding", ctypes.c_char * 64),
    )


class Watch:
    """Counts for one runner. ``sees_processes`` says whether /proc is that of its own namespace."""

    def __init__(self, scratch: Path, cache: Path, log_fd: int, limits: Limits, *, sees_processes: bool) -> None:
        self.limits = limits
        self._folders = (scratch, cache)
        self._log_fd = log_fd
        self._sees_processes = sees_processes
        self._device = os.stat(scratch).st_dev
        self._inherited_bytes = 0  # what every process down here shares with this one, and so with the nursery
        with contextlib.suppress(OSError, ValueError):
            self._inherited_bytes = _field(Path("/proc/self/status").read_text(), "RssAnon:") * 1024
        self._counted = 0.0
        self._last = self._machine()
        self._first = self._last

    def tick(self) -> int:
        """A code of EXCEEDED, or 0."""
        if os.fstat(self._log_fd).st_size > self.limits.log_bytes:
            return 202
        if self._sees_processes and len(entries := os.listdir("/proc")) > (most := self.limits.processes):
            own = sum(map(str.isdigit, entries)) - 1
            if own > most:
                return 204
        now = self._machine()
        moved = max(self._last[0] - now[0], self._last[1] - now[1]) > MOVED_BYTES
        if not moved and now[2] - self._last[2] < MOVED_PROCESSES and time.monotonic() - self._counted < COUNT_S:
            return 0
        self._last, self._counted = now, time.monotonic()
        if self._takes_the_last(now):
            return 205
        code, disk_bytes = self._files()
        if code:
            return code
        if not self._sees_processes:
            return 0
        processes, memory_bytes, shared_bytes, unlinked_bytes = self._processes()
        if processes > self.limits.processes:
            return 204
        if disk_bytes + unlinked_bytes > self.limits.disk_bytes:
            return 200
        return 203 if self._too_much(processes, memory_bytes, shared_bytes, self._first[0] - now[0]) else 0

    def _too_much(self, processes: int, memory_bytes: int, shared_bytes: int, taken_bytes: int) -> bool:
        """Pages that forks share are counted for each of them, and to ask the kernel for the truth (smaps) takes
        seconds among hundreds of forks. So a sum counts when what was there before the first fork is not what makes it
        large, or when as much has gone from the machine's free memory.
        """
        own_bytes = memory_bytes - processes * self._inherited_bytes
        everything = memory_bytes + shared_bytes > self.limits.memory_bytes + self.limits.shared_bytes
        much = memory_bytes > self.limits.memory_bytes or everything
        return own_bytes > self.limits.memory_bytes or (much and taken_bytes > self.limits.memory_bytes)

    def _machine(self) -> tuple[int, int, int]:
        """Free bytes of memory and of the disk, and the number of processes and threads, of the whole machine."""
        info = _SysInfo()
        _libc.sysinfo(ctypes.byref(info))
        disk = os.statvfs(self._folders[0])
        return info.free + info.buffer, disk.f_bavail * disk.f_frsize, info.processes

    def _takes_the_last(self, now: tuple[int, int, int]) -> bool:
        """For what no count finds (files that were unlinked and closed but are mapped, memory behind descriptors in
        flight): is little left, and did this runner's life see at least its limit go?
        """
        disk = os.statvfs(self._folders[0])
        if now[1] < RESERVE_SHARE * disk.f_blocks * disk.f_frsize and self._first[1] - now[1] > self.limits.disk_bytes:
            return True
        if self._first[0] - now[0] < self.limits.memory_bytes:
            return False
        with contextlib.suppress(OSError, ValueError, KeyError):
            lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
            available, total = (int(lines[name].split()[0]) for name in ("MemAvailable", "MemTotal"))
            return available < RESERVE_SHARE * total
        return False

    def _files(self) -> tuple[int, int]:
        """A code, or 0 and the bytes on disk of what lies in the folders. Counting ends where a limit is passed."""
        count = total = 0
        pending: list[str | Path] = list(self._folders)
        while pending:
            with contextlib.suppress(OSError), os.scandir(pending.pop()) as entries:
                for entry in entries:
                    with contextlib.suppress(OSError):
                        count += 1
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(entry.path)
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if count > self.limits.files:
                        return 201, total
                    if total > self.limits.disk_bytes:
                        return 200, total
        return 0, total

    def _processes(self) -> tuple[int, int, int, int]:
        """Processes and threads of the namespace but for this one; the bytes of their anonymous memory, of shared
        memory (mapped, or a memory file that is open), and of files on the scratch disk that have no name any more.
        """
        threads = memory = shared = unlinked = 0
        seen: set[tuple[int, int]] = set()
        pids = [pid for pid in os.listdir("/proc") if pid.isdigit() and int(pid) != os.getpid()]
        for pid in pids:
            with contextlib.suppress(OSError, ValueError, IndexError):
                status = Path("/proc", pid, "status").read_text()
                threads += _field(status, "Threads:")
                memory += _field(status, "RssAnon:") * 1024
                shared += _field(status, "RssShmem:") * 1024
            with contextlib.suppress(OSError):
                for name in os.listdir(f"/proc/{pid}/fd"):
                    with contextlib.suppress(OSError):
                        stat = os.stat(f"/proc/{pid}/fd/{name}")
                        if stat.st_nlink or (stat.st_dev, stat.st_ino) in seen:
                            continue
                        seen.add((stat.st_dev, stat.st_ino))
                        if stat.st_dev == self._device:
                            unlinked += stat.st_blocks * 512
                        else:
                            shared += stat.st_blocks * 512
        return threads, memory, shared, unlinked


def _field(text: str, name: str) -> int:
    """The number after a name in a file of /proc; 0 when it is not there."""
    start = text.find(name)
    return int(text[start + len(name) :].split(None, 1)[0]) if start >= 0 else 0
