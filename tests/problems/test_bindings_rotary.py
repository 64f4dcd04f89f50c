"""Models spell rotary embeddings in many ways: each must bind, by views, to the problem, and what only looks alike must
not.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from autokernel.problems import rotary_embedding
from autokernel.types import Window

from .test_bindings_rows import Spelled, Tensors, matches, rand, reversed_too


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((-b, a), -1)


def rotate_every_two(x: torch.Tensor) -> torch.Tensor:
    return torch.stack((-x[..., 1::2], x[..., 0::2]), -1).flatten(-2)


def by_halves(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def by_pairs(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    a, b = pairs.unbind(-1)
    cos, sin = table.view(1, x.shape[1], 1, -1, 2).unbind(-1)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(3)


def by_complex(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    turned = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * angles.view(1, x.shape[1], 1, -1)
    return torch.view_as_real(turned).flatten(3)


def interleaved(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return x * cos + rotate_every_two(x) * sin


HEADS_FIRST = {"B": 2, "H": 3, "S": 5, "D": 8}
WHOLE = {**HEADS_FIRST, "P": 8}
ROTARIES: dict[str, tuple[Spelled, Tensors, dict[str, int], bool]] = {
    "Llama": (
        lambda x, cos, sin: x * cos.unsqueeze(1) + rotate_half(x) * sin.unsqueeze(1),
        (rand(2, 5, 3, 8).transpose(1, 2), rand(1, 5, 8), rand(1, 5, 8) + 1),
        WHOLE,
        False,
    ),
    "GPT-NeoX, sliced": (
        lambda x, cos, sin: x * cos + rotate_half(x) * sin,
        (rand(2, 3, 5, 20)[..., :8], rand(1, 1, 5, 8), rand(1, 1, 5, 8) + 1),
        WHOLE,
        False,
    ),
    "halves of half tables": (
        by_halves,
        (rand(2, 3, 5, 8), rand(5, 4), rand(5, 4) + 1),
        HEADS_FIRST,
        False,
    ),
    "GPT-J": (interleaved, (rand(2, 3, 5, 8), rand(5, 8), rand(5, 8) + 1), WHOLE, True),
    "GPT-J before the transpose": (
        interleaved,
        (rand(2, 5, 3, 8), rand(1, 5, 1, 8), rand(1, 5, 1, 8) + 1),
        WHOLE,
        True,
    ),
    "complex": (by_complex, (rand(2, 5, 3, 8), torch.complex(rand(5, 4), rand(5, 4) + 1)), HEADS_FIRST, True),
    "pairs in one table": (by_pairs, (rand(2, 5, 3, 8), rand(5, 4, 2)), HEADS_FIRST, True),
    "one sequence": (
        interleaved,
        (rand(3, 5, 8), rand(5, 8), rand(5, 8) + 1),
        {"B": 1, "H": 3, "S": 5, "D": 8, "P": 8},
        True,
    ),
    "one head": (
        by_halves,
        (rand(5, 8), rand(5, 4), rand(5, 4) + 1),
        {"B": 1, "H": 1, "S": 5, "D": 8},
        False,
    ),
}


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("name", ROTARIES)
def test_rotary_in_any_spelling(name: str, order: int) -> None:
    spelled, tensors, dims, pairs_interleaved = ROTARIES[name]
    (binding,) = matches(rotary_embedding.PROBLEM, *reversed_too(spelled, tensors)[order])
    assert (dict(binding.dims), dict(binding.scalars)) == (dims, {"interleaved": pairs_interleaved})


NOT_ROTARY: dict[str, Spelled] = {
    "turned backwards": lambda x, cos, sin: x * cos - rotate_half(x) * sin,
    "sine alone": lambda x, cos, sin: x * (cos + sin),
    "mixed pairings": lambda x, cos, sin: rotate_half(x) * cos + rotate_every_two(x) * sin,
}


@pytest.mark.parametrize("name", NOT_ROTARY)
def test_not_rotary(name: str) -> None:
    tensors = (rand(2, 3, 5, 8), rand(5, 8), rand(5, 8) + 1)
    assert not matches(rotary_embedding.PROBLEM, NOT_ROTARY[name], tensors)


def test_tables_of_each_sequence_and_of_another_dtype_are_left_alone() -> None:
    x, table = (torch.empty(s, device="meta") for s in ((2, 3, 5, 8), (2, 1, 5, 8)))
    assert not rotary_embedding.propose_bindings(Window((x, table, table), x))
    half = x.half()
    shared = table[0]
    assert rotary_embedding.propose_bindings(Window((x, shared, shared), x))
    assert not rotary_embedding.propose_bindings(Window((half, shared, shared), half))


def test_the_two_pairings_differ_by_a_permutation_of_the_features() -> None:
    """What makes rotate-half a scalar of the problem rather than a view of it."""
    x, cos, sin = rand(1, 2, 5, 8), rand(5, 4), rand(5, 4)
    order = torch.tensor(list(itertools.chain.from_iterable((i, i + 4) for i in range(4))))
    turned = rotary_embedding.reference(x[..., order], cos, sin, True)
    assert torch.allclose(turned, rotary_embedding.reference(x, cos, sin, False)[..., order])
