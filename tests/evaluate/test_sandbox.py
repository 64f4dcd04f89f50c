"""Each level of isolation stops what it is there for, and what it stops gets through when that level alone is off.

The probes run in real runners, at import, as a candidate's own lines would.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from autokernel import isolation
from autokernel.evaluate.client import Assignment, JudgeClient, JudgeOptions
from autokernel.evaluate.pool import Nursery, RunnerFailed, levels_here
from autokernel.isolation import LEVELS, Limits
from autokernel.types import AutokernelError, Status

from .conftest import HONEST, target, torch_source
from .fault_sources import DAEMONS, SPIN, load

SMALL = Limits(
    memory_bytes=2 << 30,
    disk_bytes=24 << 20,
    file_bytes=16 << 20,
    files=300,
    log_bytes=1 << 20,
    processes=64,
)
NOTHING = frozenset[str]()


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    started = Nursery(tmp_path_factory.mktemp("nursery").resolve(), "cpu", 1, SMALL)
    yield started
    started.close()


@pytest.fixture(scope="module")
def open_nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """One that passes its environment on, and whose runners live among everybody's processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOME_SERVICE_TOKEN", "hunter2")
        folder = tmp_path_factory.mktemp("open").resolve()
        started = Nursery(folder, "cpu", 1, SMALL, frozenset({"env", "pid"}))
    yield started
    started.close()


@pytest.fixture
def victim() -> Iterator[tuple[int, int]]:
    """A process of the same user without a capability, and the address of a secret in it."""
    yield from a_victim(traceable=True)


