"""run: profile, extract, then propose, judge, keep or revert until a limit is reached."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autokernel.commands._common import (
    Duration,
    Name,
    check_isolation,
    console,
    existing_model,
    isolation_option,
    model_options,
)
from autokernel.commands.proposing import proposer_options, spending_options
from autokernel.commands.winning import prove
from autokernel.redact import redact
from autokernel.types import AutokernelError

if TYPE_CHECKING:
    from autokernel.run.history import Row


@click.command()
@click.argument("model", metavar="MODEL.py")
@click.option("--budget", type=Duration(), help="Wall time of this invocation: 90s, 30m, 10h, 1h30m. [default: none]")
@click.option("--max-experiments", type=click.IntRange(min=1), help="Experiments of the whole run. [default: no limit]")
@spending_options
@click.option("--run", "name", help="Folder under --results. [default: the model's name and the device]")
@click.option("--fresh", is_flag=True, help="Start a new numbered run instead of going on with the last one.")
@click.option("--results", "results_dir", type=click.Path(path_type=Path), default=Path("results"), show_default=True,
              help="Where runs are kept.")  # fmt: skip
@model_options
@proposer_options
@click.option("--strategy", type=Name("strategies"), default="greedy", show_default=True,
              help="Which version to edit next.")  # fmt: skip
@click.option("--min-gain", type=click.FloatRange(0, 1), default=0.005, show_default=True,
              help="Smallest gain that is kept, as a fraction.")  # fmt: skip
@click.option("--aa-rate", type=click.FloatRange(0, 1), default=0.05, show_default=True,
              help="Share of experiments that judge the champion against itself.")  # fmt: skip
@click.option("--move-on-reverts", type=click.IntRange(min=1), default=5, show_default=True,
              help="Leave a target after so many reverts in a row.")  # fmt: skip
@click.option("--move-on-peak", type=click.FloatRange(0, 100), default=90.0, show_default=True,
              help="Leave a target at this percentage of peak.")  # fmt: skip
@click.option("--move-on-time", type=Duration(), default="2h", show_default=True,
              help="Leave a target after this time on it.")  # fmt: skip
@click.option("--move-on-speedup", type=click.FloatRange(min=1), default=2.0, show_default=True,
              help="Leave a target at this speedup over its best baseline.")  # fmt: skip
@click.option("--sanitize", is_flag=True, help="Before a candidate is kept, ask compute-sanitizer. GPU only.")
@isolation_option
@click.option("--seed", type=int, default=0, show_default=True, help="Of the proposer's choices.")
@click.option("--verify/--no-verify", "verified", default=True, show_default=True,
              help="At the end, measure the whole model with the winning kernels in it.")  # fmt: skip
@click.option("--train", is_flag=True, help="Verify for training: every gradient, and the time of whole steps.")
@click.option("--plain", is_flag=True, help="One line an experiment, also on a terminal.")
@click.option("--quiet", is_flag=True, help="No progress; only the report at the end.")
def run(
    model: str, require_isolation: frozenset[str], verified: bool, train: bool, plain: bool, quiet: bool, **options: Any
) -> None:
    """Make MODEL.py faster: profile it, extract its hot spots, improve them until a limit is reached.

    In place of MODEL.py stands hf:NAME_OR_PATH for a transformers model, or the folder of a run, such as
    `autokernel init` makes: that run goes on. The same command again resumes where it stopped, also after a crash.
    Ends with whole forwards of the model with and without the kernels that won, and the report. What is written into
    HINTS.md of the run's folder is told to the proposer with its next brief.
    """
    from autokernel import present, report
    from autokernel.display import open_display
    from autokernel.evaluate import sanitizer
    from autokernel.run import session
    from autokernel.run.orchestrator import MoveOn

    path = Path(model)
    if not (path / "run.json").is_file():
        path = existing_model(model)
    if options["sanitize"]:
        sanitizer.required(options["device"])
    check_isolation(require_isolation, options["device"])
    rules = MoveOn(
        reverts=options.pop("move_on_reverts"),
        peak_pct=options.pop("move_on_peak"),
        seconds=options.pop("move_on_time"),
        speedup=options.pop("move_on_speedup"),
    )
    chosen = session.RunOptions(
        model=path, move_on=rules, budget_s=options.pop("budget"), require=require_isolation, **options
    )
    with open_display(plain, quiet) as display:
        summary = session.start(chosen, display)
    if verified and summary.signal is None and summary.reason.kind != "proposer":
        verify_winners(summary.folder, summary.rows, quiet, train=train)
    if not summary.rows:
        click.echo(f"no experiment was made; the workspace is {summary.folder}")
    elif summary.signal is None:
        # In a process of its own: the chart's libraries would be most of this one's memory.
        subprocess.run([sys.executable, "-m", "autokernel", "report", str(summary.folder)], check=False)
    else:  # whoever stops a run wants the terminal back: the table, and no chart
        present.show(report.build(summary.folder), console())
    if summary.reason.kind == "proposer":
        raise AutokernelError(f"{summary.reason.message}; what was done is kept, and the same command again goes on")
    if summary.signal is not None:
        click.echo(f"stopped; to go on: {_command_line()}", err=True)
        raise click.exceptions.Exit(128 + summary.signal)


def verify_winners(folder: Path, rows: Sequence[Row], quiet: bool, *, train: bool = False) -> None:
    """The last act of a run: what its kernels are worth in the whole model, unless that is known; and where none won,
    what torch.compile alone is worth. A proof that cannot be had is said, and costs the run nothing.
    """
    from autokernel import proof

    known = proof.standing(folder, rows)
    if not rows or not proof.has_model(folder) or (known is not None and known.train == train):
        return
    try:
        prove(folder, train=train, quick=True, quiet=quiet)
    except AutokernelError as error:
        click.echo(f"not verified on the whole model: {error}; try: autokernel verify --run {folder}", err=True)


def _command_line() -> str:
    """What was typed, less --fresh: it would start anew."""
    return redact(shlex.join(["autokernel", *(word for word in sys.argv[1:] if word != "--fresh")]))
