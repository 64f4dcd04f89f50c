"""Load a model file: class ``Model``, ``get_inputs()`` and, for a constructor with arguments, ``get_init_inputs()``.

This is KernelBench's convention, so each of its problems is a valid model file. One hook is added:
``configure(**settings)`` receives the ``--set NAME=VALUE`` pairs, converted to the types of its defaults.
Whatever goes wrong in the user's own code becomes one AutokernelError that shows the user's own frames only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from autokernel.problems._common import TORCH_DTYPES
from autokernel.types import AutokernelError, DType

SEED = 0
FRAMES = 3  # of the user's traceback that are shown
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode on its device, and the arguments of one forward."""

    name: str
    path: Path
    module: torch.nn.Module
    inputs: tuple[Any, ...]
    device: torch.device
    dtype: DType
    make_inputs: Callable[[int], tuple[Any, ...]]  # seed -> the arguments of another forward

    def forward(self) -> Any:
        with torch.no_grad():
            return self.module(*self.inputs)


def load(path: Path, device: str, dtype: DType, settings: Mapping[str, str] | None = None) -> LoadedModel:
    """Build the model of a file with random weights (seeded), move it and its inputs to ``device`` and ``dtype``, and
    run it once, so that a mistake in it is seen here.

    Raises AutokernelError for a missing file, a syntax error, a missing part, an unknown setting, and for whatever
    the user's own code raises.
    """
    where = _device(device)
    namespace = execute(path)
    for part in ("Model", "get_inputs"):
        if not callable(getattr(namespace, part, None)):
            raise AutokernelError(
                f"{path} was expected to define class Model and get_inputs(); it has no {part}: see models/template.py"
            )
    _configure(namespace, path, settings or {})
    with user_code(path, "the constructor of Model"), where:
        torch.manual_seed(SEED)
        get_init_inputs = getattr(namespace, "get_init_inputs", list)
        module = namespace.Model(*get_init_inputs())
    if not isinstance(module, torch.nn.Module):
        raise AutokernelError(f"{path}: Model was expected to be a torch.nn.Module; it is a {type(module).__name__}")
    module = module.to(where, TORCH_DTYPES[dtype]).eval()

    def make_inputs(seed: int) -> tuple[Any, ...]:
        with user_code(path, "get_inputs()"):
            torch.manual_seed(seed)
            inputs = namespace.get_inputs()
        if not isinstance(inputs, (list, tuple)):
            raise AutokernelError(
                f"{path}: get_inputs() was expected to return a list; it returned {type(inputs).__name__}"
            )
        return tuple(_move(i, where, TORCH_DTYPES[dtype]) for i in inputs)

    model = LoadedModel(path.stem, path, module, make_inputs(SEED), where, dtype, make_inputs)
    with user_code(path, "Model.forward"):
        model.forward()
    return model


def fingerprint(model: torch.nn.Module) -> str:
    """sha256, in hex, of the names and shapes of a model's parameters: what tells one architecture from another."""
    named = sorted((name, tuple(each.shape)) for name, each in model.named_parameters())
    return hashlib.sha256(repr(named).encode()).hexdigest()


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise AutokernelError(f"device was expected to be cpu or cuda[:N]; got '{name}'") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise AutokernelError("device cuda was asked for, and PyTorch sees no CUDA device: use --device cpu")
    return device


def execute(path: Path) -> ModuleType:
    if not path.is_file():
        raise AutokernelError(f"a model file was expected at {path}; there is none: see models/template.py")
    name = f"autokernel_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise AutokernelError(f"a model was expected to be a Python file (.py); got {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look a class's module up
    sys.path.append(str(path.resolve().parent))  # its neighbours can be imported, last, so that they shadow nothing
    with user_code(path, "the import"):
        spec.loader.exec_module(module)
    return module


def _configure(namespace: ModuleType, path: Path, settings: Mapping[str, str]) -> None:
    configure = getattr(namespace, "configure", None)
    known = inspect.signature(configure).parameters if callable(configure) else {}
    unknown = [name for name in settings if name not in known]
    if unknown:
        has = f"it has: {', '.join(known)}" if known else "it takes none (no configure() in the file)"
        raise AutokernelError(f"{path.name} has no setting '{unknown[0]}': {has}")
    if not callable(configure):
        return
    values = {name: _convert(name, text, known[name].default) for name, text in settings.items()}
    with user_code(path, "configure()"):
        configure(**values)


def _convert(name: str, text: str, default: Any) -> Any:
    """The text of a setting as the type of its parameter's default; text where there is no default."""
    if isinstance(default, bool):
        if text.lower() in TRUE + FALSE:
            return text.lower() in TRUE
        raise AutokernelError(f"setting {name} was expected to be true or false; got '{text}'")
    if isinstance(default, (int, float)):
        try:
            return type(default)(text)
        except ValueError as error:
            kind = "a whole number" if isinstance(default, int) else "a number"
            raise AutokernelError(f"setting {name} was expected to be {kind}; got '{text}'") from error
    return text


def _move(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)
    if isinstance(value, (list, tuple)):
        return type(value)(_move(v, device, dtype) for v in value)
    if isinstance(value, dict):
        return {k: _move(v, device, dtype) for k, v in value.items()}
    return value


@contextlib.contextmanager
def user_code(path: Path, what: str) -> Iterator[None]:
    """Anything may be raised by a model file: say what, and where in that file."""
    try:
        yield
    except AutokernelError:
        raise
    except SyntaxError as error:
        raise AutokernelError(f"{error.filename}:{error.lineno}: syntax error: {error.msg}") from error
    except Exception as error:  # the boundary to the user's own code
        frames = traceback.extract_tb(error.__traceback__)
        mine = [f for f in frames if Path(f.filename).resolve() == path.resolve()]
        places = [f"{path.name}:{f.lineno} in {f.name}: {f.line}" for f in mine[-FRAMES:]]
        message = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise AutokernelError("\n  ".join([f"{what} raised {type(error).__name__}: {message}", *places])) from error
