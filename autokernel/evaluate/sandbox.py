"""What a runner gives up before it sees a line of a candidate. Linux only; no torch.

The levels have their names and meanings in autokernel/isolation.py; each is reported by name, recorded in the
environment of every verdict, and False where the kernel refuses it, never passed over in silence.

Not covered: the GPU, whose memory any process of the device may address through the driver; side channels (caches,
clocks, load); connections to a Unix socket that appeared after the judge had started, or whose path is relative;
System V shared memory of the same user on a GPU machine; what a level covers where it is False.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

from autokernel.evaluate import landlock
from autokernel.isolation import Limits

_libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
MS_BIND, MS_REC, MS_PRIVATE, MS_NOSUID_NODEV_NOEXEC = 0x1000, 0x4000, 1 << 18, 2 | 4 | 8
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP = 1, 4, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 36, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
CAPABILITY_VERSION, CAP_DAC_READ_SEARCH, LAST_CAPABILITY = 0x20080522, 2, 63
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_PERTURB = -1, -3, -6  # of mallopt
HEADROOM = 64  # processes: the hard bound lies above the limit, so that the watch can say which it was
OUT_OF_MEMORY_FIRST = b"1000"  # oom_score_adj: when the machine runs out, the kernel takes the runner, not the judge

KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "CXX", "VIRTUAL_ENV")
KEPT_PREFIXES = ("OMP_", "GOMP_", "MKL_", "KMP_", "CUDA_VISIBLE", "NVIDIA_", "NCCL_", "TRITON_INTERPRET")


def scrubbed_environment() -> dict[str, str]:
    """The daemon's environment less everything that could be a secret: only names known to be harmless stay."""
    return {k: v for k, v in os.environ.items() if k in KEPT_VARIABLES or k.startswith(KEPT_PREFIXES)}


def unshare(flags: int) -> bool:
    """unshare(2); False when the kernel refuses."""
    return int(_libc.unshare(flags)) == 0


def own_house() -> bool:
    """For the process that starts runners, before it has threads: namespaces in which it may make further ones. The
    children of the caller are then in a PID namespace of their own. Without privileges this takes a user namespace, in
    which the user stays who he is.
    """
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        return unshare(CLONE_NEWPID | CLONE_NEWNS) and _private_mounts()
    if not unshare(CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS):
        return False
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    except OSError:
        return False
    return _private_mounts()


def _private_mounts() -> bool:
    return int(_libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None)) == 0


def cover_sockets() -> None:
    """In this mount namespace, lay /dev/null over every Unix socket with a name: nothing here can talk to a container
    engine, a message bus or a key agent. Those of the NVIDIA driver stay.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]:
            path = line.split(None, 7)[7] if line.count(" /") else ""
            if path.startswith("/") and "nvidia" not in path and os.path.exists(path):
                _libc.mount(b"/dev/null", path.encode(), None, ctypes.c_ulong(MS_BIND), None)


def own_proc() -> bool:
    """In the first process of a PID namespace: a /proc of its own. CUDA does not start under another namespace's."""
    if not unshare(CLONE_NEWNS):
        return False
    mounted = _libc.mount(b"proc", b"/proc", b"proc", ctypes.c_ulong(MS_NOSUID_NODEV_NOEXEC), None) == 0
    return bool(_private_mounts() and mounted)


def bound_processes(processes: int) -> bool:
    """In the first process of a PID namespace with its own /proc: no more than so many processes and threads in it.

    The one bound that holds for root, too: RLIMIT_NPROC does not bind root. Kernels before 6.14 know no such bound.
    """
    if _kernel() < (6, 14):  # there it is one number for the whole machine
        return False
    bound = str(max(processes, 301))  # 301: the least that the kernel takes
    try:
        Path("/proc/sys/kernel/pid_max").write_text(bound)
        return Path("/proc/sys/kernel/pid_max").read_text().strip() == bound
    except OSError:
        return False


def _kernel() -> tuple[int, ...]:
    release = os.uname().release.split("-")[0].split(".")
    return tuple(int(part) for part in release[:2] if part.isdigit())


def set_namespace(fd: int, kind: int) -> bool:
    """setns(2); False when the kernel refuses."""
    return int(_libc.setns(fd, kind)) == 0


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent process ends."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def adopt_orphans() -> None:
    """From now on whoever loses its parent below this process becomes its child, not that of the machine's first."""
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def traceable(yes: bool) -> bool:
    """Whether other processes of this user may read and change this one's memory (and whether it dumps core)."""
    return int(_libc.prctl(PR_SET_DUMPABLE, int(yes), 0, 0, 0)) == 0


