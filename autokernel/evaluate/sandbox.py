"""What a runner gives up before it sees a line of a candidate. Linux only; no torch.

Levels, each reported by name and recorded in the environment of every verdict:
  pid       a PID namespace of its own: when the runner ends, so does everything it ever started
  proc      a /proc that shows only the processes of that namespace
  net       a network namespace with no interface that is up
  landlock  writes only below the scratch and cache folders (and to devices and its own /proc entries)
  limits    memory, file size, core dumps, and (for other users than root) processes
  privs     no new privileges by exec
A level that the kernel refuses is reported as False, never passed over in silence.

Not covered: reading files that the user can read; signals and memory of other processes of the same user where the
PID namespace is missing; the GPU, whose memory any process of the device may address through the driver; side channels.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal
import struct
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET, CLONE_NEWPID, CLONE_NEWNS = 0x40000000, 0x20000000, 0x00020000
MS_REC, MS_PRIVATE, MS_NOSUID_NODEV_NOEXEC = 0x4000, 1 << 18, 2 | 4 | 8
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_PERTURB = -1, -3, -6  # of mallopt

SYS_LANDLOCK_CREATE_RULESET, SYS_LANDLOCK_ADD_RULE, SYS_LANDLOCK_RESTRICT_SELF = 444, 445, 446
# Rights that change something: write_file, remove_dir, remove_file, make_char to make_sym; ABI 2: refer; 3: truncate.
_WRITE_RIGHTS_V1 = (1 << 1) | sum(1 << bit for bit in range(4, 13))
_WRITE_FILE = 1 << 1
_TRUNCATE = 1 << 14
_REFER = 1 << 13

KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "CXX", "VIRTUAL_ENV")
KEPT_PREFIXES = ("OMP_", "GOMP_", "MKL_", "KMP_", "CUDA_VISIBLE", "NVIDIA_", "NCCL_", "TRITON_INTERPRET")


def scrubbed_environment() -> dict[str, str]:
    """The daemon's environment less everything that could be a secret: only names known to be harmless stay."""
    return {k: v for k, v in os.environ.items() if k in KEPT_VARIABLES or k.startswith(KEPT_PREFIXES)}


def unshare(flags: int) -> bool:
    """unshare(2); False when the kernel refuses."""
    return int(_libc.unshare(flags)) == 0


def own_proc() -> bool:
    """In the first process of a PID namespace: a /proc of its own. CUDA does not start under another namespace's."""
    if not unshare(CLONE_NEWNS):
        return False
    private = _libc.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None) == 0
    mounted = _libc.mount(b"proc", b"/proc", b"proc", ctypes.c_ulong(MS_NOSUID_NODEV_NOEXEC), None) == 0
    return bool(private and mounted)


def set_namespace(fd: int, kind: int) -> bool:
    """setns(2); False when the kernel refuses."""
    return int(_libc.setns(fd, kind)) == 0


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent process ends."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


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


def landlock_abi() -> int:
    """The kernel's landlock version, 0 when there is none."""
    version = _libc.syscall(SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    return max(int(version), 0)


def confine_writes(folders: list[Path]) -> bool:
    """From now on nothing outside ``folders`` can be created, written or removed. False: not available.

    Devices and the process's own /proc entries stay writable: CUDA does not start without them.
    """
    abi = landlock_abi()
    if abi == 0:
        return False
    rights = _WRITE_RIGHTS_V1 | (_REFER if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0)
    attributes = ctypes.create_string_buffer(struct.pack("=Q", rights))
    ruleset = _libc.syscall(SYS_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(8), ctypes.c_uint(0))
    if ruleset < 0:
        return False
    device_rights = (_WRITE_FILE | (_TRUNCATE if abi >= 3 else 0)) & rights
    try:
        inside = [*((f, rights) for f in folders), (Path("/dev"), device_rights), (Path("/proc/self"), device_rights)]
        for folder, allowed in inside:
            fd = os.open(folder, os.O_PATH | os.O_CLOEXEC)
            rule = ctypes.create_string_buffer(struct.pack("=Qi", allowed, fd))
            added = _libc.syscall(SYS_LANDLOCK_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint(0))
            os.close(fd)
            if added != 0:
                return False
        return int(_libc.syscall(SYS_LANDLOCK_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0))) == 0
    finally:
        os.close(ruleset)


def limit_resources(memory_bytes: int | None, file_bytes: int, processes: int) -> bool:
    """Caps on data memory (None leaves it: CUDA reserves address space freely), file size, cores and processes."""

    def cap(kind: int, value: int) -> None:
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(kind, (value, value))

    try:
        cap(resource.RLIMIT_CORE, 0)
        cap(resource.RLIMIT_FSIZE, file_bytes)
        cap(resource.RLIMIT_NPROC, processes)
        if memory_bytes is not None:
            cap(resource.RLIMIT_DATA, memory_bytes)
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EPERM:
            raise
        return False
    return True


def enter(folders: list[Path], memory_bytes: int | None, file_bytes: int = 1 << 30) -> dict[str, bool]:
    """Give up, in the calling process, all that this module names except the PID namespace (made before the fork)."""
    levels = {"net": unshare(CLONE_NEWNET)}
    levels["privs"] = int(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) == 0
    levels["landlock"] = levels["privs"] and confine_writes(folders)
    levels["limits"] = limit_resources(memory_bytes, file_bytes, processes=4096)
    return levels
