"""What Nsight Compute (ncu) counts while a kernel runs: one call on its heaviest workload, figures by kernel. No torch.

Clocks are left as they are (--clock-control none), so that percentages are of what the GPU gave; caches are emptied
before every pass, as ncu does by default, so that DRAM traffic is that of a cold call.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from autokernel.evaluate import toolrun
from autokernel.types import Measurements, Target, Verdict, Workload

SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "Occupancy", "LaunchStats", "WarpStateStats")
TRAFFIC = "dram__bytes_read.sum", "dram__bytes_write.sum"  # of no section that is cheap
LIMIT_S = 300.0

# The figure of a metric, and what one of its base unit is of ours.
METRICS: Mapping[str, tuple[str, float]] = {
    "gpu__time_duration.sum": ("time_us", 1e-3),
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": ("sm_pct", 1),
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed": ("dram_pct", 1),
    "l1tex__t_sector_hit_rate.pct": ("l1_hit_pct", 1),
    "lts__t_sector_hit_rate.pct": ("l2_hit_pct", 1),
    "sm__maximum_warps_per_active_cycle_pct": ("occupancy", 0.01),
    "sm__warps_active.avg.pct_of_peak_sustained_active": ("achieved_occupancy", 0.01),
    "launch__registers_per_thread": ("registers", 1),
    "launch__waves_per_multiprocessor": ("waves", 1),
    TRAFFIC[0]: ("dram_read_bytes", 1),
    TRAFFIC[1]: ("dram_written_bytes", 1),
}
STALL = re.compile(r"smsp__average_warps_issue_stalled_(\w+)_per_issue_active\.ratio")
LATENCY = "smsp__average_warp_latency_per_inst_issued.ratio"  # what the stalls add up to, cycles an instruction

Figures = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Counted:
    """``kernels`` maps a kernel's name to its figures (of its longest launch); empty with the reason where ncu counted
    nothing. ``workload`` is the key of the one that ran.
    """

    kernels: Mapping[str, Figures]
    workload: str
    reason: str = ""


def count(source: str, target: Target, device: str, workload: Workload) -> Counted:
    """Profile one call. Whatever keeps ncu from counting is a reason, never an exception."""
    tool = toolrun.command("ncu")
    if not device.startswith("cuda"):
        return Counted({}, workload.key, f"ncu counts on a GPU alone, not on {device}")
    if tool is None:
        return Counted({}, workload.key, "ncu was not found: install Nsight Compute, or put it on the PATH")
    exercise = toolrun.Exercise(source, target.problem, target.backend, device, (workload,), profile=True)
    with toolrun.folder(exercise) as folder:
        ended = folder.run([tool, *options(str(folder.log))], LIMIT_S)
    kernels = parsed(ended.log)
    return Counted(kernels, workload.key, "" if kernels else _why(ended))


def options(log: str) -> list[str]:
    """The words between ``ncu`` and the program."""
    words = ["--csv", "--page", "raw", "--print-units", "base", "--print-kernel-base", "function", "--log-file", log]
    words += ["--clock-control", "none", "--profile-from-start", "off", "--target-processes", "application-only"]
    for section in SECTIONS:
        words += ["--section", section]
    return [*words, "--metrics", ",".join(TRAFFIC)]


def parsed(text: str) -> dict[str, dict[str, Any]]:
    """Figures by kernel from what ``ncu --csv --page raw`` wrote: a header, a row of units, a row a launch; lines that
    begin with == are ncu's own. Metrics that this version or device does not have are left out.
    """
    lines = text.splitlines()
    start = next((at for at, line in enumerate(lines) if line.startswith('"ID",')), len(lines))
    found: dict[str, dict[str, Any]] = {}
    rows = list(csv.DictReader(line for line in lines[start:] if line.startswith('"')))
    for row in rows:
        if not (row.get("ID") or "").isdigit():  # the units
            continue
        figures = dict(_figures(row))
        name = toolrun.bare(row.get("Kernel Name") or "")
        if figures and figures.get("time_us", 0.0) >= found.get(name, {}).get("time_us", 0.0):
            found[name] = figures
    return found


def heaviest(target: Target, measured: Measurements) -> Workload:
    """The workload that most of the target's time goes to."""
    return max(target.workloads, key=lambda work: work.count * measured.workloads_us[work.key])


def joined(verdict: Verdict, counted: Counted) -> Verdict:
    """The verdict with ncu's figures as ``ncu`` in the evidence of each kernel; or why there are none, in its
    environment.
    """
    evidence = {name: dict(figures) for name, figures in verdict.evidence.items()}
    for name, figures in counted.kernels.items():
        evidence.setdefault(name, {})["ncu"] = dict(figures)
    told = {"workload": counted.workload, **({"missing": counted.reason} if counted.reason else {})}
    return dataclasses.replace(verdict, evidence=evidence, environment={**verdict.environment, "ncu": told})


def _figures(row: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    for metric, (name, scale) in METRICS.items():
        value = _number(row.get(metric))
        if value is not None:
            yield name, round(value * scale, 3)
    stalls = {match[1]: value for metric in row if metric and (match := STALL.fullmatch(metric))
              if (value := _number(row[metric])) is not None and match[1] != "selected"}  # fmt: skip
    if stalls:
        worst = max(stalls, key=stalls.__getitem__)
        yield "top_stall", worst
        latency = _number(row.get(LATENCY))
        if latency:
            yield "top_stall_share", round(stalls[worst] / latency, 3)


def _number(text: str | None) -> float | None:
    """What ncu prints of a value: "1,048,576", "12.5", or words where it has none."""
    try:
        return float((text or "").replace(",", ""))
    except ValueError:
        return None


def _why(ended: toolrun.Ended) -> str:
    """Why there are no figures, in ncu's own words where it has some."""
    if ended.status is None:
        return f"ncu had counted nothing after {LIMIT_S:.0f} s"
    said = [line[len("==ERROR==") :].strip() for line in ended.log.splitlines() if line.startswith("==ERROR==")]
    said += [line[len("==WARNING==") :].strip() for line in ended.log.splitlines() if line.startswith("==WARNING==")]
    if any("ERR_NVGPUCTRPERM" in line for line in said):
        return "ncu may not read this GPU's counters: run as root, or set NVreg_RestrictProfilingToAdminUsers=0"
    return f"ncu counted nothing: {(said or [ended.last_line])[0][:300]}"
