"""How often does the judge keep nothing, and how often does it keep something? Measured, not assumed.

A/A: the incumbent's own source with a new comment, judged as any candidate is. Power: the incumbent spends a known
share of its own work on nothing, and the candidate does not: on a CPU it waits that much longer, on a GPU it does rows
or steps again (noise_kernels/). Run it on an otherwise idle machine:

    python benchmarks/noise.py --aa 100 --power 30 --gain 0.05 --json noise.json
    python benchmarks/noise.py --device cuda --aa 100 --power 30 --gain 0.02 --json noise.json

With --decision-only candidates go straight to the comparison (the judge's Contest, in this process): the stages of
correctness before it have no say in what is kept of A/A candidates, and take most of the time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click

from autokernel.assets import starter
from autokernel.evaluate.client import Assignment, JudgeClient, JudgeOptions
from autokernel.types import Comparison, Target, Workload

RMS = {"eps": 1e-6}
MIN_GAIN = 0.005  # as in a run, unless its owner asks for another
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


@dataclasses.dataclass(frozen=True)
class Decided:
    """What became of one candidate; ``failure`` says why there is no comparison."""

    comparison: Comparison | None
    failure: str
    seconds: float


class WholeJudge:
    """Candidates are judged as in a run."""

    def __init__(self, folder: Path, device: str, target: Target) -> None:
        self._judge = JudgeClient(folder, JudgeOptions(device=device))
        self._target = target

    def decide(self, candidate: str, incumbent: str) -> Decided:
        found = self._judge.evaluate(Assignment(self._target, candidate, incumbent=incumbent, baselines=False))
        verdict = found.verdict
        return Decided(found.comparison, f"{verdict.status.value}: {verdict.reason}", found.seconds)

    def close(self) -> None:
        self._judge.close()


class DecisionOnly:
    """Candidates go straight to the comparison."""

    def __init__(self, folder: Path, device: str, target: Target) -> None:
        import torch

        from autokernel import hardware, registry
        from autokernel.evaluate.contest import Contest
        from autokernel.evaluate.pool import Nursery
        from autokernel.evaluate.workshop import Workshop

        torch.set_grad_enabled(False)
        folder.mkdir(parents=True, exist_ok=True)
        self._workshop = Workshop(Nursery(folder, device, len(os.sched_getaffinity(0))))
        problem = registry.load("problems", target.problem)
        self._contest = Contest(target, problem, self._workshop, hardware.measure(device))

    def decide(self, candidate: str, incumbent: str) -> Decided:
        from autokernel.evaluate.sides import RivalFailed
        from autokernel.evaluate.stages import Failed

        started = time.perf_counter()
        side = None
        try:
            side = self._contest.admit(candidate)
            found = self._contest.compare(side, candidate, incumbent, MIN_GAIN, lambda *_: None)
            self._contest.check(side)
            return Decided(found, "", time.perf_counter() - started)
        except (Failed, RivalFailed) as failure:
            return Decided(None, str(failure), time.perf_counter() - started)
        finally:
            if side is not None:
                side.close()
            self._workshop.forget(candidate)

    def close(self) -> None:
        self._contest.close()
        self._workshop.close()


def decisions(
    judge: WholeJudge | DecisionOnly, series: str, count: int, source: str, incumbent: str
) -> Iterator[Decided]:
    """What becomes of so many candidates that are ``source`` but for a comment; each is told on standard error."""
    started = time.monotonic()
    for number in range(count):
        found = judge.decide(f"{source}\n# candidate {number}\n", incumbent)
        line = found.comparison.reason if found.comparison else found.failure
        print(f"{series} {number + 1}/{count} {time.monotonic() - started:.0f} s: {line}", file=sys.stderr)
        yield found


def summary(name: str, found: list[Decided]) -> dict[str, object]:
    """What became of a series: kept, and the log ratios seen."""
    compared = [each.comparison for each in found if each.comparison is not None]
    ratios = [c.log_ratio for c in compared]
    quarters = statistics.quantiles(ratios, n=20) if len(ratios) > 1 else [0.0] * 19
    return {
        "series": name,
        "n": len(found),
        "passed": len(compared),
        "kept": sum(c.keep for c in compared),
        "confirmed": sum("fresh pairs" in c.reason for c in compared),
        "median_pct": 100 * math.expm1(statistics.median(ratios)) if ratios else None,
        "p5_pct": 100 * math.expm1(quarters[0]),
        "p95_pct": 100 * math.expm1(quarters[-1]),
        "us": statistics.median(c.incumbent_us for c in compared) if compared else None,
        "seconds": statistics.median(each.seconds for each in found),
        "failures": sorted({each.failure for each in found if each.comparison is None}),
    }


@click.command(help=__doc__)
@click.option("--aa", default=100, show_default=True, help="A/A candidates a case.")
@click.option("--power", default=30, show_default=True, help="Truly faster candidates a case.")
@click.option("--gain", default=0.05, show_default=True, help="How much less work these do, as a fraction.")
@click.option("--case", "wanted", multiple=True, help="Cases whose name contains this. Default: on a CPU the first.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--decision-only", is_flag=True, help="Leave out the stages of correctness.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write every comparison there.")
def main(
    aa: int, power: int, gain: float, wanted: tuple[str, ...], device: str, decision_only: bool, path: Path | None
) -> None:
    kind = device.split(":")[0]
    known = CASES[kind]
    names = [name for name in known if any(word in name for word in wanted)]
    if not names:
        if wanted:
            raise SystemExit(f"no case contains {' or '.join(wanted)}; there are: {', '.join(known)}")
        names = list(known)[:1] if kind == "cpu" else list(known)
    rows: list[dict[str, object]] = []
    raw: dict[str, list[dict[str, object]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in names:
            problem = case.split()[0]
            source = honest(kind, problem)
            backend = "cpp" if kind == "cpu" else "triton"
            target = Target(problem, problem, backend, (known[case],), share=1.0, eager_us=1.0, floor_us=1.0)
            slower = with_extra_work(kind, source, gain)
            kind_of_judge = DecisionOnly if decision_only else WholeJudge
            with contextlib.closing(kind_of_judge(Path(folder) / "scratch", device, target)) as judge:
                for name, count, incumbent in ((f"{case} A/A", aa, source), (f"{case} +{gain:.0%}", power, slower)):
                    found: list[Decided] = []
                    for each in decisions(judge, name, count, source, incumbent):
                        found.append(each)
                        raw[name] = [dataclasses.asdict(one.comparison) for one in found if one.comparison]
                        if path is not None:  # after each: a run that is cut short has measured what it has
                            table = [*rows, summary(name, found)]
                            path.write_text(json.dumps({"rows": table, "comparisons": raw}, indent=1) + "\n")
                    if found:
                        rows.append(summary(name, found))
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
