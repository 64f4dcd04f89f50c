"""A kernel under a tool of the CUDA toolkit: the calls that are made for it, and how its words are read.

The tools need a GPU (tests/evaluate/test_tools_gpu.py). Here a script stands for each: it runs the calls for real, on
the CPU, and writes to its log what the tool's manual says that the tool writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from click.testing import CliRunner

from autokernel import cli, registry
from autokernel.evaluate import exercise, nsight, sanitizer, toolrun
from autokernel.evaluate.client import Assignment, Evaluation, OnEvent
from autokernel.evaluate.toolrun import Ended, Exercise
from autokernel.types import AutokernelError, Comparison, Measurements, Problem, Status, Target, Verdict, Workload

KERNEL = """
import torch
KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
def kernel_fn(x, weight, eps=1e-6):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)
"""
TOOL = """#!{python}
import subprocess, sys
at = sys.argv.index("--log-file")
program = sys.argv.index({python!r}, at)
open(sys.argv[at + 1], "w").write({words!r})
done = subprocess.run(sys.argv[program:])
sys.exit(done.returncode or {status})
"""
PASS = Verdict(Status.PASS, "done", "", measurements=Measurements(10.0, {}, None, {"R4xC8_fp32": 10.0}, 1.0))

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


def tool(folder: Path, words: str, status: int = 0) -> str:
    """An executable that does as a tool does."""
    path = folder / "tool"
    path.write_text(TOOL.format(python=sys.executable, words=words, status=status))
    path.chmod(0o755)
    return str(path)


# ------------------------------------------------------------------------------------------------- the calls


def test_the_calls_are_made_and_counted_and_the_folder_goes() -> None:
    with toolrun.folder(Exercise(KERNEL, "rmsnorm", "torch", "cpu")) as folder:
        ended = folder.run([], 120)
        where = folder.log.parent
        assert where.is_dir()
    assert ended.status == 0, ended.printed
    problem: Problem = registry.load("problems", "rmsnorm")
    assert ended.calls == len(list(exercise.small_calls(problem))) > 3 * len(problem.edge_shapes)
    assert not where.exists()


def test_only_the_workloads_that_are_given_are_called() -> None:
    works = (Workload({"R": 4, "C": 8}, "fp32"), Workload({"R": 3, "C": 5}, "bf16", strides={"x": (7, 1)}))
    with toolrun.folder(Exercise(KERNEL, "rmsnorm", "torch", "cpu", works)) as folder:
        assert folder.run([], 120).calls == 2


def test_calls_that_fail_or_last_too_long_are_no_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWNERS_API_KEY", "secret-of-the-owner")
    broken = KERNEL.replace(
        "    wide", "    import os; raise ValueError(str(os.environ.get('OWNERS_API_KEY')))\n    wide"
    )
    with toolrun.folder(Exercise(broken, "rmsnorm", "torch", "cpu")) as folder:
        ended = folder.run([], 120)
    assert (ended.status, ended.calls, ended.last_line) == (1, 0, "ValueError: None"), "and it has no keys"
    hanging = KERNEL.replace("import torch", "import time; time.sleep(600)", 1)
    with toolrun.folder(Exercise(hanging, "rmsnorm", "torch", "cpu")) as folder:
        assert folder.run([], 0.5).status is None


def test_nothing_outlives_whoever_asked(tmp_path: Path) -> None:
    """Not even when that was killed: a tool that hangs would hold the GPU."""
    hanging = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(f'{{os.getpid()}} '); time.sleep(600)"
    code = f"""
from autokernel.evaluate.toolrun import Exercise, folder
with folder(Exercise({KERNEL.replace("import torch", hanging, 1)!r}, "rmsnorm", "torch", "cpu")) as place:
    place.run([], 600)
