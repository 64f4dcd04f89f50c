"""verify and export: what a run won, proved on its model and handed over."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from autokernel.commands._common import console
from autokernel.proof import BESIDE
from autokernel.types import AutokernelError


@click.command()
@click.argument("model", required=False, metavar="[MODEL.py]")
@click.option("--run", "folder", type=click.Path(path_type=Path), metavar="DIR",
              help="A run's folder. [default: the newest]")  # fmt: skip
@click.option("--kernel", "kernels", multiple=True, metavar="TARGET",
              help="Only this kernel. Repeatable. [default: all]")  # fmt: skip
@click.option(
    "--mode",
    "modes",
    multiple=True,
    type=click.Choice(tuple(BESIDE)),
    help="Only beside eager (ours), torch.compile, or CUDA graphs. Repeatable. [default: all of the device]",
)
@click.option("--train", is_flag=True,
              help="For training: compare the gradient of every parameter, too, and time whole steps.")  # fmt: skip
@click.option("--autocast", is_flag=False, flag_value="bf16", type=click.Choice(("bf16", "fp16")),
              help="Compare and time under torch.autocast. Alone: bf16. [default: as the run]")  # fmt: skip
@click.option("--quick", is_flag=True, help="Fewer blocks: wider intervals, in less time.")
@click.option("--diagnose", is_flag=True, help="Each kernel alone: which one breaks the outputs?")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as one JSON object.")
def verify(
    model: str | None, folder: Path | None, kernels: tuple[str, ...], modes: tuple[str, ...], train: bool,
    autocast: str | None, quick: bool, diagnose: bool, as_json: bool,
) -> None:  # fmt: skip
    """Prove what a run won on the whole model: right outputs, engaged kernels, faster forwards, or an honest no.

    Kernels are added one at a time and stay only where they pay end to end. Times eager, torch.compile, on a GPU
    torch.compile with CUDA graphs, and ours beside each of them against each other, and writes verification.json, which
    autokernel.apply and the report read. Exits 1 where outputs are wrong.
    """
    from autokernel import present, proof

    place = find_run(folder)
    prove(
        place,
        model=model,
        kernels=kernels,
        modes=modes,
        train=train,
        autocast=autocast,
        quick=quick,
        diagnose=diagnose,
        quiet=as_json,
    )
    if diagnose:
        alone = json.loads((place / "diagnosis.json").read_text())["alone"]
        if as_json:
            click.echo(json.dumps(alone))
        broken = [name for name, agreement in alone.items() if not agreement["passed"]]
        for name, agreement in {} if as_json else alone.items():
            word = "right" if agreement["passed"] else f"WRONG: {agreement['worst']}"
            own = f"the original by {agreement['original_error']:.1e}"
            click.echo(f"{name:<20} off by {agreement['error']:.1e} ({own})  {word}")
        raise click.exceptions.Exit(1 if broken else 0)
    found = proof.read(place)
    assert found is not None, "the verifier ended well"
    if as_json:
        click.echo((place / proof.FILE).read_text())
    else:
        present.show_proof(found, console())
        if any(step["applied"] for steps in found.steps.values() for step in steps):
            click.echo('next: autokernel.apply(model, run="...") in Python, or autokernel export --to DIR')
    if not all(agreement["passed"] for agreement in found.outputs.values()):
        raise click.exceptions.Exit(1)


@click.command()
@click.option("--run", "folder", type=click.Path(path_type=Path), metavar="DIR",
              help="A run's folder. [default: the newest]")  # fmt: skip
@click.option(
    "--to", required=True, type=click.Path(path_type=Path), metavar="DIR", help="A new folder for the package."
)
@click.option("--name", help="Name of the package. [default: the run's name and _kernels]")
def export(folder: Path | None, to: Path, name: str | None) -> None:
    """Write what a run won as a small Python package that does not need autokernel.

    Kernels, a function a problem that takes the kernel for the calls it was judged on and plain PyTorch for all others,
    tests, and where it all came from.
    """
    place = find_run(folder)
    command = [sys.executable, "-m", "autokernel.engage.export", "--run", str(place), "--to", str(to)]
    done = subprocess.run(command + (["--name", name] if name else []), capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise AutokernelError(last)
    package = Path(done.stdout.strip().splitlines()[-1])
    click.echo(f"wrote {package}; try it: cd {to} && python -m pytest -q, or pip install {to}")


def find_run(folder: Path | None) -> Path:
    """The run that is meant: the one named, the one we are in, or the newest."""
    from autokernel import report

    if folder is not None:
        return folder
    return Path() if Path("run.json").is_file() else report.newest_run(Path("results"))


def prove(
    folder: Path, *, model: str | None = None, kernels: tuple[str, ...] = (), modes: tuple[str, ...] = (),
    train: bool = False, autocast: str | None = None, quick: bool = False, diagnose: bool = False, quiet: bool = False,
) -> None:  # fmt: skip
    """Runs the verifier's process to its end. AutokernelError: what it could not do, in one line."""
    from autokernel.display import open_display
    from autokernel.run import workspace

    command = [sys.executable, "-m", "autokernel.engage.verifier", "--run", str(folder)]
    command += ["--model", model] if model else []
    command += ["--autocast", autocast] if autocast else []
    for name in kernels:
        command += ["--kernel", name]
    for mode in modes:
        command += ["--mode", mode]
    command += [f"--{flag}" for flag, on in (("train", train), ("quick", quick), ("diagnose", diagnose)) if on]
    with tempfile.TemporaryDirectory(prefix="autokernel-verify-") as scratch, open_display(quiet=quiet) as display:
        workspace.work(command, Path(scratch), display.on_event)
