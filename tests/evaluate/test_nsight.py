"""A kernel under Nsight Compute: how its figures are read, and joined to a verdict."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from autokernel import cli
from autokernel.evaluate import nsight, toolrun
from autokernel.evaluate.toolrun import Ended, Exercise
from autokernel.types import Measurements, Status, Target, Verdict, Workload

from .tool_script import KERNEL, PASS, tool

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