"""
    with subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}) as asker:
        told = wait_for(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text().endswith(" "))
        asker.kill()
    assert told
    child = int((tmp_path / "pid").read_text())
    assert wait_for(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


def wait_for(what: Callable[[], bool], limit_s: float = 60.0) -> bool:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        with contextlib.suppress(psutil.NoSuchProcess):
            if what():
                return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("name", registry.names("problems"))
def test_small_calls_are_small_and_take_every_dtype(name: str) -> None:
    problem: Problem = registry.load("problems", name)
    calls = list(exercise.small_calls(problem))
    kinds = {tensors[0].dtype for tensors, _ in calls}
    assert len(kinds) == len(problem.dtypes) and len(calls) >= 4 * len(kinds)
    for tensors, scalars in calls:
        assert sum(t.numel() * t.element_size() for t in tensors) <= exercise.SMALL_BYTES
        assert set(problem.scalars) <= set(scalars)
    if problem.strided:
        assert any(not t.is_contiguous() for tensors, _ in calls for t in tensors)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(7, dtype=torch.float16),
        torch.arange(60.0).reshape(3, 4, 5)[:, 1:3],
        torch.arange(12.0).reshape(3, 4).t(),
        torch.arange(4).expand(3, 4),
        torch.empty(0, 8),
    ],
    ids=["odd", "slice", "transposed", "expanded", "empty"],
)
def test_an_input_ends_where_its_allocation_ends(tensor: torch.Tensor) -> None:
    """To the piece of 16 bytes: what lies beyond is out of bounds, and all that lies before it was written."""
    placed = exercise.on_device(tensor, "cpu")
    assert torch.equal(placed, tensor) and placed.stride() == tensor.stride()
    storage = placed.untyped_storage()
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1 if tensor.numel() else 0
    beyond = storage.nbytes() - last * tensor.element_size()
    assert 0 <= beyond < exercise.PIECE_BYTES and storage.nbytes() % exercise.PIECE_BYTES == 0
    assert storage.tolist()[storage.nbytes() - beyond :] == [0] * beyond


# ------------------------------------------------------------------------------------------------- compute-sanitizer


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


# ------------------------------------------------------------------------------------------------- Nsight Compute

STALLS = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"
LAUNCH = {
    "ID": "0", "Process ID": "7", "Process Name": "python3.12", "Host Name": "127.0.0.1",
    "Kernel Name": "void softmax<float, 4>(const float *)", "Context": "1", "Stream": "7",
    "Block Size": "(128, 1, 1)", "Grid Size": "(4096, 1, 1)", "Device": "0", "CC": "9.0",
    "dram__bytes_read.sum": "33,554,432", "dram__bytes_write.sum": "1,048,576",
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed": "81.25", "gpu__time_duration.sum": "12,800",
    "l1tex__t_sector_hit_rate.pct": "3.5", "launch__registers_per_thread": "40",
    "lts__t_sector_hit_rate.pct": "51.234567", "sm__maximum_warps_per_active_cycle_pct": "75",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "22",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "70.5",
    "smsp__average_warp_latency_per_inst_issued.ratio": "20", STALLS.format("long_scoreboard"): "12.5",
    STALLS.format("barrier"): "2.5", STALLS.format("selected"): "15", "launch__func_cache_config": "CachePreferNone",
}  # fmt: skip
UNITS = {"dram__bytes_read.sum": "byte", "gpu__time_duration.sum": "ns", "lts__t_sector_hit_rate.pct": "%"}


def page(*launches: dict[str, str]) -> str:
    """What ``ncu --csv --page raw`` writes of these launches."""
    rows = [{name: name for name in LAUNCH}, {name: UNITS.get(name, "") for name in LAUNCH}, *launches]
    lines = [",".join(f'"{row[name]}"' for name in LAUNCH) for row in rows]
    return "\n".join(["==PROF== Connected to process 7 (/usr/bin/python3.12)", *lines, "==PROF== Disconnected", ""])


def test_what_ncu_writes_becomes_a_few_figures(tmp_path: Path) -> None:
    works = (Workload({"R": 4, "C": 8}, "fp32"),)
    again = {**LAUNCH, "ID": "1", "gpu__time_duration.sum": "9,000", "launch__registers_per_thread": "32"}
    other = {**LAUNCH, "ID": "2", "Kernel Name": "sum_parts", "lts__t_sector_hit_rate.pct": "n/a"}
    with toolrun.folder(Exercise(KERNEL, "rmsnorm", "torch", "cpu", works)) as folder:
        command = [tool(tmp_path, page(LAUNCH, again, other)), *nsight.options(str(folder.log))]
        ended = folder.run(command, 120)
    assert ended.calls == 1
    kernels = nsight.parsed(ended.log)
    assert kernels["softmax"] == {
        "time_us": 12.8, "sm_pct": 22.0, "dram_pct": 81.25, "l1_hit_pct": 3.5, "l2_hit_pct": 51.235, "occupancy": 0.75,
        "achieved_occupancy": 0.705, "registers": 40.0, "dram_read_bytes": 33554432.0, "dram_written_bytes": 1048576.0,
        "top_stall": "long_scoreboard", "top_stall_share": 0.625,
    }  # fmt: skip
    assert set(kernels) == {"softmax", "sum_parts"} and "l2_hit_pct" not in kernels["sum_parts"]


def test_figures_join_the_evidence_of_their_kernel() -> None:
    verdict = Verdict(Status.PASS, "done", "", measurements=PASS.measurements, evidence={"softmax": {"registers": 40}})
    joined = nsight.joined(verdict, nsight.Counted({"softmax": {"dram_pct": 81.0}, "other": {"sm_pct": 1.0}}, "R4"))
    assert joined.evidence == {
        "softmax": {"registers": 40, "ncu": {"dram_pct": 81.0}}, "other": {"ncu": {"sm_pct": 1.0}}
    }  # fmt: skip
    assert joined.environment["ncu"] == {"workload": "R4"}
    json.dumps(joined.to_json())


@pytest.mark.parametrize(
    ("log", "told"),
    [
        ("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access counters\n", "may not read"),
        ("==ERROR== Failed to initialize the profiler: LibraryNotLoaded\n", "LibraryNotLoaded"),
        ("==PROF== Connected\n==WARNING== No kernels were profiled.\n", "No kernels were profiled"),
        ("", "ValueError: of the kernel"),
    ],
)
def test_why_ncu_counted_nothing_is_one_line(log: str, told: str) -> None:
    assert nsight.parsed(log) == {}
    assert told in nsight._why(Ended(1, 0, log, "Traceback\nValueError: of the kernel\n"))
    assert "after" in nsight._why(Ended(None, 0, log, ""))


def test_the_heaviest_workload_is_the_one_that_is_profiled() -> None:
    works = (Workload({"R": 1}, "fp32", count=10), Workload({"R": 9}, "fp32", count=1))
    target = Target("t", "rmsnorm", "triton", works, 1.0, 0.0, 0.0)
    measured = Measurements(140.0, {}, None, {works[0].key: 8.0, works[1].key: 60.0}, 1.0)
    assert nsight.heaviest(target, measured) is works[0]


def test_a_bench_without_counters_still_ends_with_its_verdict(tmp_path: Path) -> None:
    """The real command on a CPU, where there is nothing to count."""
    works = "WORKLOADS = [{'dims': {'R': 64, 'C': 128}, 'dtype': 'fp32', 'scalars': {'eps': 1e-6}}]\n"
    (tmp_path / "kernel.py").write_text(KERNEL.replace("def kernel_fn", works + "def kernel_fn"))
    result = CliRunner().invoke(cli.main, ["bench", str(tmp_path / "kernel.py"), "--ncu", "--no-baselines"])
    assert result.exit_code == 0, result.output
    assert "PASS in" in result.output and "ncu counts on a GPU alone" in result.output
    assert os.listdir(tmp_path) == ["kernel.py"]
