"""How often does the judge keep nothing, and how often does it keep something? Measured, not assumed.

A/A: the incumbent's own source with a new comment, judged as any candidate is. Power: the incumbent spends a known
share of its own time on nothing, and the candidate does not. Run it on an otherwise idle machine:

    python benchmarks/noise.py --aa 100 --power 30 --gain 0.05 --json noise.json
"""

from __future__ import annotations

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

CASES = {
    "rmsnorm 512x768 fp32": Workload({"R": 512, "C": 768}, "fp32", scalars={"eps": 1e-6}),
    "rmsnorm 64x256 fp32": Workload({"R": 64, "C": 256}, "fp32", scalars={"eps": 1e-6}),
    "rmsnorm 4096x1024 fp32": Workload({"R": 4096, "C": 1024}, "fp32", scalars={"eps": 1e-6}),
}
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


def with_extra_work(source: str, share: float) -> str:
    """The kernel, slower by this share of its own time."""
    if source.count(LAUNCH) != 1:
        raise SystemExit(f"expected `{LAUNCH}` once in the rmsnorm starter; found it {source.count(LAUNCH)} times")
    return source.replace(LAUNCH, f"{DRAG.replace('SHARE', str(share))}\n{LAUNCH}\n  Drag drag;")


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
@click.option("--case", "cases", multiple=True, type=click.Choice(list(CASES)), help="Default: the first.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write every comparison there.")
def main(aa: int, power: int, gain: float, cases: tuple[str, ...], path: Path | None) -> None:
    file = starter("rmsnorm", "cpp")
    assert file is not None
    honest = file.read_text()
    slower = with_extra_work(honest, gain)
    rows: list[dict[str, object]] = []
    raw: dict[str, list[dict[str, object]]] = {}
    with tempfile.TemporaryDirectory() as folder, JudgeClient(Path(folder) / "scratch", JudgeOptions()) as judge:
        for case in cases or tuple(CASES)[:1]:
            target = Target("rmsnorm", "rmsnorm", "cpp", (CASES[case],), share=1.0, eager_us=1.0, floor_us=1.0)
            for series, count, incumbent in ((f"{case} A/A", aa, honest), (f"{case} +{gain:.0%}", power, slower)):
                evaluations = []
                started = time.monotonic()
                for number in range(count):
                    candidate = f"{honest}\n# candidate {number}\n"
                    evaluations.append(
                        judge.evaluate(Assignment(target, candidate, incumbent=incumbent, baselines=False))
                    )
                    told = evaluations[-1].comparison
                    verdict = evaluations[-1].verdict
                    line = told.reason if told else f"{verdict.status.value}: {verdict.reason}"
                    print(f"{series} {number + 1}/{count} {time.monotonic() - started:.0f} s: {line}", file=sys.stderr)
                if evaluations:
                    rows.append(summary(series, evaluations))
                    raw[series] = [vars(e.comparison) for e in evaluations if e.comparison]
    print(
        f"{'series':32} {'n':>4} {'kept':>5} {'confirmed':>10} {'median %':>9} {'p5 %':>7} {'p95 %':>7} {'s each':>7}"
    )
    for row in rows:
        print(
            f"{row['series']:32} {row['n']:>4} {row['kept']:>5} {row['confirmed']:>10} {row['median_pct']:>9.2f} "
            f"{row['p5_pct']:>7.2f} {row['p95_pct']:>7.2f} {row['seconds']:>7.2f}"
        )
    if path is not None:
        path.write_text(json.dumps({"rows": rows, "comparisons": raw}, indent=1) + "\n")


if __name__ == "__main__":
    main()
