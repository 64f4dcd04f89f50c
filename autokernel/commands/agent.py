"""init, try, status, history, show, diff, hint, mcp: a run's folder as a coding agent, or a person, works in it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autokernel.commands._common import ask_device, console, existing_file, existing_model, model_options
from autokernel.types import AutokernelError, Status

if TYPE_CHECKING:
    from autokernel.agent.tryout import Tried
    from autokernel.run.events import Event
    from autokernel.run.history import Row

run_option = click.option(
    "--run", "folder", type=click.Path(file_okay=False, path_type=Path), metavar="DIR",
    help="Folder of a run. [default: the one you are in, else the newest under results/]",
)  # fmt: skip
json_option = click.option("--json", "as_json", is_flag=True, help="The last line of stdout is one JSON object.")


class Progress:
    """Says on standard error what is being done, one line a step: it works without a terminal."""

    def __init__(self) -> None:
        self._last = ""

    def on_event(self, event: Event) -> None:
        from autokernel.run import events

        said = ""
        if isinstance(event, events.ExperimentStarted):
            said = f"experiment {event.number}: {event.idea}"
        elif isinstance(event, events.JudgeStage):
            said = f"  {event.stage}"
        elif isinstance(event, events.ProfileProgress):
            said = f"{event.phase}: {event.message}" if event.phase != "time" else "time: forward passes"
        elif isinstance(event, events.Note):
            said = f"note: {event.message}"
        if said and said != self._last:
            self._last = said
            click.echo(said, err=True)


def _ended_by_signals(work: Callable[[], Any]) -> Any:
    """What ``work`` returns; a signal that ended it becomes the exit status that shells expect."""
    from autokernel.run.signals import Interrupted

    try:
        return work()
    except Interrupted as stop:
        click.echo(f"{stop}: stopped; the same command again goes on from here", err=True)
        raise click.exceptions.Exit(128 + stop.number) from None


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--model", metavar="MODEL.py",
              help="Profile this model (or hf:NAME_OR_PATH) and take its most promising target.")  # fmt: skip
@click.option("--target", metavar="NAME", help="With --model: take this target instead.")
@click.option("--kernel", metavar="FILE", help="Start from this kernel.")
@click.option("--reference", metavar="FILE", help="What --kernel must compute: reference() or Model, and its inputs.")
@click.option(
    "--bench", metavar="CMD", help="Judge --kernel by this command: exit status 0 is correct, 'metric: N ms'."
)
@click.option("--higher-is-better", is_flag=True, help="The metric of --bench is a rate.")
@click.option("--bench-limit", type=click.FloatRange(min=1), default=120.0, show_default=True,
              help="Seconds that one run of --bench may take.")  # fmt: skip
@click.option("--context", "extras", multiple=True, type=click.Path(exists=True, path_type=Path), metavar="PATH",
              help="Also copy this file or folder into context/. Repeatable.")  # fmt: skip
@model_options
@click.option("--min-gain", type=click.FloatRange(0, 1), default=0.005, show_default=True,
              help="Smallest gain that is kept, as a fraction.")  # fmt: skip
def init(folder: Path, **options: Any) -> None:
    """Make DIR, a self-contained folder in which a coding agent makes one kernel faster.

    It holds TASK.md, program.md, the one editable kernel, HINTS.md, ITERATIONS.md, context/, and the run's own git.
    Give --model MODEL.py (or hf:NAME_OR_PATH), or --kernel FILE of a known problem, with its own --reference, or with
    its own --bench.
    """
    from autokernel.agent import create, texts

    def path(name: str, what: str) -> Path | None:
        given = options.pop(name)
        return existing_file(given, what) if given else None

    model = options.pop("model")

    request = create.Request(
        folder=folder,
        model=existing_model(model) if model else None,
        kernel=path("kernel", "a kernel file"),
        reference=path("reference", "a reference file"),
        bench_limit_s=options.pop("bench_limit"),
        context=options.pop("extras"),
        **options,
    )

    def ask(problem: str, device: str, given: str) -> Mapping[str, Any]:
        return ask_device("workloads", problem, device, stdin=given)

    place, baseline = _ended_by_signals(lambda: create.create(request, Progress(), ask))
    assert baseline.verdict.measurements is not None
    click.echo(f"made {folder}: {place.targets[0].file} takes {texts.measured(baseline.verdict.measurements)}")
    click.echo(f"next: cd {folder}, read TASK.md, edit {place.targets[0].file}, autokernel try -m 'what and why'")


@click.command(name="try")
@click.option("-m", "--message", required=True, metavar="TEXT", help="What was changed, and why it should help.")
@run_option
@json_option
def try_(message: str, folder: Path | None, as_json: bool) -> None:
    """Judge the edited kernel as one experiment: keep it, or put the file back.

    Exits 0 when the edit is correct (kept or not), 1 when it is not, and 2 when there was nothing to judge.
    """
    from autokernel.agent import place, tryout

    found = place.find(folder)
    tried: Tried = _ended_by_signals(lambda: tryout.once(found, message, Progress()))
    click.echo(json.dumps(outcome(tried)) if as_json else explain(tried))
    if tried.experiment.verdict.status is not Status.PASS:
        raise click.exceptions.Exit(1)


def outcome(tried: Tried) -> dict[str, Any]:
    """What ``try --json`` prints: ratios above 1 are faster than the version that stood."""
    experiment, stands = tried.experiment, tried.stands.verdict.measurements
    verdict, comparison, measured = experiment.verdict, experiment.comparison, experiment.verdict.measurements
    assert stands is not None
    return {
        "experiment": experiment.number,
        "target": experiment.target.name,
        "decision": experiment.decision,
        "status": verdict.status.value,
        "stage": verdict.stage,
        "reason": comparison.reason if comparison else verdict.reason,
        "speedup": math.exp(comparison.log_ratio) if comparison else None,
        "ci_low": math.exp(max(-700.0, comparison.ci_low)) if comparison else None,
        "ci_high": math.exp(min(700.0, comparison.ci_high)) if comparison else None,
        "latency_us": measured.latency_us if measured else None,
        "pct_peak": measured.pct_peak if measured else None,
        "errors": dict(verdict.errors),
        "log_tail": verdict.log_tail,
        "commit": experiment.commit,
        "champion": {
            "experiment": tried.stands.number,
            "latency_us": stands.latency_us,
            "speedup_vs_eager": stands.speedup_vs_eager,
            "speedup_vs_best": stands.speedup_vs_best,
            "pct_peak": stands.pct_peak,
        },
        "due": tried.next_step,
        "seconds": round(experiment.seconds, 3),
    }


def explain(tried: Tried) -> str:
    """What an agent needs to go on: verdict, interval, position, and what to try."""
    from autokernel.agent import texts

    experiment, verdict = tried.experiment, tried.experiment.verdict
    file, number = experiment.target.file, experiment.number
    lines = [f"experiment {number}: {experiment.decision}: {texts.result(experiment)}"]
    if verdict.status is not Status.PASS and verdict.log_tail.strip():
        lines += ["  log:", *(f"  | {line}" for line in verdict.log_tail.strip().splitlines()[-12:])]
    if experiment.decision == "keep":
        lines.append(f"{file} is the version that stands now (commit {experiment.commit[:12]})")
    else:
        lines.append(f"{file} was put back; your version is experiments/{number}/candidate.py")
    assert tried.stands.verdict.measurements is not None
    lines.append(f"stands: experiment {tried.stands.number}, {texts.measured(tried.stands.verdict.measurements)}")
    lines.append(f"next: {tried.next_step}")
    lines.append(f"write what you learned into ITERATIONS.md, iteration {number}")
    return "\n".join(lines)


@click.command()
@run_option
@json_option
def status(folder: Path | None, as_json: bool) -> None:
    """Say where a run stands: its kernels' times, what was tried, what an edit waits for."""
    from autokernel.agent import look, place

    found = look.status(place.read(place.find(folder)))
    click.echo(json.dumps(found.to_json()) if as_json else found.text())


