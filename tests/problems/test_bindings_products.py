"""Models spell products, attention and feed-forward blocks in many ways: each must bind, by views, to the problem whose
numbers it gives, and what only looks alike must not.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F

from autokernel.problems import flash_attention, fused_mlp, matmul
from autokernel.types import Binding, Problem, Scalar, Window

Tensors = Sequence[torch.Tensor]


def meta(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def matches(
    problem: Problem, spelled: Callable[..., torch.Tensor], tensors: Tensors, constants: tuple[Scalar, ...] = ()
) -> list[Binding]:
    """The proposed bindings that give the numbers of ``spelled``, as the recognition by testing would find them."""
    expected = spelled(*tensors)
    window = Window(tuple(meta(t) for t in tensors), meta(expected), constants)
    found = []
    for binding in problem.propose_bindings(window):
        inputs = binding.adapt(*tensors)
        storages = {t.untyped_storage().data_ptr() for t in tensors}
        assert all(t.untyped_storage().data_ptr() in storages for t in inputs), "adapt copied"
        out = binding.restore(problem.reference(*inputs, **binding.scalars), *tensors)
        if out.shape == expected.shape and torch.allclose(out, expected, rtol=1e-4, atol=1e-4):
            found.append(binding)
            sizes = dict(zip(problem.inputs, inputs, strict=True))
            assert tuple(meta_dims(problem, binding)) == tuple(tuple(t.shape) for t in sizes.values())
    return found


def meta_dims(problem: Problem, binding: Binding) -> list[tuple[int, ...]]:
    """The shapes that a binding's dims promise: those of the problem's own inputs."""
    made = problem.make_inputs(binding.dims, "fp32", torch.Generator().manual_seed(0))
    return [tuple(t.shape) for t in made]


def in_any_order(spelled: Callable[..., torch.Tensor], tensors: Tensors) -> tuple[Callable[..., torch.Tensor], Tensors]:
    """The same function of its inputs reversed: a window's tensors come in no particular order."""
    return lambda *t: spelled(*t[::-1]), tensors[::-1]


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(math.prod(shape) + len(shape)))


# ------------------------------------------------------------------------------------------------------------- matmul

