"""bench: judge one kernel file."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autokernel.commands._common import Device, ask_device, check_isolation, console, existing_file, isolation_option
from autokernel.commands._verdict import Floor, Stages, failure, show, to_json
from autokernel.types import AutokernelError, Status

if TYPE_CHECKING:
    from autokernel.evaluate.client import Assignment, Evaluation, JudgeOptions
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
@click.option("--sanitize", is_flag=True, help="Then ask compute-sanitizer: memcheck, racecheck, initcheck. GPU only.")
@click.option("--ncu", is_flag=True, help="Then count with Nsight Compute what the kernels do. GPU only.")
@isolation_option
@click.option("--json", "as_json", is_flag=True, help="The last line of stdout is one JSON object.")
def bench(
    file: str, against: str | None, problem: str | None, device: str, min_gain: float, baselines: bool, thorough: bool,
    sanitize: bool, ncu: bool, require_isolation: frozenset[str], as_json: bool,
) -> None:  # fmt: skip
    """Judge one kernel FILE: five stages of correctness, then its time against three baselines.

    Judges the file's WORKLOADS, or a few of its problem's own shapes. Exits 0 if and only if it passes, 1 when it does
    not, and 2 when the file is no kernel file or this machine lacks a level of isolation that is required.

    --sanitize and --ncu run a file that has passed once more, outside of the sandbox: such tools cannot watch a process
    that is confined. An error that compute-sanitizer finds fails the file; figures that ncu cannot get are left out.
    """
    from autokernel import kernelfile
    from autokernel.evaluate import sanitizer, toolrun
    from autokernel.evaluate.client import JudgeOptions

    path = existing_file(file, "a kernel file")
    other = existing_file(against, "a kernel file to compare with") if against else None
    own = existing_file(problem, "a reference or a bench command") if problem else None
    try:
        kernel = kernelfile.read(path, own)
        incumbent = kernelfile.read(other, own) if other else None
    except kernelfile.NotAKernel as error:
        if as_json:
            click.echo(json.dumps(failure(Status.BUILD, "read", str(error))))
        raise
    if incumbent and incumbent.problem != kernel.problem:
        raise AutokernelError(f"expected two versions of one problem, got {kernel.problem} and {incumbent.problem}")
    if sanitize or ncu:
        toolrun.suits(kernel.problem)
    if sanitize:
        sanitizer.required(device)
    check_isolation(require_isolation, device)
    stages = Stages(to_stderr=as_json)
    if not as_json:
        versus = f" against {other.name}" if other else ""
        click.echo(f"{click.style(path.name, bold=True)}{versus} · {kernel.problem} · {kernel.backend} · {device}")
    options = JudgeOptions(device=device, min_gain=min_gain, require=require_isolation)
    evaluation, floor, assignment = _judge(kernel, incumbent, options, baselines, thorough, stages.on_event)
    trouble: AutokernelError | None = None
    if sanitize and evaluation.verdict.status is Status.PASS:
        try:
            evaluation = sanitizer.sanitized(evaluation, assignment, device, stages.on_event)
        except AutokernelError as error:  # the verdict stands, and is shown; what was asked for beyond it was not done
            trouble = error
            stages.undone(str(error))
    if ncu and evaluation.verdict.measurements is not None:
        evaluation = _counted(evaluation, assignment, device, stages)
    stages.end(evaluation)
    if as_json:
        click.echo(json.dumps(to_json(evaluation, floor)))
    else:
        show(evaluation, floor, console())
    if trouble:
        raise trouble
    if evaluation.verdict.status is not Status.PASS:
        raise click.exceptions.Exit(1)


def _counted(evaluation: Evaluation, assignment: Assignment, device: str, stages: Stages) -> Evaluation:
    """The evaluation of a passing file with what Nsight Compute counted, or why it did not."""
    from autokernel.evaluate import nsight

    measured = evaluation.verdict.measurements
    assert measured is not None
    stages.on_event({"event": "stage", "stage": "ncu", "done": 0, "of": 1})
    work = nsight.heaviest(assignment.target, measured)
    counted = nsight.count(assignment.source, assignment.target, device, work)
    if counted.reason:
        stages.undone(counted.reason)
    return dataclasses.replace(evaluation, verdict=nsight.joined(evaluation.verdict, counted))


def _judge(
    kernel: KernelFile,
    incumbent: KernelFile | None,
    options: JudgeOptions,
    baselines: bool,
    thorough: bool,
    on_event: Callable[[Mapping[str, Any]], None],
) -> tuple[Evaluation, Floor, Assignment]:
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
        floor = Floor(answer["floor_us"] or None, answer.get("bound_by"))
        return judge.evaluate(assignment, on_event), floor, assignment
