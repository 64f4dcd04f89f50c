"""Load a model file: class ``Model``, ``get_inputs()`` and, for a constructor with arguments, ``get_init_inputs()``.

This is KernelBench's convention, so each of its problems is a valid model file. Two hooks are added:
``configure(**settings)`` receives the ``--set NAME=VALUE`` pairs, converted to the types of its defaults;
``get_input_sets()`` returns several forwards with how often each is made, ``[(weight, [inputs]), ...]``, and stands in
for ``get_inputs()``. In place of a file ``hf:NAME_OR_PATH`` names a transformers model: see ``huggingface``.
A model runs in eval mode and without gradients, or, where ``train`` is asked for, as it is trained: a step is then its
forward, a loss and the backward. With ``autocast`` its parameters stay float32 and its forward runs under autocast.
Whatever goes wrong in the user's own code becomes one AutokernelError that shows the user's own frames only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from autokernel import modelref, runfile
from autokernel.problems._common import TORCH_DTYPES
from autokernel.regions import huggingface
from autokernel.regions.loss import loss_of, own_loss
from autokernel.types import AutokernelError, DType

SEED = 0
FRAMES = 3  # of the user's traceback that are shown
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclasses.dataclass(frozen=True)
class InputSet:
    """The arguments of one kind of forward, and how often it is made beside the others (any positive number)."""

    weight: float
    inputs: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model on its device, and the arguments of one forward: those of its most frequent input set.

    ``sets`` holds all of them, the most frequent first; ``make_inputs(seed)`` draws the arguments of another forward,
    from set ``seed`` modulo their number; ``notes`` is what the owner has to know of how it was loaded. ``train`` says
    that a step has a backward, ``autocast`` in which dtype its forward runs where that is not ``dtype``.
    """

    name: str
    path: Path
    module: torch.nn.Module
    inputs: tuple[Any, ...]
    device: torch.device
    dtype: DType
    make_inputs: Callable[[int], tuple[Any, ...]]
    sets: tuple[InputSet, ...] = ()
    notes: tuple[str, ...] = ()
    train: bool = False
    autocast: DType | None = None

    @contextlib.contextmanager
    def conditions(self) -> Iterator[None]:
        """What a forward of this model runs under: gradients or none, and autocast."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(self.train))
            if self.autocast is not None:
                stack.enter_context(torch.autocast(self.device.type, TORCH_DTYPES[self.autocast]))
            yield

    def forward(self) -> Any:
        with self.conditions():
            return self.module(*self.inputs)

    def step(self, call: Callable[..., Any] | None = None) -> Any:
        """One forward, and where the model is trained also the loss and its backward; gradients are dropped again.
        ``call`` stands for the module: a compiled one, say. Returns the forward's output.
        """
        with self.conditions():
            output = (self.module if call is None else call)(*self.inputs)
        if self.train:
            torch.autograd.backward(loss_of(output))
            self.module.zero_grad(set_to_none=True)
        return output


def load(
    path: Path,
    device: str,
    dtype: DType,
    settings: Mapping[str, str] | None = None,
    *,
    train: bool = False,
    autocast: DType | None = None,
) -> LoadedModel:
    """Build the model of a file (with random weights, seeded) or of ``hf:NAME_OR_PATH``, move it and its inputs to
    ``device`` and ``dtype``, and run each of its input sets once, so that a mistake in it is seen here. For ``train``
    it is in training mode, and a transformers model is given labels, so that its own loss is taken.

    Raises AutokernelError for a missing file, a syntax error, a missing part, an unknown setting, autocast of a model
    that is not float32, a model that has nothing to train, and for whatever the user's own code raises.
    """
    if autocast is not None and (dtype != "fp32" or autocast == "fp32"):
        raise AutokernelError(
            f"--autocast was expected to be bf16 or fp16, with --dtype fp32 for the parameters; got {autocast}, {dtype}"
        )
    where, name = _device(device), modelref.huggingface(path)
    notes: tuple[str, ...] = ()
    if name is None:
        module, draw = _from_file(path, where, TORCH_DTYPES[dtype], settings or {})
    else:
        values = huggingface.Settings(**_settings(huggingface.Settings, str(path), settings or {}))
        with user_code(path, "building the model"):
            torch.manual_seed(SEED)
            built = huggingface.build(name, where, TORCH_DTYPES[dtype], values, labels=train)
        module, notes = built.module, built.notes

        def draw() -> list[InputSet]:
            return [InputSet(1.0, built.draw())]

    def sets(seed: int) -> list[InputSet]:
        torch.manual_seed(seed)
        drawn = sorted(draw(), key=lambda each: -each.weight)
        return [InputSet(each.weight, _move(each.inputs, where, TORCH_DTYPES[dtype])) for each in drawn]

    def make_inputs(seed: int) -> tuple[Any, ...]:
        found = sets(seed)
        return found[seed % len(found)].inputs

    first = tuple(sets(SEED))
    model = LoadedModel(
        modelref.title(path), path, module.train(train), first[0].inputs, where, dtype, make_inputs, first, notes,
        train, autocast,
    )  # fmt: skip
    for each in first:
        with user_code(path, "Model.forward" if name is None else "the forward"):
            output = dataclasses.replace(model, inputs=each.inputs).step()
    if train and own_loss(output) is None:
        return dataclasses.replace(
            model, notes=(*notes, "the model gives no loss: a sum of squares of its outputs is taken")
        )
    return model


def _from_file(
    path: Path, where: torch.device, dtype: torch.dtype, settings: Mapping[str, str]
) -> tuple[torch.nn.Module, Callable[[], list[InputSet]]]:
    """The module of a model file, and what draws its input sets from the global generator."""
    namespace = execute(path)
    several = callable(getattr(namespace, "get_input_sets", None))
    for part in ("Model", *(() if several else ("get_inputs",))):
        if not callable(getattr(namespace, part, None)):
            raise AutokernelError(
                f"{path} was expected to define class Model and get_inputs(); it has no {part}: see models/template.py"
            )
    configure = getattr(namespace, "configure", None)
    values = _settings(configure, path.name, settings)
    if callable(configure):
        with user_code(path, "configure()"):
            configure(**values)
    with user_code(path, "the constructor of Model"), where:
        torch.manual_seed(SEED)
        get_init_inputs = getattr(namespace, "get_init_inputs", list)
        module = namespace.Model(*get_init_inputs())
    if not isinstance(module, torch.nn.Module):
        raise AutokernelError(f"{path}: Model was expected to be a torch.nn.Module; it is a {type(module).__name__}")

    def draw() -> list[InputSet]:
        with user_code(path, "get_input_sets()" if several else "get_inputs()"):
            given = namespace.get_input_sets() if several else namespace.get_inputs()
        return _weighted(path, given) if several else [InputSet(1.0, _listed(path, "get_inputs()", given))]

    return module.to(where, dtype), draw


def _weighted(path: Path, given: Any) -> list[InputSet]:
    """What get_input_sets() returned, each part checked."""
    expected = f"{path}: get_input_sets() was expected to return a list of (weight, [inputs])"
    if not isinstance(given, (list, tuple)):
        raise AutokernelError(f"{expected}; it returned {type(given).__name__}")
    if not given:
        raise AutokernelError(f"{expected}; it returned an empty one")
    found = []
    for number, each in enumerate(given, start=1):
        if not isinstance(each, (list, tuple)) or len(each) != 2:
            raise AutokernelError(f"{expected}; entry {number} is no pair")
        weight, inputs = each
        number_like = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number_like or not 0 < weight < float("inf"):
            raise AutokernelError(f"{expected}, weights above 0; that of entry {number} is {weight!r}")
        found.append(InputSet(float(weight), _listed(path, f"entry {number} of get_input_sets()", inputs)))
    return found


def _listed(path: Path, what: str, given: Any) -> tuple[Any, ...]:
    if not isinstance(given, (list, tuple)):
        raise AutokernelError(f"{path}: {what} was expected to return a list; it returned {type(given).__name__}")
    return tuple(given)


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
    if path.suffix != ".py":
        raise AutokernelError(f"a model was expected to be a Python file (.py); got {path}")
    sys.path.append(str(path.resolve().parent))  # its neighbours can be imported, last, so that they shadow nothing
    with user_code(path, "the import"):
        return runfile.run(path, name)


def _settings(configure: Any, name: str, settings: Mapping[str, str]) -> dict[str, Any]:
    """The ``--set`` pairs as the types of the parameters of ``configure``, which may be missing."""
    known = inspect.signature(configure).parameters if callable(configure) else {}
    unknown = [each for each in settings if each not in known]
    if unknown:
        has = f"it has: {', '.join(known)}" if known else "it takes none (no configure() in the file)"
        raise AutokernelError(f"{name} has no setting '{unknown[0]}': {has}")
    return {each: _convert(each, text, known[each].default) for each, text in settings.items()}


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