@click.command(name="history")
@run_option
@click.option("--last", type=click.IntRange(min=1), help="Only the last N experiments. [default: all]")
@json_option
def history_(folder: Path | None, last: int | None, as_json: bool) -> None:
    """List a run's experiments, one line each."""
    from autokernel.agent import place

    rows = place.read(place.find(folder)).rows()[-(last or 0) :]
    if as_json:
        click.echo(json.dumps([row.to_json() for row in rows]))
    elif rows:
        _show_rows(rows)
    else:
        click.echo("no experiment yet")


def _show_rows(rows: Sequence[Row]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("#", "target", "decision", "status", "speedup", "time"):
        table.add_column(heading, justify="right" if heading in ("#", "speedup", "time") else "left", no_wrap=True)
    table.add_column("idea", overflow="fold")
    for row in rows:
        speedup = "" if row.speedup is None else f"{row.speedup:.3f}x"
        time = "" if row.latency_us is None else f"{row.latency_us:,.1f} us"
        table.add_row(str(row.experiment), row.target, row.decision, row.status, speedup, time, escape(row.idea))
    console().print(table)


@click.command()
@click.argument("number", type=click.IntRange(min=1), metavar="N")
@run_option
@json_option
def show(number: int, folder: Path | None, as_json: bool) -> None:
    """Tell all about experiment N: idea, verdict, comparison, log."""
    from autokernel.agent import look, place

    found = look.experiment(place.read(place.find(folder)), number)
    click.echo(json.dumps(found.to_json()) if as_json else found.text())


@click.command()
@click.argument("number", type=click.IntRange(min=1), metavar="N")
@run_option
def diff(number: int, folder: Path | None) -> None:
    """Print the change of experiment N against the version that stood then, as a unified diff."""
    from autokernel.agent import look, place

    click.echo(look.diff(place.read(place.find(folder)), number), nl=False)


@click.command()
@click.argument("text", nargs=-1, required=True)
@run_option
def hint(text: tuple[str, ...], folder: Path | None) -> None:
    """Give a run a hint, such as "try split-K": it is read before the next proposal, also while the run goes on."""
    from autokernel.agent import place
    from autokernel.run.desk import HINTS

    words = " ".join(" ".join(text).split())
    if not words:
        raise AutokernelError("a hint was expected, such as: autokernel hint 'try split-K'; it is empty")
    path = place.find(folder) / HINTS
    torn = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:  # one write: whoever reads it meanwhile sees the whole line or none
        os.write(descriptor, f"{chr(10) if torn else ''}- {words}\n".encode("utf-8", "replace"))
    finally:
        os.close(descriptor)
    click.echo(f"added to {path}")


@click.command()
@click.argument("folder", required=False, metavar="[DIR]", type=click.Path(path_type=Path))
def mcp(folder: Path | None) -> None:
    """Serve a run's folder to an agent over the Model Context Protocol, on standard input and output.

    Tools: bench, try, history, brief. Needs pip install 'autokernel[mcp]'.
    """
    from autokernel.agent import place, server

    server.serve(place.find(folder), outcome)


COMMANDS = (init, try_, status, history_, show, diff, hint, mcp)