def a_victim(*, traceable: bool) -> Iterator[tuple[int, int]]:
    code = (
        "import ctypes, time\nfrom autokernel.evaluate import sandbox\n"
        "secret = ctypes.create_string_buffer(b'the secret')\n"
        f"sandbox.drop_capabilities()\nsandbox.traceable({traceable})\n"
        "print(ctypes.addressof(secret), flush=True)\ntime.sleep(300)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
        process.kill()


def stopped(nursery: Nursery, probe: str, off: frozenset[str] = NOTHING, seconds: float = 30) -> str | None:
    """How the probe was stopped, or None when it got through. It loads as a candidate's file does."""
    handle = nursery.spawn(nursery.folder / "cache" / "of-a-test", {}, off=off)
    source = torch_source("return x", textwrap.dedent(probe))
    try:
        handle.ask("load", {"source": source, "threads": 1}, deadline_s=seconds)
    except RunnerFailed as failure:
        return f"{failure.kind}: {failure.reason}"
    finally:
        handle.close()
    return None


def probe_of(level: str, folder: Path, port: int, victim: tuple[int, int]) -> tuple[str, str, frozenset[str]]:
    """What a candidate tries, how it is stopped, and the levels beside this one that would stop it, too."""
    pid, _ = victim
    probes: Mapping[str, tuple[str, str, set[str]]] = {
        "pid": (f"import os\nos.kill({pid}, 0)", "No such process", set()),
        "proc": (f"assert 'python' in open('/proc/{pid}/cmdline').read()", "No such file", set()),
        "net": (f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)", "unreachable", set()),
        "landlock": (f"open({str(folder / 'outside')!r}, 'w')", "Permission denied", {"reads"}),
        "reads": (f"assert open({str(folder / 'secret')!r}).read() == 'hunter2'", "Permission denied", set()),
        "env": ("import os\nassert os.environ['SOME_SERVICE_TOKEN'] == 'hunter2'", "KeyError", set()),
        "limits": (
            "import mmap\nmmap.mmap(-1, 3 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)",
            "Cannot allocate",
            set(),
        ),
        "procs": (
            "import threading, time\nfor _ in range(320):\n"
            "    threading.Thread(target=time.sleep, args=(1,), daemon=True).start()",
            "can't start new thread",
            {"watch", "limits"},
        ),
        "watch": ("import time\nprint('x' * (4 << 20), flush=True)\ntime.sleep(1)", "printed more than 1 MiB", set()),
        "privs": ("import ctypes\nassert ctypes.CDLL(None).unshare(0x04000000) == 0", "AssertionError", set()),
    }
    probe, told, beside = probes[level]
    return probe, told, frozenset(beside)


@pytest.mark.parametrize("level", [name for name in LEVELS if name != "ptrace"])
def test_a_level_stops_what_gets_through_without_it(
    nursery: Nursery, open_nursery: Nursery, level: str, tmp_path: Path, victim: tuple[int, int]
) -> None:
    if not levels_here("cpu")[level]:
        pytest.skip(f"this machine does not grant '{level}'")
    (tmp_path / "secret").write_text("hunter2")
    with socket.create_server(("127.0.0.1", 0)) as server:
        probe, told, beside = probe_of(level, tmp_path, server.getsockname()[1], victim)
        with_it = stopped(nursery, probe, beside)
        without = stopped(open_nursery if level in ("env", "pid") else nursery, probe, beside | {level})
    assert with_it is not None and told in with_it, with_it
    assert without is None, without


LAYERS = ("pid", "landlock", "ptrace")  # each alone keeps a candidate from another process's memory


@pytest.mark.parametrize("on", [None, *LAYERS])
def test_memory_of_another_process_is_behind_three_walls(
    nursery: Nursery, open_nursery: Nursery, on: str | None
) -> None:
    """process_vm_readv of a process whose number and address leaked: any one of the walls stops it."""
    for pid, address in a_victim(traceable=on != "ptrace"):
        probe = f"""
            import ctypes
            class Span(ctypes.Structure):
                _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))
            found = ctypes.create_string_buffer(10)
            libc = ctypes.CDLL(None, use_errno=True)
            read = libc.process_vm_readv(
                {pid}, ctypes.byref(Span(ctypes.addressof(found), 10)), 1, ctypes.byref(Span({address}, 10)), 1, 0)
            assert found.raw == b"the secret", ctypes.get_errno()
        """
        off = {"landlock", "reads"} - {on}
        ended = stopped(nursery if on == "pid" else open_nursery, probe, frozenset(off))
        assert (ended is None) is (on is None), ended


def test_a_number_that_leaked_is_of_no_use_to_kill(
    nursery: Nursery, open_nursery: Nursery, victim: tuple[int, int]
) -> None:
    pid, _ = victim
    kill = f"import os\nos.kill({pid}, 15)"
    assert "No such process" in (stopped(nursery, kill) or "")
    # Without the namespace it is seen; landlock's own scope of signals goes with that level.
    assert stopped(open_nursery, kill) is None


@pytest.mark.parametrize(
    ("probe", "told"),
    [
        ("open('/etc/shadow').read()", "Permission denied"),
        ("import os\nos.listdir('/root')", "Permission denied"),
        ("import os\nopen(os.environ['HOME'] + '/../x', 'w')", "Permission denied"),
        ("open('/dev/shm/left-behind', 'w')", "Permission denied"),
        ("import os\nos.mknod('disk', 0o60600, os.makedev(254, 0))", "Operation not permitted"),
        ("import os\nos.chroot('/')", "Operation not permitted"),
        ("import autokernel, inspect\nopen(autokernel.__file__).read()", "Permission denied"),
        ("open('/proc/self/oom_score_adj', 'w', 1).write('-1000\\n')", "Permission denied"),
        ("open('/proc/sys/kernel/pid_max', 'w').write('99999')", "denied"),
        ("import ctypes\nassert ctypes.CDLL(None).mount(b'none', b'/proc', b'tmpfs', 0, None) == 0", "AssertionError"),
    ],
)
def test_what_else_is_out_of_reach(nursery: Nursery, probe: str, told: str) -> None:
    if isolation.missing(levels_here("cpu")):
        pytest.skip("some level is missing here")
    ended = stopped(nursery, probe)
    assert ended is not None and told in ended, ended


def test_raw_disks_are_out_of_reach(nursery: Nursery) -> None:
    disks = [disk for disk in ("/dev/vda", "/dev/sda", "/dev/nvme0n1", "/dev/loop0") if os.path.exists(disk)]
    if not disks:
        pytest.skip("no block device here")
    assert "Permission denied" in (stopped(nursery, f"open({disks[0]!r}, 'rb').read(1)") or "")


def test_a_socket_with_a_name_is_covered(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "engine.sock"))
        server.listen()
        started = Nursery(tmp_path_factory.mktemp("nursery").resolve(), "cpu", 1, SMALL)
        try:
            probe = f"import socket\nsocket.socket(socket.AF_UNIX).connect({str(tmp_path / 'engine.sock')!r})"
            assert "refused" in (stopped(started, probe) or "")
        finally:
            started.close()


