"""Roundings inside a function: what each of them reads, and how they fall when that is a little more or less.

A jump (a rounding, a cast to whole numbers) turns the last digit of what it reads into a whole step. A right kernel
whose last digits are others than PyTorch's differs from it by a step wherever a value lies that near to a tie, and no
tolerance of the output tells such a step from a mistake: what tells it is the value before the jump. So calls are
watched: PyTorch's dispatcher shows each jump as it happens, and lets it fall another way.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROUNDINGS = frozenset(("round", "floor", "ceil", "trunc", "sign", "sgn", "frac"))
DIVIDING = frozenset(("floor_divide", "remainder", "fmod"))  # these divide, or scale, before they round
NARROW = (torch.float32, torch.float16, torch.bfloat16)
FEW = 4  # values that fall the other way at least, where a whole model is nudged
NUDGE, MOST_NUDGE = 2.0, 2.0**-8  # the first in units in the last place, the last relative


@dataclasses.dataclass(frozen=True)
class Jump:
    """One jump of one call: its operation, the ``value`` that it read, what it gave, and what it gives for others.

    ``inside`` says that it computes something before it rounds, so that an exact value may still be rounded first.
    """

    name: str
    value: torch.Tensor
    out: torch.Tensor
    at: Callable[[torch.Tensor], torch.Tensor]
    inside: bool


Fall = Callable[[int, Jump], "torch.Tensor | None"]  # (how many jumps came before, the jump) -> another result for it


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Shows every jump to ``fall`` while it is entered."""

    def __init__(self, fall: Fall) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fall, self._count = fall, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        name = func.overloadpacket.__name__
        inside = _jumps(name, func, args, named)
        if inside is None:
            return self.work(name, func, args, named)

        def at(value: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = func(value, *args[1:], **named)
            return found

        value = args[0].clone()
        out = at(value.clone())
        fallen = self._fall(self._count, Jump(name.rstrip("_"), value, out.clone(), at, inside))
        self._count += 1
        result = out if fallen is None else fallen.to(out.dtype)
        return args[0].copy_(result) if name.endswith("_") else result.clone()

    def work(self, name: str, func: Any, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
        """What an operation gives that is no jump."""
        return func(*args, **named)


class Lossy(Watch):  # type: ignore[no-untyped-call]
    """A watch under which whatever is rounded is lost (NaN): what is left is exact, and is so where a kernel multiplies
    by a reciprocal, too. A tensor divides exactly where it holds powers of two.
    """

    def work(self, name: str, func: Any, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
        out = func(*args, **named)
        if not isinstance(out, torch.Tensor) or not out.is_floating_point() or func._schema.is_mutable:
            return out
        precise = args[0] if name == "_to_copy" else _precisely(func, args, named)
        exact = out.double() == precise
        if name == "div" and isinstance(args[0], torch.Tensor):
            for inverse in _inverses(args[1], out):
                exact &= ((args[0] * inverse).double() == precise) | (args[0] == 0)
            if isinstance(args[1], torch.Tensor):
                exact &= (torch.frexp(args[1].double()).mantissa.abs() == 0.5) | (args[0] == 0)
        return out if bool(exact.all()) else out.masked_fill(~exact, math.nan)


def recording(seen: list[Jump], falls: Sequence[torch.Tensor] = ()) -> Fall:
    """Keeps all jumps in ``seen``; those that ``falls`` has a result for fall so."""

    def fall(place: int, jump: Jump) -> torch.Tensor | None:
        seen.append(jump)
        return falls[place] if falls else None

    return fall


def has_jumps(call: Callable[..., Any], tensors: Sequence[torch.Tensor]) -> bool:
    """Whether a call meets a jump."""
    seen: list[Jump] = []
    with Watch(recording(seen)), torch.no_grad():
        call(*tensors)
    return bool(seen)


def nudged(eps: float, seed: int) -> Fall:
    """As if what jumps read were off by a few units in the last place, up or down at random; by more, up to MOST_NUDGE,
    where fewer than FEW of them would fall otherwise. Whole numbers, which come of jumps before, stay.
    """
    generators: dict[torch.device, torch.Generator] = {}

    def fall(place: int, jump: Jump) -> torch.Tensor:
        value = jump.value
        generator = generators.setdefault(value.device, torch.Generator(value.device).manual_seed(seed))
        up = torch.rand(value.shape, generator=generator, device=value.device) < 0.5
        away = torch.where(up, value.abs(), -value.abs()).masked_fill(value == value.round(), 0.0)
        share = NUDGE * eps
        while True:
            out = jump.at(value + share * away)
            if share >= MOST_NUDGE or int((out != jump.out).sum()) >= min(FEW, out.numel()):
                return out
            share *= 2

    return fall


def _jumps(name: str, func: Any, args: Sequence[Any], named: Mapping[str, Any]) -> bool | None:
    """Whether a jump computes something before it rounds; None for an operation that is none."""
    if not args or not isinstance(args[0], torch.Tensor) or not args[0].is_floating_point():
        return None
    if name == "_to_copy":
        dtype = named.get("dtype")
        whole = dtype is not None and not dtype.is_floating_point and not dtype.is_complex and dtype != torch.bool
        return False if whole else None
    plain = name.rstrip("_")
    if plain in DIVIDING or (plain == "div" and named.get("rounding_mode") is not None):
        return True
    return func._overloadname == "decimals" if plain in ROUNDINGS else None


def _precisely(func: Any, args: Sequence[Any], named: Mapping[str, Any]) -> Any:
    """An operation in float64; NaN, which equals nothing, where it has no such form (on a GPU, a softmax of halves in
    float32).
    """
    wide = {
        key: torch.float64 if isinstance(value, torch.dtype) and value in NARROW else value
        for key, value in named.items()
    }
    try:
        return func(*map(_doubled, args), **wide)
    except RuntimeError:
        return math.nan


def _doubled(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_doubled, value))
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _inverses(divisor: Any, like: torch.Tensor) -> Sequence[torch.Tensor]:
    """What a kernel may multiply by; a number in the code has a reciprocal before and after it is rounded."""
    if isinstance(divisor, torch.Tensor):
        return [divisor.reciprocal()]
    wide = torch.tensor(divisor, dtype=torch.float64, device=like.device)
    return [wide.reciprocal().to(like.dtype), wide.to(like.dtype).reciprocal()]
