"""Every starter beside everything a user could pick instead, in one run on one machine.

    python benchmarks/table4.py --device cuda --decode --json table4.json --chart table4.png
    python benchmarks/table4.py --only softmax --peer ../elsewhere/kernels
    python benchmarks/table4.py --device cuda --gpus 0,1,2,3    # cases spread over equal GPUs; a case stays on one
    python benchmarks/table4.py --show table4.json --chart table4.png    # what was measured, again

Rivals: PyTorch eager, torch.compile, the best library calls (SDPA's flash and cuDNN backends, F.rms_norm and the like,
Liger's Triton kernels where it can be imported), and with --peer any folder of kernel files that define kernel_fn.
Ours: the starters of each backend that this device runs, as they would be extracted. Every output is checked against
the problem's oracle before it is timed; what is wrong is not timed. Times are medians of single calls, each after the
cache was overwritten (on CUDA as triton.testing.do_bench does), over rounds in which all take turns.
Where memory decides, "copy" is the measure: the device's own copy of as many bytes as the case reads and writes, timed
in turn with the rest. Where arithmetic does, the floor is its operations over the best product measured in the same
run. Each case has a process of its own (contenders.py); a contender that kills it is marked, and skipped.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import math
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gpus
from contenders import COPY, CPU_CASES, CUDA_CASES, DECODE_CASES, OURS, Case, options_of

from autokernel import hardware, registry

WORKER = Path(__file__).with_name("contenders.py")
CASE_S = 600.0


def measure(case: Case, options: argparse.Namespace, gpu: str | None, locks: Path) -> list[dict[str, Any]]:
    """Every contender's time; a worker that dies is started again without the contender that killed it."""
    found: list[dict[str, Any]] = []
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})}
    while True:
        command = [sys.executable, str(WORKER), "--device", options.device, "--dtype", options.dtype]
        command += ["--compile-mode", options.compile_mode, "--lock", str(locks / f"gpu-{gpu}")]
        for peer in options.peer:
            command += ["--peer", str(peer)]
        request = json.dumps({"case": dataclasses.asdict(case), "skip": [each["name"] for each in found]})
        begun, known = None, len(found)
        try:
            done = subprocess.run(
                command, input=request, capture_output=True, text=True, timeout=CASE_S, check=False, env=environment
            )
            out, code, tail = done.stdout, done.returncode, done.stderr.strip().splitlines()[-1:]
        except subprocess.TimeoutExpired as late:
            out, code, tail = (late.stdout or b"").decode() if isinstance(late.stdout, bytes) else "", -1, ["too long"]
        for line in out.splitlines():
            said = json.loads(line)
            begun = said.get("begin")
            if "name" in said:
                found.append(said)
        if code == 0:
            return found
        if begun is not None:
            found.append({"name": begun, "failed": f"its process ended with {code}: {' '.join(tail)}"})
        elif len(found) == known:
            return [*found, {"name": "-", "failed": f"the case could not be set up: {' '.join(tail)}"}]


