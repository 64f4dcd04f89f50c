"""How often does the judge keep nothing, and how often does it keep something? Measured, not assumed.

A/A: the incumbent's own source with a new comment, judged as any candidate is. Power: the incumbent spends a known
share of its own work on nothing, and the candidate does not: on a CPU it waits that much longer, on a GPU it does rows
or steps again (noise_kernels/). Run it on an otherwise idle machine:

    python benchmarks/noise.py --aa 100 --power 30 --gain 0.05 --json noise.json
    python benchmarks/noise.py --device cuda --aa 100 --power 30 --gain 0.02 --json noise.json
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

import click

from autokernel.assets import starter
from autokernel.evaluate.client import Assignment, Evaluation, JudgeClient, JudgeOptions
from autokernel.types import Target, Workload

RMS = {"eps": 1e-6}
CASES = {
    "cpu": {
        "rmsnorm 512x768 fp32": Workload({"R": 512, "C": 768}, "fp32", scalars=RMS),
        "rmsnorm 64x256 fp32": Workload({"R": 64, "C": 256}, "fp32", scalars=RMS),
        "rmsnorm 4096x1024 fp32": Workload({"R": 4096, "C": 1024}, "fp32", scalars=RMS),
    },
    "cuda": {
        "rmsnorm 8192x4096 fp16": Workload({"R": 8192, "C": 4096}, "fp16", scalars=RMS),
        "matmul 4096x4096x4096 fp16": Workload({"M": 4096, "N": 4096, "K": 4096}, "fp16"),
        "rmsnorm 256x1024 fp16": Workload({"R": 256, "C": 1024}, "fp16", scalars=RMS),
    },
}
KERNELS = Path(__file__).with_name("noise_kernels")
LAUNCH = "void launch(TensorView x, TensorView weight, TensorView y, double eps) {"
DRAG = """
#include <chrono>
struct Drag {  // spends a share of what the call took on nothing
  std::chrono::steady_clock::time_point begin = std::chrono::steady_clock::now();
  ~Drag() {
    const auto end = std::chrono::steady_clock::now();
    while (std::chrono::steady_clock::now() - end < (end - begin) * SHARE) {}
  }
};
"""


def honest(kind: str, problem: str) -> str:
    """The kernel of a case: the CPU's starter, or one of noise_kernels/."""
    path = starter(problem, "cpp") if kind == "cpu" else KERNELS / f"{problem}.py"
    assert path is not None
    return path.read_text()


def with_extra_work(kind: str, source: str, share: float) -> str:
    """The kernel, made to do more by this share of its own work."""
    if kind != "cpu":
        return once_replaced(source, "EXTRA = 0.0\n", f"EXTRA = {100 * share:g}\n")
    return once_replaced(source, LAUNCH, f"{DRAG.replace('SHARE', str(share))}\n{LAUNCH}\n  Drag drag;")


def once_replaced(source: str, old: str, new: str) -> str:
    if source.count(old) != 1:
        raise SystemExit(f"expected `{old.strip()}` once in the kernel; found it {source.count(old)} times")
    return source.replace(old, new)


def summary(name: str, evaluations: list[Evaluation]) -> dict[str, object]:
    """What became of a series: kept, and the log ratios seen."""
    compared = [e.comparison for e in evaluations if e.comparison is not None]
    ratios = [c.log_ratio for c in compared]
    quarters = statistics.quantiles(ratios, n=20) if len(ratios) > 1 else [0.0] * 19
    return {
        "series": name,
        "n": len(evaluations),
        "passed": len(compared),
        "kept": sum(c.keep for c in compared),
        "confirmed": sum("fresh pairs" in c.reason for c in compared),
        "median_pct": 100 * math.expm1(statistics.median(ratios)) if ratios else None,
        "p5_pct": 100 * math.expm1(quarters[0]),
        "p95_pct": 100 * math.expm1(quarters[-1]),
        "seconds": statistics.median(e.seconds for e in evaluations),
        "failures": sorted({e.verdict.reason for e in evaluations if e.comparison is None}),
    }


@click.command(help=__doc__)
@click.option("--aa", default=100, show_default=True, help="A/A candidates a case.")
@click.option("--power", default=30, show_default=True, help="Truly faster candidates a case.")
@click.option("--gain", default=0.05, show_default=True, help="How much less work these do, as a fraction.")
@click.option("--case", "wanted", multiple=True, help="Cases whose name contains this. Default: on a CPU the first.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write every comparison there.")
def main(aa: int, power: int, gain: float, wanted: tuple[str, ...], device: str, path: Path | None) -> None:
    kind = device.split(":")[0]
    known = CASES[kind]
    names = [name for name in known if any(word in name for word in wanted)]
    if not names:
        if wanted:
            raise SystemExit(f"no case contains {' or '.join(wanted)}; there are: {', '.join(known)}")
        names = list(known)[:1] if kind == "cpu" else list(known)
    rows: list[dict[str, object]] = []
    raw: dict[str, list[dict[str, object]]] = {}
    options = JudgeOptions(device=device)
    with tempfile.TemporaryDirectory() as folder, JudgeClient(Path(folder) / "scratch", options) as judge:
        for case in names:
            problem = case.split()[0]
            source = honest(kind, problem)
            backend = "cpp" if kind == "cpu" else "triton"
            target = Target(problem, problem, backend, (known[case],), share=1.0, eager_us=1.0, floor_us=1.0)
            slower = with_extra_work(kind, source, gain)
            for series, count, incumbent in ((f"{case} A/A", aa, source), (f"{case} +{gain:.0%}", power, slower)):
                evaluations: list[Evaluation] = []
                started = time.monotonic()
                for number in range(count):
                    candidate = f"{source}\n# candidate {number}\n"
                    evaluations.append(
                        judge.evaluate(Assignment(target, candidate, incumbent=incumbent, baselines=False))
                    )
                    told = evaluations[-1].comparison
                    verdict = evaluations[-1].verdict
                    line = told.reason if told else f"{verdict.status.value}: {verdict.reason}"
                    print(f"{series} {number + 1}/{count} {time.monotonic() - started:.0f} s: {line}", file=sys.stderr)
                    if path is not None:  # after each: a run that is cut short has measured what it has
                        raw[series] = [dataclasses.asdict(e.comparison) for e in evaluations if e.comparison]
                        found = [*rows, summary(series, evaluations)]
                        path.write_text(json.dumps({"rows": found, "comparisons": raw}, indent=1) + "\n")
                if evaluations:
                    rows.append(summary(series, evaluations))
    print(
        f"{'series':32} {'n':>4} {'kept':>5} {'confirmed':>10} {'median %':>9} {'p5 %':>7} {'p95 %':>7} {'s each':>7}"
    )
    for row in rows:
        print(
            f"{row['series']:32} {row['n']:>4} {row['kept']:>5} {row['confirmed']:>10} "
            f"{row['median_pct'] or 0.0:>9.2f} "
            f"{row['p5_pct']:>7.2f} {row['p95_pct']:>7.2f} {row['seconds']:>7.2f}"
        )


if __name__ == "__main__":
    main()
