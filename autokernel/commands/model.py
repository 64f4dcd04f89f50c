"""profile and extract: what a model spends its time on, and its hot spots as kernel files."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from autokernel import modelref
from autokernel.commands._common import console, existing_model, model_options
from autokernel.types import AutokernelError, is_file

LEVERS_S = 60.0  # for each lever at most: compiling a large model takes minutes
WHAT_IFS = ("1.5", "2", "3", "5", "floor")
TRAIN_WHAT_IFS = ("2", "floor")  # beside the times of a backward there is room for no more


def profile_options(function: Any) -> Any:
    for option in (
        click.option(
            "--warmup", type=click.IntRange(min=0), default=5, show_default=True, help="Unmeasured forwards, at most."
        ),
        click.option(
            "--iters",
            type=click.IntRange(min=1),
            default=10,
            show_default=True,
            help="Measured forwards, at most: a slow model has fewer, at least 3.",
        ),
        click.option(
            "--trace", type=click.Path(dir_okay=False, path_type=Path), help="Also write a Chrome trace here."
        ),
        click.option(
            "--compile-log",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Also write torch.compile's graph breaks and recompilations here, with reasons.",
        ),
        click.option(
            "--memory",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Also write a snapshot of one forward's CUDA memory here.",
        ),
    ):
        function = option(function)
    return function


@click.command()
@click.argument("model", metavar="MODEL.py")
@model_options
@profile_options
@click.option("--train", is_flag=True, help="Profile a training step: forward, loss, backward.")
@click.option("--top", type=click.IntRange(min=1), default=20, show_default=True, help="Rows of the table.")
@click.option("--levers/--no-levers", default=True, show_default=True,
              help="Also try what costs nothing: torch.compile, attention backends.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the whole profile as one JSON object.")
def profile(model: str, top: int, levers: bool, as_json: bool, **options: Any) -> None:
    """Rank what MODEL.py (or hf:NAME_OR_PATH, a transformers model) spends its time on by what can be won.

    Rows are regions that a kernel file can replace, with the speedup of the whole model if they were 1.5, 2, 3 or 5
    times faster or at their roofline floor; then the operations that no problem covers. Shares add up to 100 %.
    With --train a step is the forward, a loss (the model's own, or a sum of squares) and its backward. What could be
    won is then of the forward alone, and the backward of each region stands beside it: no kernel replaces that.
    """
    with tempfile.TemporaryDirectory(prefix="autokernel-profile-") as out:
        found = run_worker(model, Path(out), quiet=as_json, levers_s=LEVERS_S if levers else 0.0, **options)
    if as_json:
        click.echo(json.dumps(found))
    else:
        show_profile(found, top)


@click.command()
@click.argument("model", metavar="MODEL.py")
@model_options
@profile_options
@click.option("--top", type=click.IntRange(min=1), help="Only the first N targets. [default: all]")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder. [default: MODEL-DEVICE-kernels]")
@click.option("--force", is_flag=True, help="Replace files that are there.")
def extract(model: str, top: int | None, out: Path | None, force: bool, **options: Any) -> None:
    """Write MODEL.py's hot spots as kernel files, each with its real workloads.

    Every file runs by itself and can be edited and judged: autokernel bench FILE.
    """
    out = out or Path(f"{modelref.title(model)}-{str(options['device']).replace(':', '')}-kernels")
    with tempfile.TemporaryDirectory(prefix="autokernel-extract-") as folder:
        found = run_worker(model, Path(folder), quiet=False, **options)
        names = [target["name"] for target in found["targets"]][:top]
        if not names:
            raise AutokernelError(
                f"{model}: no region was found that a problem covers; see `autokernel profile {model}`"
            )
        there = [out / f"{name}.py" for name in names if (out / f"{name}.py").exists()]
        if there and not force:
            raise AutokernelError(
                f"{there[0]} is there already; take --force to replace it or --out for another folder"
            )
        out.mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copyfile(Path(folder, "kernels", f"{name}.py"), out / f"{name}.py")
            click.echo(f"wrote {out / f'{name}.py'}")
            problem = next(target["problem"] for target in found["targets"] if target["name"] == name)
            if is_file(problem):  # the region is a problem of its own, which says what is right
                (out / problem).parent.mkdir(exist_ok=True)
                shutil.copyfile(Path(folder, problem), out / problem)
    click.echo(f"judge one: autokernel bench {out / f'{names[0]}.py'}")


def run_worker(model: str, out: Path, quiet: bool, **options: Any) -> Mapping[str, Any]:
    """Profiles the model in a process of its own, its files below ``out``; returns profile.json's object."""
    from autokernel.display import open_display
    from autokernel.run import workspace

    path = existing_model(model)
    backend = options["backend"] or ("cpp" if options["device"] == "cpu" else "triton")
    arguments = workspace.worker_arguments(
        path, options["device"], options["dtype"], backend, options["settings"], options["autocast"]
    )
    arguments += ["--train"] if options.get("train") else []
    arguments += ["--out", str(out), "--warmup", str(options["warmup"]), "--iters", str(options["iters"])]
    for name in ("trace", "compile_log", "memory"):
        if options[name]:
            arguments += [f"--{name.replace('_', '-')}", str(options[name])]
    if options.get("levers_s"):
        arguments += ["--levers-s", str(options["levers_s"])]
    with open_display(quiet=quiet) as display:
        workspace.work([sys.executable, "-m", "autokernel.regions.worker", *arguments], out, display.on_event)
    return workspace.read_json(out / "profile.json")


def show_profile(found: Mapping[str, Any], top: int) -> None:
    """The table of a profile: regions first as they are ranked, the rest by aten operation, then the sum."""
    from rich.markup import escape
    from rich.table import Table

    from autokernel.wording import span

    for line in lever_lines(found["levers"]):
        click.echo(line)
    rows: Sequence[Mapping[str, Any]] = found["rows"]
    train: bool = found["train"]
    what_ifs = TRAIN_WHAT_IFS if train else WHAT_IFS
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("#", justify="right")
    table.add_column("target", no_wrap=True)
    table.add_column("problem", no_wrap=True)
    for heading in (
        "calls",
        *(("forward", "share", "backward", "share") if train else ("time", "share")),
        "of ceiling",
        "bound",
        "headroom",
        *(f"@{w}x" for w in what_ifs[:-1]),
        "@floor",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    regions = [row for row in rows if row["kind"] == "region"]
    gradients = {row["name"]: row for row in rows if row["kind"] == "gradient"}

    def times(row: Mapping[str, Any]) -> list[str]:
        """Time and share; of a training step the forward's, then the backward's."""
        here = [span(row["time_us"]), f"{row['share']:.1%}"]
        if not train:
            return here
        if row["direction"] == "backward":
            return ["", "", *here]
        back = gradients.get(row["name"]) if row["kind"] == "region" else None
        return [*here, *([span(back["time_us"]), f"{back['share']:.1%}"] if back else ["", ""])]

    for rank, row in enumerate(regions[:top], start=1):
        what_if = row.get("what_if") or {}
        table.add_row(
            str(rank), f"[cyan]{escape(row['name'])}[/]", escape(row["problem"] or ""), str(row["calls"]),
            *times(row), _percent(row["pct_of_ceiling"]), row["bound"] or "–",
            _ratio(row["headroom"]), *(_ratio(what_if.get(w)) for w in what_ifs),
        )  # fmt: skip
    others = sorted((row for row in rows if row["kind"] in ("op", "wait")), key=lambda row: -row["time_us"])
    room = max(top - len(regions), 3)
    for row in others[:room]:
        what = "waiting" if row["kind"] == "wait" else "not covered"
        table.add_row("", f"[dim]{escape(row['name'])}[/]", f"[dim]{what}[/]", str(row["calls"]), *times(row))

    def sums(these: Sequence[Mapping[str, Any]]) -> list[str]:
        found: list[str] = []
        for direction in ("forward", "backward") if train else ("forward",):
            mine = [row for row in these if row["direction"] == direction]
            found += [span(sum(row["time_us"] for row in mine)), f"{sum(row['share'] for row in mine):.1%}"]
        return found

    hidden = regions[top:] + others[room:]
    if hidden:
        unseen = [gradients[row["name"]] for row in regions[top:] if row["name"] in gradients]
        table.add_row("", f"[dim]{len(hidden)} more[/]", "", "", *sums([*hidden, *unseen]))
    table.add_row("", "[bold]total[/]", "", "", *(f"[bold]{each}[/]" for each in sums(rows)))
    console().print(table)
    _explain(found, regions)


def _explain(found: Mapping[str, Any], regions: Sequence[Mapping[str, Any]]) -> None:
    from autokernel.wording import span

    settings = " ".join(f"{k}={v}" for k, v in found["settings"].items())
    breaks = found["graph_breaks"]
    mix = " + ".join(map(str, found["round"]))
    each = "training step" if found["train"] else "forward"
    what = f"one eager {each} takes" if found["round"] == [1] else f"one round of {mix} eager {each}s takes"
    dtype = found["dtype"] + (f" under {found['autocast']} autocast" if found["autocast"] else "")
    click.echo(
        f"\n{found['model_name']} {settings}{' ' if settings else ''}on {found['device']}, {dtype}: {what} "
        f"{span(found['forward_us'])}" + (f"; {breaks} graph break(s)" if breaks else "")
    )
    for note in found["notes"]:
        click.echo(f"note: {note}")
    if (waiting := found["waiting"]) and waiting["advice"]:
        click.echo(waiting["advice"])
    if found["train"]:
        click.echo("@2x: speedup of the whole step if this row's forward were 2 times faster; @floor: at its floor")
        click.echo(
            "no kernel replaces a backward: where one is applied, the gradient first runs the reference's forward "
            "again, about the row's forward time, which is not in these figures; `autokernel verify --train` times it"
        )
    else:
        click.echo("@2x: speedup of the whole model if this row were 2 times faster; @floor: at its roofline floor")
    if not regions:
        click.echo("nothing here is a region that a problem covers: there is nothing for autokernel to do")
        return
    best = regions[0]
    floor = (best.get("what_if") or {}).get("floor")
    whole = "step, if its gradient cost no more than now" if found["train"] else "model"
    worth = f", worth up to {floor:.2f}x on the whole {whole}" if floor else ""
    click.echo(f"start with {best['name']}: {best['share']:.0%} of the time{worth}; next: {_next(found)}")


def _next(found: Mapping[str, Any]) -> str:
    """The command that makes this very model faster."""
    words = ["autokernel", "run", found["model"]]
    for key, value in found["settings"].items():
        words += ["--random-weights"] if (key, value) == ("random_weights", "true") else ["--set", f"{key}={value}"]
    words += [] if found["device"] == "cpu" else ["--device", found["device"]]
    words += [] if found["dtype"] == "fp32" else ["--dtype", found["dtype"]]
    words += ["--autocast", found["autocast"]] if found.get("autocast") else []
    words += ["--train"] if found.get("train") else []
    return shlex.join(words)


def lever_lines(levers: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the model gains without a new kernel, a line a kind of lever."""
    said = {"compile": "before any kernel: ", "attention": "attention backends: ", "information": "other numbers: "}

    def one(lever: Mapping[str, Any]) -> str:
        alone = " alone" if lever["kind"] == "compile" else ""
        if lever["speedup"] is None:
            return f"{lever['name']} skipped ({lever['skipped']})"
        return f"{lever['name']}{alone}: {lever['speedup']:.2f}x [{lever['low']:.2f}, {lever['high']:.2f}]"

    lines = ((head, [one(lever) for lever in levers if lever["kind"] == kind]) for kind, head in said.items())
    return [head + "; ".join(parts) for head, parts in lines if parts]


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}x"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} %"
