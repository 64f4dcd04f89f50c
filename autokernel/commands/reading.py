"""report, list and doctor: the commands that only look."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from autokernel.commands._common import Device, ask_device, console

if TYPE_CHECKING:
    from autokernel.doctor import Finding
    from autokernel.report import Report


@click.command()
@click.argument("place", required=False, metavar="[DIR|results.tsv]")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object; write no files.")
def report(place: str | None, as_json: bool) -> None:
    """Say what a run has won, and what it is worth.

    Reads a run's folder or its results.tsv; by default the run you are in, else the newest under results/. Prints a
    table, and writes report.md and progress.png beside the rows. Headline numbers are the champion against the
    baselines of one session.
    """
    from autokernel import report as library

    here = Path() if Path("run.json").is_file() else None  # in the folder of a run, that run is meant
    built = library.build(Path(place) if place else here or library.newest_run(Path("results")))
    if as_json:
        click.echo(json.dumps(built.to_json()))
    else:
        present_report(built)


def present_report(built: Report) -> None:
    """The table, then report.md and progress.png; a folder that cannot be written costs the files, not the table."""
    from autokernel import present

    present.show(built, console())
    try:
        for written in present.write(built):
            click.echo(f"wrote {written}")
    except OSError as error:
        click.echo(f"report.md and progress.png were not written: {error.filename}: {error.strerror}", err=True)


def _summary(source: Path) -> str:
    """The first sentence of a module's docstring, read without importing it."""
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=\.)\s+(?=[A-Z])", paragraph)[0].replace("``", "")


@click.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="Print names and summaries as one JSON object.")
def listing(as_json: bool) -> None:
    """List the problems, backends, proposers, strategies and models that are here."""
    from autokernel import assets, registry

    folders = {kind: assets.PACKAGE / kind for kind in registry.EXPORTS}
    tables = {kind: {n: _summary(folder / f"{n}.py") for n in registry.names(kind)} for kind, folder in folders.items()}
    for name in tables["problems"]:
        having = [b for b in registry.names("backends") if assets.starter(name, b)]
        tables["problems"][name] += f"  [{', '.join(having)}]" if having else ""
    tables["models"] = {str(path): _summary(path) for path in assets.models()}
    if as_json:
        click.echo(json.dumps(tables))
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for kind, entries in tables.items():
        table.add_row(
            f"[cyan]{kind}[/]", f"[dim]{escape(str(assets.root() / 'models'))}[/]" if kind == "models" else ""
        )
        for name, summary in entries.items():
            table.add_row(f"  {escape(Path(name).name)}", escape(summary))
    console().print(table)


@click.command()
@click.option("--device", type=Device(), default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as one JSON list.")
def doctor(device: str, as_json: bool) -> None:
    """Tell what this machine can do, and what is missing with the command that mends it.

    Exits 0, or 1 when nothing can run here at all.
    """
    import dataclasses

    from autokernel import doctor as library

    findings = library.examine(device, ask_device)
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(f) for f in findings]))
    else:
        _show(findings)
    if library.fatal(findings):
        raise click.exceptions.Exit(1)


def _show(findings: Sequence[Finding]) -> None:
    from rich.markup import escape
    from rich.table import Table

    marks = {"ok": "[green]✓[/]", "note": "[cyan]·[/]", "missing": "[yellow]![/]", "fatal": "[red]✗[/]"}
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for f in findings:
        table.add_row(marks[f.state], f.what, escape(f.detail))
        if f.mend:
            table.add_row("", "", f"[yellow]→ {escape(f.mend)}[/]")
    console().print(table)
    missing = sum(f.state in ("missing", "fatal") for f in findings)
    click.echo("everything needed is here" if not missing else f"{missing} missing: the arrows name what mends them")
