"""What a broken or hostile candidate does costs one runner and gives one typed verdict; nothing of it is left, and the
next honest one passes.

The reading of the source is switched off here: these files must be stopped by processes, not by advice. Limits are
small, so that a test never takes what the machine has.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from autokernel.evaluate.client import Assignment, JudgeClient, JudgeFailed, JudgeOptions
from autokernel.isolation import Limits
from autokernel.types import AutokernelError, Status, Verdict

from .conftest import HONEST, cpp_source, scratch, target
from .fault_sources import FAULTS, HANGS, SPIN, TEN_MEGABYTES, call

LIMITS = Limits(
    memory_bytes=3 << 29,
    shared_bytes=1 << 29,
    disk_bytes=96 << 20,
    file_bytes=64 << 20,
    files=2000,
    log_bytes=4 << 20,
    processes=60,
    build_s=30.0,
)


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JudgeClient]:
    """Without policy, and with small limits."""
    with JudgeClient(scratch(tmp_path_factory), JudgeOptions(policy=False, limits=LIMITS)) as client:
        yield client


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JudgeClient]:
    """With a short deadline for building."""
    limits = dataclasses.replace(LIMITS, build_s=1.5)
    with JudgeClient(scratch(tmp_path_factory), JudgeOptions(policy=False, limits=limits)) as client:
        yield client


def judged(judge: JudgeClient, source: str, backend: str = "torch", **more: Any) -> Verdict:
    return judge.evaluate(Assignment(target(backend), source, baselines=False), **more).verdict


def traces(judge: JudgeClient) -> dict[str, Any]:
    """What candidates could leave behind: processes, shared memory, folders, bytes on the disk."""
    processes = [p for p in psutil.Process(judge.pid).children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    folder = judge._scratch
    files = [path for path in folder.rglob("*") if path.name not in ("judge.log", "cache") and path.parent != folder]
    return {
        "processes": len(processes),
        "shared memory": sorted(os.listdir("/dev/shm")) + Path("/proc/sysvipc/shm").read_text().splitlines()[1:],
        "files": files,
    }


def settled(judge: JudgeClient, before: Mapping[str, Any]) -> Mapping[str, Any]:
    """The traces once they are those of before, or after five seconds."""
    deadline = time.monotonic() + 5
    while (now := traces(judge)) != before and time.monotonic() < deadline:
        time.sleep(0.05)
    return now


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_typed_verdict_and_leaves_nothing(strict: JudgeClient, name: str) -> None:
    source, status, told = FAULTS[name]
    before, pid = traces(strict), strict.pid
    verdict = judged(strict, source)
    assert verdict.status is status, verdict
    assert told in verdict.reason, verdict
    assert verdict.reason.isprintable()
    assert verdict.log_tail.replace("\n", "").replace("\t", "").isprintable()
    assert len(verdict.reason) < 800
    assert len(verdict.log_tail) <= 8000
    assert verdict.measurements is None
    assert settled(strict, before) == before
    assert strict.pid == pid  # the judge saw it through


def test_an_honest_candidate_passes_after_all_of_them(strict: JudgeClient) -> None:
    for backend, source in (("torch", HONEST), ("cpp", cpp_source())):
        verdict = judged(strict, source, backend)
        assert verdict.status is Status.PASS, verdict
        assert verdict.measurements is not None
        assert verdict.measurements.latency_us > 0


def test_nothing_outside_was_touched(strict: JudgeClient) -> None:
    assert Path("/etc/hostname").exists()
    assert not Path("/tmp/autokernel-was-here").exists()


def test_a_hanging_call_is_killed_at_the_deadline(strict: JudgeClient) -> None:
    verdict = judged(strict, call(SPIN))
    assert verdict.status is Status.TIMEOUT, verdict
    assert "no answer to 'call'" in verdict.reason


@pytest.mark.parametrize("name", HANGS)
def test_what_hangs_while_it_is_built_is_killed_with_all_it_started(hasty: JudgeClient, name: str) -> None:
    before = traces(hasty)
    verdict = judged(hasty, HANGS[name])
    assert verdict.status is Status.TIMEOUT, verdict
    assert "no answer to 'load'" in verdict.reason
    assert settled(hasty, before) == before


def test_a_compiler_error_of_ten_megabytes_is_told_in_one_line(strict: JudgeClient) -> None:
    verdict = judged(strict, TEN_MEGABYTES)
    assert verdict.status in (Status.BUILD, Status.CRASH), (
        verdict
    )  # CRASH where the compiler's output passes the log's limit
    assert "error" in verdict.reason or "printed more" in verdict.reason, verdict
    assert len(verdict.reason) < 800
    assert len(verdict.log_tail) <= 8000


def test_a_compiler_error_is_told_in_one_line_with_its_log(strict: JudgeClient) -> None:
    verdict = judged(strict, cpp_source().replace("1.0f / std::sqrt", "nothing / std::sqrt"), "cpp")
    assert verdict.status is Status.BUILD
    assert "nothing" in verdict.reason
    assert "\n" not in verdict.reason
    assert "nothing" in verdict.log_tail


# ---------------------------------------------------------------------------------------------- killed from outside


def killing(find: Callable[[], int], stage: str) -> Callable[[Mapping[str, Any]], None]:
    """An observer that kills a process, once, when the stage begins."""
    done = threading.Event()

    def observe(event: Mapping[str, Any]) -> None:
        if event.get("stage") == stage and not done.is_set():
            done.set()
            os.kill(find(), 9)

    return observe


def runners(judge: JudgeClient) -> list[psutil.Process]:
    """The last in each chain judge, nursery (two), reaper, runner; the youngest last, whatever its number."""
    leaves = [p for p in psutil.Process(judge.pid).children(recursive=True) if not p.children()]
    return sorted(leaves, key=psutil.Process.create_time)


def test_a_runner_that_is_killed_is_one_verdict(strict: JudgeClient) -> None:
    slow = HONEST.replace("    wide =", "    import time\n    time.sleep(1)\n    wide =")
    verdict = judged(strict, slow, on_event=killing(lambda: runners(strict)[-1].pid, "smoke"))
    assert verdict.status is Status.CRASH, verdict
    assert "SIGKILL" in verdict.reason
    assert judged(strict, HONEST).status is Status.PASS


@pytest.mark.parametrize("whom", ["judge", "nursery"])
def test_who_is_killed_is_replaced_and_the_candidate_judged_anew(strict: JudgeClient, whom: str) -> None:
    family = psutil.Process(strict.pid).children(recursive=True)
    pid = {"judge": strict.pid, "nursery": family[-1].pid}[whom]
    former = [psutil.Process(strict.pid), *family]
    verdict = judged(strict, HONEST, on_event=killing(lambda: pid, "shapes"))
    assert verdict.status is Status.PASS, verdict
    assert strict.pid != former[0].pid
    assert not psutil.wait_procs(former, timeout=5)[1]


def test_a_device_that_is_gone_ends_in_one_line(hasty: JudgeClient) -> None:
    """A GPU that disappears, simulated: the judge dies on it, and its successor finds no such device."""
    hasty.options = dataclasses.replace(hasty.options, device="cuda:63")
    os.kill(hasty.pid, 9)
    with pytest.raises(AutokernelError, match="the judge did not start on device 'cuda:63'"):
        judged(hasty, HONEST)
    hasty.options = dataclasses.replace(hasty.options, device="cpu")


def test_no_key_reaches_a_runner_and_a_closed_client_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    monkeypatch.setenv("MY_TOKEN", "also-secret")
    with JudgeClient(tmp_path / "scratch", JudgeOptions(policy=False)) as judge:
        verdict = judged(judge, call("raise ValueError(sorted(os.environ.items()))"))
        family = [psutil.Process(judge.pid), *psutil.Process(judge.pid).children(recursive=True)]
    assert "PATH" in verdict.log_tail + verdict.reason
    assert "secret" not in verdict.log_tail + verdict.reason
    assert not psutil.wait_procs(family, timeout=5)[1]
    assert not (tmp_path / "scratch").exists()


def test_an_incumbent_that_breaks_is_no_verdict_on_the_candidate(strict: JudgeClient) -> None:
    breaks = "import os\ncalls = []\n"
    incumbent = HONEST.replace("\n\ndef", f"\n{breaks}\n\ndef").replace(
        "    wide =", "    calls.append(1)\n    if len(calls) > 3:\n        os.abort()\n    wide ="
    )
    with pytest.raises(JudgeFailed, match="the incumbent failed: CRASH"):
        strict.evaluate(Assignment(target("torch"), HONEST, incumbent=incumbent, baselines=False))
    assert judged(strict, HONEST).status is Status.PASS