PRODUCTS: dict[str, tuple[Callable[..., torch.Tensor], Tensors, dict[str, int]]] = {
    "linear": (lambda x, w: F.linear(x, w), (rand(6, 5), rand(7, 5)), {"M": 6, "K": 5, "N": 7}),
    "linear of a batch": (lambda x, w: F.linear(x, w), (rand(2, 3, 5), rand(7, 5)), {"M": 6, "K": 5, "N": 7}),
    "linear, square": (lambda x, w: F.linear(x, w), (rand(5, 5), rand(5, 5)), {"M": 5, "K": 5, "N": 5}),
    "linear of a vector": (lambda x, w: F.linear(x, w), (rand(5), rand(7, 5)), {"M": 1, "K": 5, "N": 7}),
    "Conv1D": (lambda x, w: torch.mm(x.view(-1, 5), w), (rand(2, 3, 5), rand(5, 7)), {"M": 6, "K": 5, "N": 7}),
    "@": (lambda x, w: x @ w, (rand(2, 3, 4, 5), rand(5, 7)), {"M": 24, "K": 5, "N": 7}),
    "transposed left": (lambda x, w: x.t() @ w, (rand(5, 6), rand(5, 7)), {"M": 6, "K": 5, "N": 7}),
    "matrix times vector": (lambda w, v: w @ v, (rand(7, 5), rand(5)), {"M": 7, "K": 5, "N": 1}),
    "bmm of one": (lambda x, w: torch.bmm(x, w), (rand(1, 6, 5), rand(1, 5, 7)), {"M": 6, "K": 5, "N": 7}),
    "bmm with an expanded weight": (
        lambda x, w: torch.bmm(x, w),
        (rand(2, 3, 5), rand(5, 7).expand(2, 5, 7)),
        {"M": 6, "K": 5, "N": 7},
    ),
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_bind(name: str, reverse: bool) -> None:
    spelled, tensors, dims = PRODUCTS[name]
    if reverse:
        spelled, tensors = in_any_order(spelled, tensors)
    found = matches(matmul.PROBLEM, spelled, tensors)
    assert dims in [binding.dims for binding in found]


def test_a_linear_weight_arrives_as_a_transposed_view() -> None:
    x, weight = rand(2, 3, 5), rand(7, 5)
    (binding,) = matches(matmul.PROBLEM, lambda x, w: F.linear(x, w), (x, weight))
    a, b = binding.adapt(x, weight)
    assert (a.stride(), b.stride(), b.data_ptr()) == ((5, 1), (1, 5), weight.data_ptr())


def test_rows_that_do_not_flatten_are_not_offered() -> None:
    x, weight = rand(2, 5, 3).transpose(1, 2), rand(7, 5)
    assert not matches(matmul.PROBLEM, lambda x, w: F.linear(x, w), (x, weight))


def test_what_is_no_product_does_not_bind() -> None:
    assert not matches(matmul.PROBLEM, lambda x, w: F.linear(x, w).relu(), (rand(6, 5), rand(7, 5)))
    assert not matches(matmul.PROBLEM, lambda x, w: torch.bmm(x, w), (rand(2, 3, 5), rand(2, 5, 7)))
    assert not matches(matmul.PROBLEM, lambda x, w, b: F.linear(x, w, b), (rand(6, 5), rand(7, 5), rand(7)))


# ---------------------------------------------------------------------------------------------------------- attention


def spelled_out(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    return F.softmax(scores.masked_fill(~mask, float("-inf")), dim=-1) @ v


def unmasked_transposed_keys(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.softmax((q * 0.5) @ (k * 0.5), dim=-1) @ v


def sequence_first(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
    return out.transpose(1, 2)


def merged_heads(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return sequence_first(q, k, v).flatten(2)


def bmm_heads(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)) * 0.25, dim=-1), v)


def grouped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    keys, values = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    return F.scaled_dot_product_attention(q, keys, values, is_causal=True)


def sdpa(**options: Scalar) -> Callable[..., torch.Tensor]:
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, **options)  # type: ignore[arg-type]


HEADS = (rand(2, 3, 9, 8), rand(2, 3, 9, 8) + 0.1, rand(2, 3, 9, 8) - 0.1)
ATTENTIONS: dict[str, tuple[Callable[..., torch.Tensor], Tensors, tuple[Scalar, ...], dict[str, Scalar]]] = {
    "sdpa, causal": (sdpa(is_causal=True), HEADS, (0.0, True), {"causal": True, "sm_scale": None}),
    "sdpa": (sdpa(), HEADS, (0.0, False), {"causal": False, "sm_scale": None}),
    "sdpa, scaled": (sdpa(scale=0.7), HEADS, (0.7,), {"causal": False, "sm_scale": 0.7}),
    "sdpa, unscaled": (sdpa(scale=1.0), HEADS, (), {"causal": False, "sm_scale": 1.0}),
    "cross attention": (
        sdpa(),
        (rand(2, 3, 4, 8), rand(2, 3, 9, 8), rand(2, 3, 9, 8) + 1),
        (),
        {"causal": False, "sm_scale": None},
    ),
    "product, mask, softmax, product": (
        spelled_out,
        HEADS,
        (math.sqrt(8), -math.inf),
        {"causal": True, "sm_scale": None},
    ),
    "transposed keys, each side scaled": (
        unmasked_transposed_keys,
        (rand(2, 3, 9, 8), rand(2, 3, 8, 7), rand(2, 3, 7, 8)),
        (0.5, 0.5),
        {"causal": False, "sm_scale": 0.25},
    ),
    "sequence before heads": (sequence_first, HEADS, (True,), {"causal": True, "sm_scale": None}),
    "heads merged": (merged_heads, HEADS, (True,), {"causal": True, "sm_scale": None}),
    "heads in the batch": (
        bmm_heads,
        (rand(6, 9, 8), rand(6, 9, 8) + 0.1, rand(6, 9, 8) - 0.1),
        (0.25,),
        {"causal": False, "sm_scale": 0.25},
    ),
    "one head": (spelled_out, (rand(9, 8), rand(9, 8) + 0.1, rand(9, 8) - 0.1), (), {"causal": True, "sm_scale": None}),
    "grouped queries": (
        grouped,
        (rand(2, 6, 9, 8), rand(2, 2, 9, 8), rand(2, 2, 9, 8) + 1),
        (True,),
        {"causal": True, "sm_scale": None},
    ),
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_binds(name: str, reverse: bool) -> None:
    spelled, tensors, constants, scalars = ATTENTIONS[name]
    if reverse:
        spelled, tensors = in_any_order(spelled, tensors)
    found = matches(flash_attention.PROBLEM, spelled, tensors, constants)
    assert scalars in [binding.scalars for binding in found]


def test_grouped_queries_keep_their_groups() -> None:
    spelled, tensors, constants, _ = ATTENTIONS["grouped queries"]
    found = matches(flash_attention.PROBLEM, spelled, tensors, constants)
    assert {(b.dims["H"], b.dims["G"]) for b in found} == {(6, 2)}


def test_what_is_not_this_attention_does_not_bind() -> None:
    bottom_right = torch.ones(4, 9, dtype=torch.bool).tril(5)
    q = rand(2, 3, 4, 8)
    assert not matches(flash_attention.PROBLEM, sdpa(attn_mask=bottom_right), (q, *HEADS[1:]))  # type: ignore[arg-type]
    assert not matches(flash_attention.PROBLEM, lambda q, k, v: torch.sigmoid(q @ k.mT) @ v, HEADS)
    with_mask = Window((*map(meta, HEADS), meta(bottom_right)), meta(HEADS[0]))
    assert not flash_attention.PROBLEM.propose_bindings(with_mask)


# -------------------------------------------------------------------------------------------------- SwiGLU feed-forward


def llama(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    return F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)


def sigmoid_spelling(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    h = x @ gate
    return ((x @ up) * (h * torch.sigmoid(h))) @ down


def stacked(x: torch.Tensor, both: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    gate, up = F.linear(x, both).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down)


def stacked_up_first(x: torch.Tensor, both: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    up, gate = F.linear(x, both).chunk(2, dim=-1)
    return F.linear(up * F.silu(gate), down)


MLPS: dict[str, tuple[Callable[..., torch.Tensor], Tensors]] = {
    "Llama": (llama, (rand(2, 3, 5), rand(7, 5), rand(7, 5) + 0.1, rand(5, 7))),
    "Llama, square": (llama, (rand(3, 5), rand(5, 5), rand(5, 5) + 0.1, rand(5, 5) - 0.1)),
    "x · sigmoid(x), weights transposed": (sigmoid_spelling, (rand(3, 5), rand(5, 7), rand(5, 7) + 0.1, rand(7, 5))),
    "gate and up stacked": (stacked, (rand(2, 3, 5), rand(14, 5), rand(5, 7))),
    "up and gate stacked": (stacked_up_first, (rand(2, 3, 5), rand(14, 5), rand(5, 7))),
}


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("name", MLPS)
def test_feed_forward_binds(name: str, order: int) -> None:
    spelled, tensors = MLPS[name]
    positions = list(range(len(tensors)))
    random.Random(order).shuffle(positions)
    shuffled = [tensors[i] for i in positions]
    found = matches(fused_mlp.PROBLEM, lambda *t: spelled(*(t[positions.index(i)] for i in range(len(t)))), shuffled)
    assert len(found) == 1


def test_other_activations_do_not_bind() -> None:
    _, tensors = MLPS["Llama"]
    for activation in (F.gelu, torch.sigmoid, F.relu):
        assert not matches(
            fused_mlp.PROBLEM, lambda x, g, u, d, f=activation: F.linear(f(F.linear(x, g)) * F.linear(x, u), d), tensors
        )


def test_empty_regions_offer_nothing() -> None:
    for problem in (matmul.PROBLEM, flash_attention.PROBLEM, fused_mlp.PROBLEM):
        for shapes in itertools.product([(0, 5), (0,), ()], repeat=len(problem.inputs)):
            tensors = tuple(torch.empty(s, device="meta") for s in shapes)
            bindings = problem.propose_bindings(Window(tensors, torch.empty(0, 5, device="meta")))
            assert all(min(b.dims.values()) > 0 for b in bindings)
