"""What an owner's file says, as a function of tensors and numbers and a way to draw its arguments."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from autokernel.problems._common import TORCH_DTYPES
from autokernel.regions.model import SEED, user_code
from autokernel.regions.sizes import PRIMES, Shape, named
from autokernel.types import AutokernelError, Dims, DType, Scalar

REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, ArithmeticError, NotImplementedError)
INPUT_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool)
SPREAD = 0.25  # of a weight that the constructor leaves at one value: 1 and 0 would hide a missing product or sum


@dataclasses.dataclass(frozen=True)
class Slot:
    """One argument of the reference. ``number`` is its value where it is no tensor."""

    name: str
    tensor: bool
    number: Scalar = None


@dataclasses.dataclass(frozen=True)
class Owned:
    """``call(*tensors, **scalars)`` is the reference; ``draw(sizes, generator)`` gives its tensors on the CPU, in the
    dtypes of the file, of which the first ``arguments`` are its arguments and the rest its weights. ``sizes`` are the
    defaults of make_inputs; ``described`` are the sizes of the given arguments, for a file without make_inputs.
    """

    call: Callable[..., Any]
    draw: Callable[[Dims, torch.Generator], tuple[torch.Tensor, ...]]
    slots: tuple[Slot, ...]
    weights: tuple[str, ...]
    sizes: Dims
    described: Dims
    dtype: DType

    @property
    def names(self) -> tuple[str, ...]:
        return (*(slot.name for slot in self.slots if slot.tensor), *self.weights)

    @property
    def arguments(self) -> int:
        return sum(slot.tensor for slot in self.slots)

    @functools.cached_property
    def shapes(self) -> Sequence[Shape]:
        """The shapes of its tensors in terms of its sizes; () where they are not sizes themselves."""
        primes = dict(zip(self.sizes, PRIMES, strict=False))
        if len(primes) < len(self.sizes):
            return ()
        found = [named(t.shape, primes) for t in self.draw(primes, torch.Generator().manual_seed(0))]
        return [shape for shape in found if shape is not None] if None not in found else ()

    @property
    def scalars(self) -> Mapping[str, Scalar]:
        return {slot.name: slot.number for slot in self.slots if not slot.tensor}

    def like(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of the reference's own signature as one of tensors and keywords."""
        return lambda *tensors, **scalars: function(*ordered(self.slots, tensors, scalars))