def perturb_malloc(byte: int) -> None:
    """From now on malloc fills new memory, and free fills old memory, with (a pattern of) this byte; 0 ends it.

    Uninitialised reads and answers fished out of freed memory then show as wrong numbers. glibc only.
    """
    with contextlib.suppress(AttributeError):
        _libc.mallopt(M_PERTURB, byte)


def steady_malloc() -> None:
    """From now on malloc keeps what is freed, up to blocks of 32 MiB, instead of giving it back to the kernel.

    Its own thresholds move with the history of a process, and with them the page faults of every large output: the
    same kernel then differs by 20 % between two processes. glibc only.
    """
    with contextlib.suppress(AttributeError):
        _libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
        _libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def drop_capabilities(keep: int = 0) -> bool:
    """Give up every capability but those of the mask ``keep``, for good."""
    for capability in range(LAST_CAPABILITY + 1):
        if not keep >> capability & 1:
            _libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    _libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = ctypes.create_string_buffer(struct.pack("=Ii", CAPABILITY_VERSION, 0))
    low, high = keep & 0xFFFFFFFF, keep >> 32
    data = ctypes.create_string_buffer(struct.pack("=6I", low, low, 0, high, high, 0))
    return int(_libc.capset(header, data)) == 0


def needs_search(folders: Sequence[Path]) -> bool:
    """Whether root reaches one of these folders only because it is root: one above belongs to a user and is closed."""
    for folder in folders:
        for step in (folder, *folder.parents):
            with contextlib.suppress(OSError):
                stat = step.stat()
                if stat.st_uid != 0 and stat.st_mode & 0o5 != 0o5:
                    return True
    return False


def limit_resources(limits: Limits, memory_bytes: int | None) -> bool:
    """Caps on the data of a process (unless None), the size of a file, open files and core dumps. And that the kernel,
    out of memory, ends this process first.
    """

    def cap(kind: int, value: int) -> None:
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(kind, (value, value))

    try:
        Path("/proc/self/oom_score_adj").write_bytes(OUT_OF_MEMORY_FIRST)
        cap(resource.RLIMIT_CORE, 0)
        cap(resource.RLIMIT_FSIZE, limits.file_bytes)
        cap(resource.RLIMIT_NOFILE, limits.open_files)
        if memory_bytes is not None:
            cap(resource.RLIMIT_DATA, memory_bytes)
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EPERM, errno.EACCES):
            raise
        return False
    return True


def limit_processes(processes: int) -> bool:
    """RLIMIT_NPROC. It counts all of the user's threads, so the bound is what runs now and ``processes`` more."""
    if os.getuid() == 0:
        return False
    running = sum(1 for name in os.listdir("/proc") if name.isdigit())
    with contextlib.suppress(OSError, IndexError, ValueError):
        running = int(Path("/proc/loadavg").read_text().split()[3].split("/")[1])  # threads of the machine
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    bound = running + processes
    bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
    resource.setrlimit(resource.RLIMIT_NPROC, (bound, bound))
    return True


def enter(
    own: Sequence[Path],
    *,
    memory_bytes: int | None,
    readable: Sequence[Path] | None = None,
    limits: Limits | None = None,
    off: frozenset[str] = frozenset(),
    private_ipc: bool = False,
) -> dict[str, bool]:
    """Give up, in the calling process, all that needs no new process: the levels that were reached.

    ``memory_bytes`` caps the data of each process (None leaves it: CUDA reserves address space freely); ``readable``
    None confines no reads; ``off`` names levels that a test leaves out; ``private_ipc`` takes System V's shared memory
    away, too.
    """
    bounds = limits or Limits()
    levels = {"net": "net" not in off and unshare(CLONE_NEWNET | (CLONE_NEWIPC if private_ipc else 0))}
    levels["limits"] = "limits" not in off and limit_resources(bounds, memory_bytes)
    if "procs" not in off and limit_processes(bounds.processes + HEADROOM):
        levels["procs"] = True
    quiet = int(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) == 0
    writes, reads = "landlock" not in off, "reads" not in off and readable is not None
    grants = readable if reads else None
    entered = (writes or reads) and landlock.confine(own, grants, writes=writes, signals="pid" not in off)
    levels |= {"landlock": entered and writes, "reads": entered and reads}
    if "privs" not in off:
        search = os.getuid() == 0 and needs_search([Path(sys.prefix), Path(sys.base_prefix), *own])
        quiet = quiet and drop_capabilities(1 << CAP_DAC_READ_SEARCH if search else 0)
    levels["privs"] = quiet and "privs" not in off
    return levels