@pytest.mark.parametrize(
    ("probe", "told"),
    [
        ("for n in range(4):\n    open(f'f{n}', 'wb').write(bytes(12 << 20))\ntime.sleep(9)", "files exceed"),
        ("for n in range(4):\n    f = open('f', 'wb')\n    keep.append(f)\n    f.write(bytes(12 << 20))\n"
         "    os.unlink('f')\ntime.sleep(9)", "files exceed"),
        ("for n in range(1000):\n    open(f'f{n}', 'w').close()\ntime.sleep(9)", "more than 300 files"),
        ("open(os.environ['XDG_CACHE_HOME'] + '/f', 'wb').write(bytes(30 << 20))", "File too large"),
        ("for n in range(100):\n    threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\ntime.sleep(9)",
         "more than 64 processes"),
    ],
)  # fmt: skip
def test_what_is_used_together_is_bounded(nursery: Nursery, probe: str, told: str) -> None:
    ended = stopped(nursery, "import os, threading, time\nkeep = []\n" + probe)
    assert ended is not None and told in ended, ended


def test_honest_building_fits_the_default_limits(tmp_path: Path) -> None:
    with JudgeClient(tmp_path / "scratch", JudgeOptions(isolation_off=frozenset({"net"}))) as judge:
        verdict = judge.evaluate(Assignment(target("torch"), HONEST, baselines=False)).verdict
        assert verdict.status is Status.PASS, verdict
        assert verdict.environment["isolation_off"] == ["net"]  # a verdict says what it was reached without
        assert verdict.environment["isolation"]["net"] is False
        assert judge.isolation["net"] is False


def test_a_level_that_is_required_and_missing_is_an_error_before_anything_is_judged(tmp_path: Path) -> None:
    options = JudgeOptions(require=frozenset({"net", "pid"}), isolation_off=frozenset({"net"}))
    with pytest.raises(AutokernelError, match=r"'net' was required.*user namespaces"):
        JudgeClient(tmp_path / "scratch", options)
    assert not (tmp_path / "scratch").exists()


def test_daemons_end_also_where_there_is_no_namespace(open_nursery: Nursery) -> None:
    """Forked twice in sessions of their own, deaf to signals: the reaper adopts them, and they end with it."""

    def alive() -> list[str]:
        """Where runners, and what they started, stand: in their scratch folders, removed or not."""
        found = []
        for pid in psutil.pids():
            with contextlib.suppress(OSError):
                found.append(os.readlink(f"/proc/{pid}/cwd"))
        return [folder for folder in found if folder.startswith(str(open_nursery.folder))]

    for end in ("raise ValueError", "os._exit(0)", "os.abort()", SPIN):
        handle = open_nursery.spawn(open_nursery.folder / "cache" / "of-a-test", {})
        with pytest.raises(RunnerFailed):
            handle.ask("load", {"source": load(DAEMONS + end), "threads": 1}, deadline_s=3)
        handle.close()
        deadline = time.monotonic() + 5
        while (left := alive()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not left, end


def test_levels_are_named_parsed_and_told() -> None:
    assert isolation.parse("net, pid") == {"net", "pid"}
    assert isolation.parse("all") == set(LEVELS)
    with pytest.raises(AutokernelError, match="expected levels of isolation among pid,"):
        isolation.parse("network")
    everything = dict.fromkeys(LEVELS, True)
    assert isolation.warning(everything) is None
    assert "no net, reads on this machine" in (isolation.warning({**everything, "net": False, "reads": False}) or "")


def test_a_folder_is_removed_whatever_was_made_of_it(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(outside)
    (folder / "file-link").symlink_to(outside / "kept")
    os.mkfifo(folder / "fifo")
    (folder / "closed").mkdir()
    (folder / "closed" / "in").write_text("")
    (folder / "closed").chmod(0)
    here = os.getcwd()
    try:
        os.chdir(folder)
        for _ in range(1200):  # deeper than recursion goes
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(here)
    isolation.remove_tree(folder)
    assert not folder.exists()
    assert (outside / "kept").read_text() == "kept"
    isolation.remove_tree(folder)  # gone already: no error
