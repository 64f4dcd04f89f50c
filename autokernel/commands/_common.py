"""What the commands share: how options are read, the rows of one terminal, questions to a device process."""

from __future__ import annotations

import difflib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from autokernel import isolation, modelref
from autokernel.types import DTYPES, AutokernelError

if TYPE_CHECKING:
    from rich.console import Console

Function = TypeVar("Function", bound=Callable[..., Any])

PIPE_WIDTH = 300  # columns of a table that goes to a file or a pipe: none of its cells is cut
RANDOM_WEIGHTS = "autokernel.random_weights"  # of a command's context
UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Duration(click.ParamType):  # type: ignore[type-arg]  # not generic in click 8.1
    """A time span such as 90s, 30m, 10h or 1h30m, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        text = str(value).strip().lower()
        parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
        if not parts or "".join(n + u for n, u in parts) != text or len({u for _, u in parts}) != len(parts):
            self.fail(f"expected a time such as 90s, 30m, 10h or 1h30m, got '{value}'", param, ctx)
        seconds = sum(float(n) * UNITS_S[u] for n, u in parts)
        if seconds <= 0:
            self.fail(f"expected a time above zero, such as 30m, got '{value}'", param, ctx)
        return seconds


class Name(click.ParamType):  # type: ignore[type-arg]  # not generic in click 8.1
    """The name of an extension (or its dotted path): unknown ones are refused with the near match."""

    def __init__(self, kind: str, also: Sequence[str] = ()) -> None:
        self.kind = kind
        self.name = "name"
        self.also = tuple(also)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from autokernel import registry

        known = [*self.also, *registry.names(self.kind)]
        if value not in known and "." not in value:
            self.fail(registry.unknown(self.kind, value, known), param, ctx)
        return str(value)


class Device(click.ParamType):  # type: ignore[type-arg]  # not generic in click 8.1
    """cpu, cuda or cuda:N."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(r"cpu|cuda(:\d+)?", str(value)):
            self.fail(f"expected cpu, cuda or cuda:N, got '{value}'", param, ctx)
        if str(value).startswith("cuda") and not Path("/dev/nvidiactl").exists():
            self.fail(f"expected an NVIDIA GPU for '{value}', found none here; take --device cpu", param, ctx)
        return str(value)


def _settings(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    settings = {}
    for value in values:
        key, equals, setting = value.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"expected key=value, such as size=7b, got '{value}'", ctx, param)
        settings[key] = setting
    if ctx.meta.get(RANDOM_WEIGHTS):
        settings["random_weights"] = "true"
    return settings


def _random_weights(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Eager, so that it runs before the settings, of which it is one."""
    ctx.meta[RANDOM_WEIGHTS] = value


def model_options(function: Function) -> Function:
    """The options of every command that loads a model."""
    for option in (
        click.option("--device", type=Device(), default="cpu", show_default=True, help="cpu, cuda or cuda:N."),
        click.option("--dtype", type=click.Choice(DTYPES), default="fp32", show_default=True, help="Of the model."),
        click.option("--autocast", is_flag=False, flag_value="bf16", type=click.Choice(("bf16", "fp16")),
                     help="The model's parameters stay fp32, its forward runs under torch.autocast. Alone: bf16."),
        click.option("--backend", type=Name("backends"), help="Language of the kernels. [default: the device's]"),
        click.option("--set", "settings", multiple=True, callback=_settings, metavar="KEY=VALUE",
                     help="A setting of the model file, such as size=7b. Repeatable. Of hf: models: batch, seq, mask."),
        click.option("--random-weights", is_flag=True, is_eager=True, expose_value=False, callback=_random_weights,
                     help="Build an hf: model from its config alone."),
    ):  # fmt: skip
        function = option(function)
    return function


def _levels(ctx: click.Context, param: click.Parameter, text: str | None) -> frozenset[str]:
    try:
        return isolation.parse(text) if text is not None else frozenset()
    except AutokernelError as error:
        raise click.BadParameter(str(error), ctx, param) from error


isolation_option = click.option(
    "--require-isolation", is_flag=False, flag_value="all", metavar="[LEVELS]", callback=_levels,
    help="Refuse to run where one of these levels of isolation is missing, such as net,landlock; alone: all of them.",
)  # fmt: skip


def check_isolation(required: frozenset[str], device: str) -> None:
    """Before anything runs: AutokernelError for a required level that is missing here; for others, one loud line."""
    levels = ask_device("isolation", device)["levels"]
    isolation.demand(required, levels)
    if told := isolation.warning(levels):
        click.echo(click.style(f"! {told}", fg="yellow"), err=True)


def console() -> Console:
    """A console for tables: as wide as the terminal, or wide enough for one where there is none."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal else Console(width=max(found.width, PIPE_WIDTH))


def existing_file(path: str, what: str) -> Path:
    """The path of a file that is there; AutokernelError with the near match of its folder otherwise."""
    file = Path(path)
    if file.is_file():
        return file
    if file.is_dir():
        raise AutokernelError(f"expected {what}, got the folder {path}; name a file in it")
    folder = file.parent
    neighbours = [p.name for p in folder.glob("*.py")] if folder.is_dir() else []
    near = difflib.get_close_matches(file.name, neighbours, n=1)
    hint = f"did you mean {folder / near[0]}?" if near else f"looked in {folder.absolute()}"
    raise AutokernelError(f"expected {what}, found no file {path}; {hint}")


def existing_model(model: str) -> Path:
    """What names a model: the path of a file that is there, or ``hf:NAME_OR_PATH``, which its own process looks up."""
    if (name := modelref.huggingface(model)) is None:
        return existing_file(model, "a model file (class Model, get_inputs, get_init_inputs) or hf:NAME_OR_PATH")
    if not name:
        raise AutokernelError("expected the id of a Hugging Face model or a folder behind hf:, such as hf:gpt2")
    return Path(model)


def ask_device(*arguments: str, stdin: str = "") -> Mapping[str, Any]:
    """The answer of ``python -m autokernel.probe`` to one question. AutokernelError when it could not answer."""
    command = [sys.executable, "-m", "autokernel.probe", *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    lines = done.stdout.strip().splitlines()
    if done.returncode == 0 and lines:
        answer: Mapping[str, Any] = json.loads(lines[-1])
        return answer
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    raise AutokernelError(last if done.returncode == 2 else f"the device process failed: {last}; see autokernel doctor")
