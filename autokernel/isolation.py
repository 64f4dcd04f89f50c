"""What a candidate's process gives up: the levels by name, what each protects, how to get it, and the limits.

Standard library only: the daemon and the command line speak of levels, the device processes enforce them (see
evaluate/sandbox.py), and both clear away what an untrusted process left behind.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from autokernel.types import AutokernelError

GIB, MIB = 1 << 30, 1 << 20
_NAMESPACES = (
    "run as root, or allow user namespaces: sysctl -w user.max_user_namespaces=10000 kernel.unprivileged_userns_clone=1"
    " (Ubuntu: also kernel.apparmor_restrict_unprivileged_userns=0; Docker: --security-opt seccomp=unconfined)"
)
_LANDLOCK = "a kernel >= 5.13 with landlock in its lsm= list (cat /sys/kernel/security/lsm)"


@dataclasses.dataclass(frozen=True)
class Level:
    """``protects`` completes "a candidate ..."; ``mend`` is how a machine comes to grant the level."""

    protects: str
    mend: str


LEVELS: Mapping[str, Level] = {
    "pid": Level("sees and signals no process but its own, and all it started ends with it", _NAMESPACES),
    "proc": Level("finds no other process in /proc", _NAMESPACES),
    "net": Level("reaches no network, nor a service of this machine", _NAMESPACES),
    "landlock": Level("writes nothing outside its scratch and build folders", _LANDLOCK),
    "reads": Level("reads no home, no results, no keys: only system, Python and compiler folders", _LANDLOCK),
    "env": Level("finds no key or token in its environment", "always there"),
    "limits": Level(
        "is held to limits on memory, file size and open files", "raise the hard limits of this shell (ulimit -H)"
    ),
    "procs": Level(
        "cannot start processes or threads without end",
        "run as another user than root, or a kernel >= 6.14 (pid_max of a namespace)",
    ),
    "watch": Level(
        "is ended when its files, its log or all its memory together pass the limits",
        "as for 'pid'",
    ),
    "privs": Level("holds no capability and gains none by starting a program", "a kernel >= 3.5"),
    "ptrace": Level("cannot read or change the memory of the judge", "a Linux kernel"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one runner may use. ``memory_bytes`` bounds the data of each process on a CPU, and the anonymous memory of
    all of them together (four times as much on a GPU, whose driver and compilers take more of it); ``shared_bytes``
    is what may come on top in shared memory, where the judge's inputs lie; ``disk_bytes`` and ``files`` bound its
    scratch and build folders together; ``processes`` counts threads, too; ``build_s`` is the deadline for importing
    the file, which builds it.
    """

    memory_bytes: int = 4 * GIB
    shared_bytes: int = 4 * GIB
    disk_bytes: int = GIB
    file_bytes: int = GIB // 2
    files: int = 20_000
    log_bytes: int = 16 * MIB
    processes: int = 1024
    open_files: int = 4096
    build_s: float = 120.0

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Limits:
        return cls(**data)


def parse(text: str) -> frozenset[str]:
    """The levels that a comma-separated list names; "all" is every one. AutokernelError for an unknown name."""
    names = {name.strip() for name in text.split(",") if name.strip()}
    if "all" in names:
        return frozenset(LEVELS)
    unknown = sorted(names - set(LEVELS))
    if unknown or not names:
        raise AutokernelError(f"expected levels of isolation among {', '.join(LEVELS)} or all, got '{text}'")
    return frozenset(names)


def missing(levels: Mapping[str, Any]) -> list[str]:
    """The levels that were not granted, in the order of the table."""
    return [name for name in LEVELS if not levels.get(name)]


def summary(levels: Mapping[str, Any]) -> str:
    """Compact, for a cell of a table: "all", or "without net pid"; "" for a verdict that names no level at all."""
    if not levels:
        return ""
    return f"without {' '.join(missing(levels))}" if missing(levels) else "all"


def demand(required: Iterable[str], levels: Mapping[str, Any]) -> None:
    """AutokernelError when a required level was not granted: which, and what to do."""
    lacking = [name for name in missing(levels) if name in set(required)]
    if lacking:
        first = lacking[0]
        also = f" (nor: {', '.join(lacking[1:])})" if lacking[1:] else ""
        raise AutokernelError(
            f"the isolation level '{first}' was required, and this machine does not grant it{also}: "
            f"{LEVELS[first].mend}; or drop it from --require-isolation"
        )


def warning(levels: Mapping[str, Any]) -> str | None:
    """One loud line for levels that are missing, or None."""
    lacking = missing(levels)
    if not lacking:
        return None
    return f"isolation degraded: no {', '.join(lacking)} on this machine; `autokernel doctor` says what each protects"


def remove_tree(folder: Path) -> None:
    """Remove a folder that an untrusted process wrote to: links are removed and never followed, and neither depth nor
    modes stop it (a tree 10,000 levels deep ends ``shutil.rmtree`` with RecursionError). What is gone already, or
    cannot be removed, is passed over.
    """
    with contextlib.suppress(OSError):
        root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            _empty(root)
        finally:
            os.close(root)
        os.rmdir(folder)


def _empty(root: int) -> None:
    """Remove all below the open folder. Folders within folders are moved up to it, so that nothing is ever deep."""
    moved = 0
    while True:
        entries = list(os.scandir(root))
        progress = False
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    os.unlink(entry.name, dir_fd=root)
                    progress = True
                continue
            with contextlib.suppress(OSError):
                os.chmod(entry.name, 0o700, dir_fd=root)
                inner = os.open(entry.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
                try:
                    for below in list(os.scandir(inner)):
                        if below.is_dir(follow_symlinks=False):
                            os.chmod(below.name, 0o700, dir_fd=inner)  # moving a folder rewrites its ".."
                            moved += 1
                            os.rename(below.name, f".moved-{os.getpid()}-{moved}", src_dir_fd=inner, dst_dir_fd=root)
                        else:
                            os.unlink(below.name, dir_fd=inner)
                finally:
                    os.close(inner)
                os.rmdir(entry.name, dir_fd=root)
                progress = True
        if not progress:
            return