def understand(path: Path, says: Any) -> Owned:
    """Raises AutokernelError that names the missing part, or shows where the owner's code raised."""
    make, sizes = _maker(path, says)
    module: torch.nn.Module | None = None
    if callable(getattr(says, "reference", None)):
        function: Callable[..., Any] = says.reference
        signature = function
    elif callable(getattr(says, "Model", None)):
        with user_code(path, "the constructor of Model"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            module = says.Model(*getattr(says, "get_init_inputs", list)())
        if not isinstance(module, torch.nn.Module):
            raise AutokernelError(f"{path}: Model was expected to be a torch.nn.Module; it is {type(module).__name__}")
        module = module.eval().cpu().requires_grad_(False)
        function, signature = module, module.forward
    else:
        raise AutokernelError(
            f"{path} was expected to define PROBLEM, or reference(...), or class Model; it defines none of them"
        )
    with user_code(path, "the function that makes the inputs"):
        first = _drawn(path, make, sizes, 0)
    slots = _slots(path, signature, first)
    state = _state(module)
    count = len(slots)

    def call(*tensors: torch.Tensor, **scalars: Scalar) -> Any:
        arguments = sum(slot.tensor for slot in slots)
        values = ordered(slots, tensors[:arguments], scalars)
        if module is None:
            return function(*values)
        weights = dict(zip(state, tensors[arguments:], strict=True))
        return torch.func.functional_call(module, weights, tuple(values))

    if module is None:
        functools.update_wrapper(call, function)  # its source is the owner's

    def draw(dims: Dims, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        seed = int(torch.randint(2**31, (), generator=generator))
        values = _drawn(path, make, dims, seed)
        if len(values) != count:
            raise AutokernelError(f"{path}: the inputs were {count} values before and are {len(values)} now")
        given = [v.detach().to(generator.device) for v in values if isinstance(v, torch.Tensor)]
        return (*given, *(_random_like(value, generator) for value in state.values()))

    floats = [v.dtype for v in first if isinstance(v, torch.Tensor) and v.is_floating_point()]
    floats += [v.dtype for v in state.values() if v.is_floating_point()]
    if not floats:
        raise AutokernelError(f"{path}: at least one floating-point tensor was expected among the inputs")
    native = {dtype: name for name, dtype in TORCH_DTYPES.items()}.get(floats[0], "fp32")
    described = {
        f"{s.name}[{i}]": n for s, v in zip(slots, first, strict=True) if s.tensor for i, n in enumerate(v.shape)
    }
    return Owned(call, draw, slots, tuple(n.replace(".", "_") for n in state), sizes, described, native)


def ordered(
    slots: Sequence[Slot], tensors: Sequence[torch.Tensor], scalars: Mapping[str, Scalar]
) -> list[torch.Tensor | Scalar]:
    """The arguments in the order of the owner's signature."""
    left = iter(tensors)
    return [next(left) if slot.tensor else scalars.get(slot.name, slot.number) for slot in slots]


def sizes_or_raise(path: Path, name: str, said: Any, sizes: Dims) -> Sequence[Dims]:
    """A list of dicts of sizes, as the file gives it."""
    wrong = not isinstance(said, (list, tuple)) or not said or any(set(d) - set(sizes) for d in said)
    if wrong:
        known = ", ".join(sizes) or "none: it has no make_inputs(n=1024, ...)"
        raise AutokernelError(f"{path}: {name} was expected to be a list of dicts of make_inputs' sizes ({known})")
    return [{**sizes, **d} for d in said]


def _maker(path: Path, says: Any) -> tuple[Callable[..., Any], Dims]:
    """The function that makes the inputs, and its sizes with their defaults."""
    if callable(make := getattr(says, "make_inputs", None)):
        sizes = {}
        for name, parameter in inspect.signature(make).parameters.items():
            if not isinstance(parameter.default, int) or isinstance(parameter.default, bool) or parameter.default < 1:
                raise AutokernelError(
                    f"{path}: each parameter of make_inputs was expected to be a size with a default, as in "
                    f"make_inputs(rows=4096); '{name}' is not"
                )
            sizes[name] = parameter.default
        return make, sizes
    if callable(make := getattr(says, "get_inputs", None)):
        return make, {}
    raise AutokernelError(f"{path} was expected to define make_inputs(n=1024, ...) or get_inputs(); it has neither")


def _drawn(path: Path, make: Callable[..., Any], sizes: Dims, seed: int) -> Sequence[Any]:
    """The file's own inputs, its random numbers from this seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        values = make(**sizes)
    if isinstance(values, torch.Tensor):
        values = (values,)
    if not isinstance(values, (list, tuple)) or not values:
        raise AutokernelError(f"{path}: the inputs were expected to be a list; got {type(values).__name__}")
    for position, value in enumerate(values):
        if isinstance(value, torch.Tensor):
            if value.dtype not in INPUT_DTYPES or value.is_sparse:
                raise AutokernelError(
                    f"{path}: input {position} was expected to be dense, of fp32, fp16, bf16, int64, int32 or bool; "
                    f"it is {value.dtype}"
                )
        elif value is not None and not isinstance(value, (bool, int, float)):
            raise AutokernelError(
                f"{path}: input {position} was expected to be a tensor or a number; it is a {type(value).__name__}"
            )
    return values


def _slots(path: Path, signature: Callable[..., Any], first: Sequence[Any]) -> tuple[Slot, ...]:
    """The reference's parameters that the inputs fill, in order."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(signature).parameters.values()
    names = [p.name for p in parameters if p.kind in kinds]
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        names += [f"x{i}" for i in range(len(names), len(first))]
    if len(names) < len(first):
        raise AutokernelError(
            f"{path}: {len(names)} inputs were expected by the reference's signature; got {len(first)}"
        )
    pairs = zip(names, first, strict=False)
    return tuple(Slot(n, True) if isinstance(v, torch.Tensor) else Slot(n, False, v) for n, v in pairs)


def _state(module: torch.nn.Module | None) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, shared ones once."""
    if module is None:
        return {}
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _random_like(value: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """New values of the same mean and spread for a parameter. Where all values are one, in a buffer too, they get some
    spread upwards, which keeps a variance positive; any other buffer is a table, a mask or a counter, and stays.
    """
    here = value.detach().to(generator.device)
    wide = here.float()
    constant = bool((wide == wide.reshape(-1)[:1]).all()) if wide.numel() else True
    if not value.is_floating_point() or not (constant or isinstance(value, torch.nn.Parameter)):
        return here.clone()
    if constant:
        more = torch.rand(wide.shape, generator=generator, device=generator.device)
        return (wide + SPREAD * more).to(value.dtype)
    noise = torch.randn(wide.shape, generator=generator, device=generator.device)
    return (wide.mean() + wide.std() * noise).to(value.dtype)
