"""The sizes of a region's tensors by name: which dimensions are the same size, and which may take any value."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from autokernel.regions.window import REFUSALS

PRIMES = (3, 5, 7, 11, 13, 17, 19, 23)  # sizes by which dimensions are told apart
LETTERS = "CRBAEFGH"  # from the last dimension on: columns, rows, batch
Shape = tuple[int | str, ...]  # names of sizes, and 1 where a dimension is broadcast


@dataclasses.dataclass(frozen=True)
class Sizes:
    """``shapes`` of the inputs in terms of named sizes, whose values in the model are ``given``. ``free`` says that the
    code runs on any values of them; ``output`` is then its output's shape.
    """

    shapes: tuple[Shape, ...]
    given: Mapping[str, int]
    free: bool = False
    output: Shape = ()


def find(function: Callable[..., Any], shapes: Sequence[tuple[int, ...]], dtypes: Sequence[torch.dtype]) -> Sizes:
    """Equal sizes at equal places, counted from the last dimension, are one; where that does not run, equal sizes."""
    for by_place in (True, False):
        found = _grouped(shapes, by_place)
        primes = dict(zip(found.given, PRIMES, strict=False))
        if len(primes) < len(found.given):
            continue
        metas = [
            torch.empty(sized(s, primes), dtype=d, device="meta") for s, d in zip(found.shapes, dtypes, strict=True)
        ]
        try:
            out = function(*metas)
        except REFUSALS:
            continue
        output = named(out.shape, primes) if isinstance(out, torch.Tensor) else None
        if output is not None:
            return dataclasses.replace(found, free=True, output=output)
    return found


def sized(shape: Shape, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A shape in numbers."""
    return tuple(sizes[s] if isinstance(s, str) else s for s in shape)


def named(shape: Sequence[int], primes: Mapping[str, int]) -> Shape | None:
    """The shape of a tensor that was made at these sizes, by name; None where a size is of another kind."""
    back = {prime: name for name, prime in primes.items()}
    found = tuple(back.get(s, s) for s in shape)
    return found if all(s == 1 or isinstance(s, str) for s in found) else None


def factors(number: int, primes: Mapping[str, int]) -> tuple[str, ...] | None:
    """The sizes whose product a number is at these primes; None where it is no such product."""
    found = []
    for name, prime in primes.items():
        while number and number % prime == 0:
            found.append(name)
            number //= prime
    return tuple(sorted(found)) if number == 1 else None


def solved(shapes: Sequence[Shape], actual: Sequence[Sequence[int]]) -> dict[str, int] | None:
    """The sizes that turn the named shapes into the actual ones; None where none do."""
    found: dict[str, int] = {}
    if [len(s) for s in shapes] != [len(a) for a in actual]:
        return None
    for name, size in itertools.chain.from_iterable(
        zip(s, a, strict=True) for s, a in zip(shapes, actual, strict=True)
    ):
        if (isinstance(name, int) and name != size) or (isinstance(name, str) and found.setdefault(name, size) != size):
            return None
    return found


def _grouped(shapes: Sequence[tuple[int, ...]], by_place: bool) -> Sizes:
    names: dict[tuple[int, int], str] = {}
    given: dict[str, int] = {}
    found = []
    for shape in shapes:
        parts: list[int | str] = []
        for place, size in zip(range(len(shape) - 1, -1, -1), shape, strict=True):
            key = (place if by_place else 0, size)
            if size != 1 and key not in names:
                letter = LETTERS[min(place, len(LETTERS) - 1)]
                options = itertools.chain([letter], (f"{letter}{i}" for i in itertools.count(2)))
                names[key] = next(n for n in options if n not in given)
                given[names[key]] = size
            parts.append(1 if size == 1 else names[key])
        found.append(tuple(parts))
    order = sorted(given, key=lambda n: (-LETTERS.index(n[0]), n))
    return Sizes(tuple(found), {n: given[n] for n in order})
