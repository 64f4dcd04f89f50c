"""bench: judge one kernel file."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autokernel.commands._common import Device, ask_device, existing_file
from autokernel.types import AutokernelError, Status

if TYPE_CHECKING:
    from autokernel.evaluate.client import Evaluation, JudgeOptions
    from autokernel.kernelfile import KernelFile


@click.command()
@click.argument("file", metavar="FILE")
@click.option("--against", metavar="FILE", help="Another version of the kernel: also compare the two, in pairs.")
@click.option("--problem", metavar="FILE", help="The kernel's own reference (.py) or bench command (.json).")
@click.option("--device", type=Device(), default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--min-gain", type=click.FloatRange(0, 1), default=0.005, show_default=True,
              help="Smallest gain over --against that counts, as a fraction.")  # fmt: skip
@click.option("--baselines/--no-baselines", default=True, help="Also time eager, torch.compile and the library's call.")
@click.option("--thorough", is_flag=True, help="More blocks: a figure to publish.")
@click.option("--json", "as_json", is_flag=True, help="The last line of stdout is one JSON object.")
def bench(
    file: str, against: str | None, problem: str | None, device: str, min_gain: float, baselines: bool, thorough: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Judge one kernel FILE: five stages of correctness, then its time against three baselines.

    Judges the file's WORKLOADS, or a few of its problem's own shapes. Exits 0 if and only if it passes, 1 when it does
    not, and 2 when the file is no kernel file.
    """
    from autokernel import kernelfile
    from autokernel.evaluate.client import JudgeOptions

    path = existing_file(file, "a kernel file")
    other = existing_file(against, "a kernel file to compare with") if against else None
    own = existing_file(problem, "a reference or a bench command") if problem else None
    try:
        kernel = kernelfile.read(path, own)
        incumbent = kernelfile.read(other, own) if other else None
    except kernelfile.NotAKernel as error:
        if as_json:
            click.echo(json.dumps(_failure(Status.BUILD, "read", str(error))))
        raise
    if incumbent and incumbent.problem != kernel.problem:
        raise AutokernelError(f"expected two versions of one problem, got {kernel.problem} and {incumbent.problem}")
    stages = _Stages(to_stderr=as_json)
    evaluation = _judge(
        kernel, incumbent, JudgeOptions(device=device, min_gain=min_gain), baselines, thorough, stages.on_event
    )
    stages.end(evaluation)
    if as_json:
        click.echo(json.dumps(to_json(evaluation)))
    else:
        _explain(evaluation)
    if evaluation.verdict.status is not Status.PASS:
        raise click.exceptions.Exit(1)


def _judge(
    kernel: KernelFile,
    incumbent: KernelFile | None,
    options: JudgeOptions,
    baselines: bool,
    thorough: bool,
    on_event: Callable[[Mapping[str, Any]], None],
) -> Evaluation:
    from autokernel.evaluate.bench_command import open_judge
    from autokernel.evaluate.client import Assignment
    from autokernel.types import Target, Workload

    answer: Mapping[str, Any] = {"workloads": [], "floor_us": 0.0}
    if not kernel.problem.endswith(".json"):
        given = json.dumps([w.to_json() for w in kernel.workloads] or None)
        answer = ask_device("workloads", kernel.problem, options.device, stdin=given)
    target = Target(
        name=kernel.path.stem,
        problem=kernel.problem,
        backend=kernel.backend,
        workloads=tuple(Workload.from_json(w) for w in answer["workloads"]),
        share=1.0,
        eager_us=0.0,
        floor_us=answer["floor_us"],
        suffix=kernel.path.suffix,
    )
    rival = incumbent.source if incumbent else None
    assignment = Assignment(target, kernel.source, rival, baselines=baselines, thorough=thorough)
    with (
        tempfile.TemporaryDirectory(prefix="autokernel-bench-") as scratch,
        open_judge(target, Path(scratch), options) as judge,
    ):
        return judge.evaluate(assignment, on_event)


class _Stages:
    """Prints each stage when it has passed, and the one that did not."""

    def __init__(self, to_stderr: bool) -> None:
        self.to_stderr = to_stderr
        self.current = ""

    def on_event(self, event: Mapping[str, Any]) -> None:
        if event.get("event") != "stage" or event["stage"] == self.current:
            return
        self._passed()
        self.current = event["stage"]

    def _passed(self) -> None:
        if self.current:
            click.echo(f"{click.style('✓', fg='green')} {self.current}", err=self.to_stderr)

    def end(self, evaluation: Evaluation) -> None:
        verdict = evaluation.verdict
        if verdict.status is Status.PASS:
            self._passed()
            return
        if self.current != verdict.stage:
            self._passed()
        mark = click.style("✗", fg="red")
        click.echo(f"{mark} {verdict.stage}: {verdict.status.value}: {verdict.reason}", err=self.to_stderr)


def _failure(status: Status, stage: str, reason: str, seconds: float = 0.0) -> dict[str, Any]:
    numbers = dict.fromkeys(("latency_us", "speedup_vs_eager", "speedup_vs_best", "pct_peak"))
    return {"status": status.value, "stage": stage, "reason": reason, **numbers, "seconds": seconds}


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """The one object of --json; ``comparison`` (ratios; above 1 the file is faster than --against) only where asked."""
    verdict, comparison = evaluation.verdict, evaluation.comparison
    answer = _failure(verdict.status, verdict.stage, verdict.reason, round(evaluation.seconds, 3))
    if verdict.measurements:
        for key in ("latency_us", "speedup_vs_eager", "speedup_vs_best", "pct_peak"):
            answer[key] = getattr(verdict.measurements, key)
        answer["baselines_us"] = dict(verdict.measurements.baselines_us)
    if comparison:
        answer["comparison"] = {
            "speedup": math.exp(comparison.log_ratio),
            "ci_low": math.exp(comparison.ci_low),
            "ci_high": math.exp(comparison.ci_high),
            "blocks": comparison.blocks,
            "keep": comparison.keep,
            "reason": comparison.reason,
        }
    return answer


def _explain(evaluation: Evaluation) -> None:
    from autokernel.display import span

    verdict, comparison = evaluation.verdict, evaluation.comparison
    measured = verdict.measurements
    if measured is None:
        if verdict.log_tail:
            click.echo(verdict.log_tail.rstrip())
        click.echo(f"{verdict.status.value} at {verdict.stage} after {evaluation.seconds:.1f} s")
        return
    peak = f", {measured.pct_peak:.0f} % of peak" if measured.pct_peak is not None else ""
    click.echo(f"PASS in {evaluation.seconds:.1f} s: {span(measured.latency_us)} (±{measured.noise_pct:.1f} %){peak}")
    for name, baseline_us in sorted(measured.baselines_us.items(), key=lambda pair: pair[1]):
        click.echo(f"  {baseline_us / measured.latency_us:6.2f}x  against {name} ({span(baseline_us)})")
    if comparison:
        low, high = ((math.exp(c) - 1) * 100 for c in (comparison.ci_low, comparison.ci_high))
        gain = (math.exp(comparison.log_ratio) - 1) * 100
        word = "faster" if comparison.keep else "not shown to be faster"
        click.echo(f"against the other file: {gain:+.1f} % [{low:+.1f}, {high:+.1f}], {word}: {comparison.reason}")
