"""A kernel under compute-sanitizer: how its words are read, and what is no pass."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from autokernel import cli
from autokernel.evaluate import sanitizer, toolrun
from autokernel.evaluate.client import Assignment, Evaluation, OnEvent
from autokernel.evaluate.toolrun import Ended, Exercise
from autokernel.types import AutokernelError, Comparison, Status, Target, Workload

from .test_tools_gpu import PLANTED, source
from .tool_script import KERNEL, PASS, tool

MEMCHECK = """\
========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 2 bytes
=========     at void rmsnorm_registers<__half, (int)4>(const T1 *, long, T1 *)+0x380 in cuda.cu:61
=========     by thread (65,0,0) in block (0,0,0)
=========     Access to 0x7bd889c03041 is out of bounds
=========     and is 2 bytes after the nearest allocation at 0x7bd889c03000 of size 64 bytes
=========
========= Invalid __global__ write of size 2 bytes
=========     at void rmsnorm_registers<__half, (int)4>(const T1 *, long, T1 *)+0x380 in cuda.cu:61
=========     by thread (66,0,0) in block (0,0,0)
=========     Access to 0x7bd889c03043 is out of bounds
=========
========= Error: Target application returned an error
========= ERROR SUMMARY: 2 errors
"""
RACECHECK = """\
========= COMPUTE-SANITIZER
========= Warning: Race reported between Write access at sumKernel(int *, int *)+0x50 in block_error.cu:40
=========     and Read access at sumKernel(int *, int *)+0x60 in block_error.cu:40 [32 hazards]
=========
========= Error: Race reported between Write access at sumKernel(int *, int *)+0x90 in block_error.cu:41
=========     and Read access at sumKernel(int *, int *)+0x100 in block_error.cu:51 [508 hazards]
=========
========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)
"""
LIBRARY = """\
========= COMPUTE-SANITIZER
========= Uninitialized __global__ memory read of size 4 bytes
=========     at void at::native::vectorized_elementwise_kernel<(int)4, at::native::Add>(int, T2)+0x150
=========     by thread (31,0,0) in block (1,0,0)
=========     Address 0x7f3c7ec000fc
========= ERROR SUMMARY: 1 error
"""
CLEAN = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"
RACE_FREE = "========= COMPUTE-SANITIZER\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
UNSUPPORTED = "========= COMPUTE-SANITIZER\n========= Error: Device not supported. Please refer to the manual.\n"


def watched(name: sanitizer.Tool, words: str, folder: Path, status: int = 0, source: str = KERNEL) -> sanitizer.Result:
    """What is read of a tool that writes this log and ends so."""
    works = (Workload({"R": 4, "C": 8}, "fp32"),)
    with toolrun.folder(Exercise(source, "rmsnorm", "torch", "cpu", works)) as place:
        command = sanitizer.words(tool(folder, words, status), name, str(place.log))
        return sanitizer.read(name, place.run(command, 120))


def told_by(name: sanitizer.Tool, log: str, status: int | None = 0, calls: int = 1) -> sanitizer.Result:
    """What is read of a run that ended so."""
    return sanitizer.read(name, Ended(status, calls, log, "Traceback\nValueError: of the kernel\n"))


def test_an_error_is_told_with_its_number_and_the_first(tmp_path: Path) -> None:
    result = watched("memcheck", MEMCHECK, tmp_path, sanitizer.FOUND)
    assert result.errors == 2
    assert result.told == "2 errors, first: Invalid __global__ write of size 2 bytes in rmsnorm_registers"
    assert "2 bytes after the nearest allocation" in result.text
    verdict = sanitizer.judged(PASS, [result])
    assert (verdict.status, verdict.stage, verdict.measurements) == (Status.CRASH, "sanitize", None)
    assert verdict.reason == f"memcheck: {result.told}" and "nearest allocation" in verdict.log_tail


def test_a_race_is_an_error_and_a_warning_is_told() -> None:
    result = told_by("racecheck", RACECHECK, sanitizer.FOUND)
    assert result.errors == 1
    assert result.told == "1 error, first: Race reported between Write access in sumKernel (1 warning)"
    assert sanitizer.judged(PASS, [result]).status is Status.DETERMINISM


def test_a_library_s_own_kernel_is_told_and_does_not_count() -> None:
    result = told_by("initcheck", LIBRARY, sanitizer.FOUND)
    assert result.errors == 0 and "1 in kernels of libraries" in result.told
    assert told_by("memcheck", LIBRARY, sanitizer.FOUND).errors == 1
    mixed = LIBRARY.replace("========= ERROR SUMMARY: 1 error", MEMCHECK.replace("Invalid", "Uninitialized"))
    assert told_by("initcheck", mixed, sanitizer.FOUND).errors == 2


def test_nothing_found_is_a_pass(tmp_path: Path) -> None:
    results = [watched("memcheck", CLEAN, tmp_path), told_by("racecheck", RACE_FREE)]
    assert [each.told for each in results] == ["0 errors in 1 calls"] * 2
    verdict = sanitizer.judged(PASS, results)
    assert verdict.status is Status.PASS and verdict.environment["sanitizer"]["racecheck"] == "0 errors in 1 calls"


@pytest.mark.parametrize(
    ("log", "status", "calls", "told"),
    [
        (UNSUPPORTED, 0, 1, "it gave no summary: Device not supported"),
        ("", 0, 1, "it gave no summary: ValueError: of the kernel"),
        (CLEAN, 1, 0, "the calls did not end well under it: ValueError: of the kernel"),
        (CLEAN, 0, 0, "the calls did not end well under it"),
        (CLEAN, None, 0, "it had not ended after"),
        (CLEAN.replace("0 errors", "3 errors"), 0, 1, "counted 3 errors, of which 0 could be read"),
        (LIBRARY.replace("1 error", "5000 errors"), sanitizer.FOUND, 1, "counted 5000 errors, of which 1 could be"),
    ],
    ids=["unsupported", "silent", "raises", "leaves", "lasts", "unknown", "flooded"],
)
def test_silence_is_no_pass(log: str, status: int | None, calls: int, told: str) -> None:
    result = told_by("initcheck", log, status, calls)
    assert result.errors is None and told in result.told
    with pytest.raises(AutokernelError, match="initcheck could not watch"):
        sanitizer.judged(PASS, [result])


def test_calls_that_leave_early_are_no_pass(tmp_path: Path) -> None:
    leaving = KERNEL.replace("import torch", "import os; os._exit(0)", 1)
    assert watched("memcheck", CLEAN, tmp_path, source=leaving).errors is None


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="there is a GPU here")
def test_what_cannot_be_checked_is_not_kept_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run: a tool is there, and the calls fail on a machine without a GPU."""
    os.rename(tool(tmp_path, CLEAN), tmp_path / "compute-sanitizer")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    target = Target("t", "rmsnorm", "torch", (), 1.0, 0.0, 0.0)
    comparison = Comparison(0.1, 0.05, 0.15, 4, True, "faster", 11.0, 10.0)

    class Keeping:
        def evaluate(self, assignment: Assignment, on_event: OnEvent = lambda _: None) -> Evaluation:
            keep = assignment.incumbent is not None
            return Evaluation(PASS, dataclasses.replace(comparison, keep=keep), 1.0)

    judge = sanitizer.Sanitizing(Keeping(), (target,), "cuda")
    assert judge.evaluate(Assignment(target, KERNEL)).verdict is PASS, "what is not kept is not checked"
    with pytest.raises(AutokernelError, match="passed the judge, and fails on its own"):
        judge.evaluate(Assignment(target, KERNEL, incumbent=KERNEL))


def test_a_wish_that_cannot_be_met_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kernel.py").write_text(KERNEL)
    for command in (["bench", str(tmp_path / "kernel.py")], ["run", str(tmp_path / "kernel.py")]):
        result = CliRunner().invoke(cli.main, [*command, "--sanitize"])
        assert result.exit_code == 2 and "expected a GPU for --sanitize" in result.stderr
    monkeypatch.setattr(toolrun, "command", lambda name: None)
    with pytest.raises(AutokernelError, match="expected compute-sanitizer for --sanitize, found none"):
        sanitizer.required("cuda")
    with pytest.raises(AutokernelError, match="got a bench command"):
        toolrun.suits("/some/bench.json")


@pytest.mark.parametrize(("backend", "edit"), [(each[0], each[2]) for each in PLANTED.values()], ids=PLANTED)
def test_what_is_planted_on_a_gpu_still_fits_the_starters(backend: str, edit: tuple[str, str]) -> None:
    assert edit[1] in source(backend, edit)
