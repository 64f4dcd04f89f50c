"""What the judge can see of a GPU around a measurement, and that it claims nothing where it sees nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pynvml
import pytest

from autokernel import doctor
from autokernel.evaluate.nvml import THROTTLING, Watch, foreign

SLEEPER = "import sys; print('up', flush=True); sys.stdin.read()"
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {SLEEPER!r}], stdin=sys.stdin, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""


@pytest.fixture
def family() -> Iterator[tuple[int, int]]:
    """(pid of a child of this process, pid of that one's own child)."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdin is not None and parent.stdout is not None
        yield parent.pid, int(parent.stdout.readline())
        parent.stdin.close()


def test_children_and_theirs_are_not_foreign(family: tuple[int, int]) -> None:
    child, grandchild = family
    own = os.getpid()
    assert foreign((own, child, grandchild), own) == ()
    assert foreign((1, own, grandchild), own) == (1,)
    assert foreign((own, child, grandchild), child) == (own,), "a parent is not of the house"


def test_a_list_without_the_asker_says_nothing(family: tuple[int, int]) -> None:
    """Ids of another namespace, or none at all: unknown, which is not the same as nobody."""
    assert foreign((), os.getpid()) is None
    assert foreign((1, family[0]), os.getpid()) is None
    assert foreign(None, os.getpid()) is None


def test_a_process_that_is_not_to_be_found_is_foreign() -> None:
    assert foreign((os.getpid(), 1 << 22 | 1), os.getpid()) == (1 << 22 | 1,)


def test_the_power_cap_is_no_throttling() -> None:
    ordinary = pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonGpuIdle
    assert not any(bit & ordinary for bit in THROTTLING)


def test_what_is_no_gpu_has_no_conditions() -> None:
    watch = Watch("cpu")
    assert watch.missing and watch.look() is None


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="there is a driver here")
def test_without_a_driver_nothing_is_claimed_and_the_doctor_says_so() -> None:
    watch = Watch("cuda:0")
    assert watch.missing.startswith("NVML") and watch.look() is None
    (finding,) = doctor._conditions("cuda:0")
    assert [each.what for each in doctor._watchers()] == ["ncu", "compute-sanitizer"]
    assert finding.state == "missing" and "goes unnoticed" in finding.detail and finding.mend


@pytest.mark.gpu
def test_a_gpu_tells_how_it_is() -> None:
    import torch

    uuid = str(torch.cuda.get_device_properties(0).uuid)
    watch = Watch("cuda:0", uuid)
    torch.ones(1, device="cuda:0")
    seen = watch.look()
    assert watch.missing == "" and seen is not None
    assert seen.sm_mhz is not None and 100 < seen.sm_mhz < 5000
    assert seen.temperature_c is not None and 0 < seen.temperature_c < 120
    assert seen.foreign is None or os.getpid() in (seen.listed or ())
    assert Watch("cuda:7" if torch.cuda.device_count() < 8 else "cuda:99").missing
    assert not Watch("cuda:0", uuid[:8]).missing and Watch("cuda:0", "no-such-uuid").missing
    lines = {finding.what for finding in doctor._conditions("cuda:0")}
    assert lines == {"gpu clocks", "gpu throttling", "gpu processes"}
