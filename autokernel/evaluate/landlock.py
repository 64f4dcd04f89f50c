"""Landlock: from now on this process and its children touch only what they were granted. Linux only; no torch.

Reads are granted for what a kernel needs to be built and run: the system's libraries and compilers, the Python
environment, /proc, /sys and the devices of a GPU. Homes, results, /root, /tmp, /var, passwords and raw disks are not.
``AUTOKERNEL_READABLE`` (folders, separated by colons) names more, for compilers and libraries in unusual places.
"""

from __future__ import annotations

import ctypes
import glob
import os
import site
import struct
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

from autokernel.assets import PACKAGE, cache_folder

_libc = ctypes.CDLL(None, use_errno=True)
SYS_CREATE_RULESET, SYS_ADD_RULE, SYS_RESTRICT_SELF = 444, 445, 446
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
CHANGE_FOLDER = sum(1 << bit for bit in range(4, 13))  # remove and make entries of every kind
REFER, TRUNCATE = 1 << 13, 1 << 14  # since ABI 2 and 3
READ = EXECUTE | READ_FILE | READ_DIR
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE  # the rights that a rule for a single file may name
SCOPE_ABSTRACT_SOCKETS, SCOPE_SIGNALS = 1 << 0, 1 << 1  # since ABI 6

DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "nvidia*", "nvidia-caps/*", "dri/*", "kfd")
SYSTEM = "/usr /bin /sbin /lib /lib32 /lib64 /libx32 /opt /nix/store /gnu/store /proc /sys".split()
ETC = (
    "ld.so.cache ld.so.conf ld.so.conf.d ld.so.preload localtime timezone passwd group nsswitch.conf hosts host.conf "
    "resolv.conf alternatives locale.alias mime.types os-release lsb-release debian_version gai.conf protocols "
    "services OpenCL vulkan nvidia ssl/openssl.cnf python3 python3.10 python3.11 python3.12 python3.13"
).split()

Rule = tuple[Path, int]


def abi() -> int:
    """The kernel's landlock version, 0 when there is none."""
    version = _libc.syscall(SYS_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    return max(int(version), 0)


def confine(own: Sequence[Path], readable: Sequence[Path] | None, *, writes: bool, signals: bool) -> bool:
    """From now on: all below ``own`` is this process's; with ``writes`` nothing else can be changed but devices and
    /proc entries of itself; with ``readable`` nothing else can be read or executed but those and devices; with
    ``signals`` no process outside can be signalled where the kernel can say so. False: not available.

    Wants no new privileges (prctl) to be set.
    """
    version = abi()
    if version == 0:
        return False
    write_rights = WRITE_FILE | CHANGE_FOLDER | (TRUNCATE if version >= 3 else 0)
    refer = REFER if version >= 2 else 0  # refused by every ruleset that does not grant it
    handled = (write_rights if writes else 0) | (READ if readable is not None else 0) | refer
    device = READ_FILE | WRITE_FILE | TRUNCATE
    rules: list[Rule] = [(folder, handled) for folder in own]
    rules += [(Path(path), device) for name in DEVICES for path in glob.glob(f"/dev/{name}")]
    rules += [(Path("/proc/self"), device)]
    rules += [(folder, READ) for folder in readable or ()]
    if not writes:
        rules.append((Path("/"), refer))
    scoped = (SCOPE_ABSTRACT_SOCKETS | SCOPE_SIGNALS) if signals and version >= 6 else 0
    return _enforce(handled, scoped, rules, version)


def _enforce(handled: int, scoped: int, rules: Iterable[Rule], version: int) -> bool:
    packed = struct.pack("=QQQ", handled, 0, scoped)[: 8 if version < 4 else 16 if version < 6 else 24]
    attributes = ctypes.create_string_buffer(packed, len(packed))
    ruleset = _libc.syscall(SYS_CREATE_RULESET, attributes, ctypes.c_size_t(len(packed)), ctypes.c_uint(0))
    if ruleset < 0:
        return False
    try:
        for path, rights in rules:
            try:
                fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue  # not there, so it needs no grant
            granted = rights & handled & (-1 if path.is_dir() else OF_FILES)
            rule = ctypes.create_string_buffer(struct.pack("=Qi", granted, fd))
            added = (
                _libc.syscall(SYS_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint(0))
                if granted
                else 0
            )
            os.close(fd)
            if added != 0:
                return False
        return int(_libc.syscall(SYS_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0))) == 0
    finally:
        os.close(ruleset)


def readable() -> list[Path]:
    """What a kernel needs to read to be built and run, of this interpreter and environment. Call it where the packages
    that a kernel may import are imported already: those that lie in odd places (editable installs) are found so.
    """
    folders = [Path(folder) for folder in SYSTEM]
    folders += [Path("/etc", name) for name in ETC]
    paths = sysconfig.get_paths()
    folders += [Path(paths[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib", "include")]
    folders += [Path(prefix) for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix)]
    folders += [Path(folder) for folder in (*site.getsitepackages(), site.getusersitepackages())]
    folders += [Path(sys.executable).parent, Path(sys.executable).resolve().parent, cache_folder()]
    for name in ("PATH", "LD_LIBRARY_PATH", "AUTOKERNEL_READABLE"):
        folders += [Path(part) for part in os.environ.get(name, "").split(os.pathsep) if part.startswith("/")]
    for folder in [Path(part) for part in os.environ.get("PATH", "").split(os.pathsep) if part.startswith("/")]:
        folders += [folder.parent] if (folder.parent / "conda-meta").is_dir() else []
    folders += [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV") if os.environ.get(name)]
    private = {Path("/"), Path("/root"), Path("/home"), Path("/tmp"), Path.home()}
    found = [folder for folder in dict.fromkeys(folders) if folder not in private and not _holds(folder, Path.home())]
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        name = getattr(module, "__name__", "").partition(".")[0]
        if not file or name in ("autokernel", "__main__") or not os.path.isabs(file):
            continue
        top = getattr(sys.modules.get(name), "__file__", None) or file
        where = Path(top).parent if Path(top).name.startswith("__init__.") else Path(top)
        if not _holds(where, PACKAGE) and not any(_holds(folder, where) for folder in found):
            found.append(where)
    return found


def _holds(folder: Path, path: Path) -> bool:
    return folder == path or folder in path.parents