def line(case: Case, found: Sequence[dict[str, Any]], floor_us: float | None) -> dict[str, Any]:
    """One row: times by contender, the best rival, our best, and their ratio. ``floor_us`` is that of the arithmetic,
    or None where memory decides: such a row has the time of the copy instead.
    """
    times = {each["name"]: each["us"] for each in found if "us" in each}
    copy_us = times.pop(COPY, None)
    ours = {name: t for name, t in times.items() if name in OURS}
    rivals = {name: t for name, t in times.items() if name not in OURS and not name.startswith("peer")}
    row: dict[str, Any] = {"case": case.name, "problem": case.problem, "times_us": times}
    row["rounds_us"] = {each["name"]: each["rounds_us"] for each in found if "rounds_us" in each}
    row["failed"] = {each["name"]: each["failed"] for each in found if "failed" in each}
    kind, measure_us = (COPY, copy_us) if floor_us is None else ("floor", floor_us)
    if measure_us is not None:
        row[f"{kind}_us"] = measure_us
    if ours and rivals:
        row["best_rival"], row["ours"] = min(rivals, key=rivals.__getitem__), min(ours, key=ours.__getitem__)
        row["ratio"] = rivals[row["best_rival"]] / ours[row["ours"]]
        if measure_us is not None:
            row[f"of_{kind}"] = measure_us / ours[row["ours"]]
    return row


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown. Rows of older runs have a floor whatever decides."""
    names = list(dict.fromkeys(name for row in rows for name in row["times_us"]))
    columns: dict[str, Callable[[dict[str, Any]], str]] = {"case": lambda row: row["case"]}
    for name in names:
        columns[name] = lambda row, name=name: figure(row["times_us"].get(name), 1)
    columns["best rival / ours"] = lambda row: figure(row.get("ratio"), 2)
    for kind in (COPY, "floor"):
        if any(f"{kind}_us" in row for row in rows):
            columns[kind] = lambda row, kind=kind: figure(row.get(f"{kind}_us"), 1)
            columns[f"of {kind}"] = lambda row, kind=kind: figure(row.get(f"of_{kind}"), 2)
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(cell(row) for cell in columns.values()) + " |" for row in rows]
    ratios = [row["ratio"] for row in rows if "ratio" in row]
    if ratios:
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        lines.append(f"\ngeometric mean of best rival / ours over {len(ratios)} cases: {mean:.3f}; times in us")
    for row in rows:
        lines += [f"- {row['case']}, {name}: {why}" for name, why in row["failed"].items()]
    return "\n".join(lines)


def figure(value: float | None, digits: int) -> str:
    """A cell: the number, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def chart(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Speed relative to the best rival (1 = as fast), a bar for each of ours."""
    import matplotlib.pyplot as plt

    shown = [row for row in rows if "ratio" in row]
    backends = [b for b in OURS if any(b in row["times_us"] for row in shown)]
    figure, axes = plt.subplots(figsize=(10, 1.2 + 0.34 * len(shown)))
    height = 0.8 / max(len(backends), 1)
    for index, backend in enumerate(backends):
        values = [row["times_us"][row["best_rival"]] / row["times_us"].get(backend, math.inf) for row in shown]
        axes.barh(
            [i + (index - (len(backends) - 1) / 2) * height for i in range(len(shown))], values, height, label=backend
        )
    axes.set_yticks(range(len(shown)), [row["case"] for row in shown])
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xlabel("speed relative to the best of eager, torch.compile and libraries (right of 1 is faster)")
    axes.set_title(title)
    axes.invert_yaxis()
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = options_of(
        argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    )
    parser.add_argument("--only", action="append", default=[], help="cases whose name contains this; repeatable")
    parser.add_argument("--decode", action="store_true", help="also cases of 1 to 64 rows")
    parser.add_argument("--gpus", default="", help="ids of equal GPUs, such as 0,1: as many cases at a time")
    parser.add_argument("--jobs", type=int, default=1, help="cases under way on a GPU: one is timed, others build")
    parser.add_argument("--show", action="append", default=[], type=Path, help="measure nothing; show this JSON")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--chart", type=Path)
    options = parser.parse_args()
    if options.show:
        told = [json.loads(path.read_text()) for path in options.show]
        show([row for each in told for row in each["rows"]], told[0], options.chart)
        return
    options.dtype = options.dtype or ("fp32" if options.device == "cpu" else "fp16")
    known = CPU_CASES if options.device == "cpu" else [*CUDA_CASES, *(DECODE_CASES if options.decode else ())]
    cases = [case for case in known if not options.only or any(word in case.name for word in options.only)]
    if not cases:
        parser.error(f"no case contains {options.only}; there are: {', '.join(case.name for case in known)}")
    idle: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    ids = gpus.listed(options.gpus) or [None]
    ceilings = hardware.measure(options.device, refresh=True)
    for gpu in ids * options.jobs:
        idle.put(gpu)

    def row(case: Case) -> dict[str, Any]:
        workload = case.workload(options.dtype)
        problem = registry.load("problems", case.problem)
        arithmetic_us = ceilings.compute_us(problem.flops(workload), workload.dtype)
        decides = arithmetic_us > ceilings.memory_us(problem.bytes(workload))
        gpu = idle.get()
        try:
            return line(case, measure(case, options, gpu, Path(locks)), arithmetic_us if decides else None)
        finally:
            idle.put(gpu)

    rows: list[dict[str, Any]] = []
    data = {"machine": ceilings.to_json(), "device": options.device, "dtype": options.dtype, "rows": rows}
    data["time"] = time.strftime("%Y-%m-%d")
    with (
        tempfile.TemporaryDirectory() as locks,
        concurrent.futures.ThreadPoolExecutor(len(ids) * options.jobs) as pool,
    ):
        for found in pool.map(row, cases):
            rows.append(found)
            print(f"{found['case']}: {found.get('ratio', float('nan')):.2f}", file=sys.stderr, flush=True)
            if options.json:  # after every case: a run that is cut short is a shorter table
                options.json.write_text(json.dumps(data, indent=1))
    show(rows, data, options.chart)


def show(rows: Sequence[dict[str, Any]], run: Mapping[str, Any], picture: Path | None) -> None:
    """Print the table of a run; draw its chart, too, when a path is given."""
    print(table(rows))
    if picture:
        chart(rows, picture, f"{run['machine']['name']}, {run['dtype']}, {run['time']}")


if __name__ == "__main__":
    main()
