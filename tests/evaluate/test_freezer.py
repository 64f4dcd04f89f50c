"""Processes that stand still, and what lies in their memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autokernel.evaluate.freezer import Freezer, NotStill, descendants, read_memory, stopped

BURNS = """
import ctypes, threading
data = ctypes.create_string_buffer(b"what the kernel wrote")
def burn():
    while True:
        pass
for _ in range(3):
    threading.Thread(target=burn, daemon=True).start()
print(ctypes.addressof(data), flush=True)
burn()
"""
# A reaper's stand-in: a process whose only child is the runner.
REAPER = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {program!r}]).returncode)"


def started(program: str) -> Iterator[tuple[int, int]]:
    """The process id of a reaper over this program, and the number that the program printed."""
    command = [sys.executable, "-c", REAPER.format(program=program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as reaper:
        assert reaper.stdout is not None
        try:
            yield reaper.pid, int(reaper.stdout.readline())
        finally:
            for pid in (*descendants(reaper.pid), reaper.pid):
                os.kill(pid, 9)


@pytest.fixture
def burning() -> Iterator[tuple[int, int]]:
    yield from started(BURNS)


@pytest.fixture
def with_helper() -> Iterator[tuple[int, int]]:
    yield from started("import os, time\nprint(1, flush=True)\nos.fork()\ntime.sleep(60)")


def processor_ticks(pid: int) -> int:
    """Time that all threads of a process spent on a processor, in clock ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[11]) + int(fields[12])


def test_who_is_stopped_uses_no_processor_and_goes_on_when_resumed(burning: tuple[int, int]) -> None:
    freezer = Freezer(burning[0])
    runner = freezer.freeze(alone=True)
    assert stopped(runner)
    before = processor_ticks(runner)
    time.sleep(0.3)
    assert processor_ticks(runner) == before
    freezer.thaw()
    deadline = time.monotonic() + 20
    while processor_ticks(runner) == before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert processor_ticks(runner) > before


def test_stopping_twice_is_stopping_once(burning: tuple[int, int]) -> None:
    freezer = Freezer(burning[0])
    assert freezer.freeze(alone=True) == freezer.freeze(alone=True)
    freezer.thaw()
    assert not freezer.frozen


def test_memory_is_read_out_of_a_stopped_process(burning: tuple[int, int]) -> None:
    runner = Freezer(burning[0]).freeze(alone=True)
    assert read_memory(runner, burning[1], 21) == b"what the kernel wrote"


@pytest.mark.parametrize("address", [0, 1 << 46])
def test_an_address_that_is_none_is_an_error(burning: tuple[int, int], address: int) -> None:
    runner = Freezer(burning[0]).freeze(alone=True)
    with pytest.raises(OSError, match="address"):
        read_memory(runner, address, 16)


def test_a_helper_is_found_and_stopped(with_helper: tuple[int, int]) -> None:
    reaper, _ = with_helper
    deadline = time.monotonic() + 20
    while len(list(descendants(reaper))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(NotStill, match="keeps 1 other processes"):
        Freezer(reaper).freeze(alone=True)
    assert Freezer(reaper).freeze(alone=False)
    assert all(stopped(pid) for pid in descendants(reaper))


def test_a_runner_that_has_ended_cannot_be_stopped() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as childless:
        with pytest.raises(NotStill, match="ended"):
            Freezer(childless.pid).freeze(alone=True)
        assert childless.stdin is not None
        childless.stdin.close()
