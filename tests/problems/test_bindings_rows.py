"""Models spell softmax, LayerNorm, sums and losses in many ways: each must bind, by views, to the problem whose numbers
it gives, and what only looks alike must not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F

from autokernel.problems import cross_entropy, layernorm, reduce, softmax
from autokernel.types import Binding, Problem, Scalar, Window

Tensors = Sequence[torch.Tensor]
Spelled = Callable[..., torch.Tensor]
SCALES = (1.0, 1e-3, 30.0)  # of the float inputs: a wrong eps shows at one of them


def rand(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def classes(limit: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, limit, shape, generator=torch.Generator().manual_seed(limit))


def meta(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def agrees(problem: Problem, binding: Binding, spelled: Spelled, tensors: Tensors) -> bool:
    for scale in SCALES:
        offered = [t * scale if t.dtype != torch.int64 and t.is_contiguous() else t for t in tensors]
        expected = spelled(*offered)
        inputs = binding.adapt(*offered)
        owners = {t.untyped_storage().data_ptr() for t in offered}
        assert all(t.untyped_storage().data_ptr() in owners for t in inputs), "adapt copied"
        made = problem.make_inputs(binding.dims, "fp32", torch.Generator())
        assert [t.shape for t in inputs] == [t.shape for t in made], "dims do not say the inputs' shapes"
        out = binding.restore(problem.reference(*inputs, **binding.scalars), *offered)
        if out.shape != expected.shape or not torch.allclose(out, expected, rtol=1e-8, atol=1e-10 * scale):
            return False
    return True


def matches(problem: Problem, spelled: Spelled, tensors: Tensors, constants: tuple[Scalar, ...] = ()) -> list[Binding]:
    """The proposed bindings that give the numbers of ``spelled``, as the recognition by testing would find them."""
    window = Window(tuple(meta(t) for t in tensors), meta(spelled(*tensors)), constants)
    return [b for b in problem.propose_bindings(window) if agrees(problem, b, spelled, tensors)]


def reversed_too(spelled: Spelled, tensors: Tensors) -> list[tuple[Spelled, Tensors]]:
    """The same function of its inputs in both orders: a window's tensors come in no particular one."""
    return [(spelled, tensors), (lambda *t: spelled(*t[::-1]), tensors[::-1])]


# ------------------------------------------------------------------------------------------------------------ softmax


def spelled_softmax(x: torch.Tensor) -> torch.Tensor:
    e = (x - x.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


SOFTMAXES: dict[str, tuple[Spelled, torch.Tensor, dict[str, int]]] = {
    "of attention scores": (lambda x: F.softmax(x, dim=-1), rand(2, 3, 4, 5), {"R": 24, "C": 5}),
    "by exp and sum": (spelled_softmax, rand(2, 4, 5), {"R": 8, "C": 5}),
    "of a vector": (lambda x: torch.softmax(x, 0), rand(7), {"R": 1, "C": 7}),
    "down the columns": (lambda x: x.softmax(0), rand(4, 6), {"R": 6, "C": 4}),
    "of padded rows": (lambda x: x.softmax(-1), rand(4, 9)[:, :6], {"R": 4, "C": 6}),
    "exp of log_softmax": (lambda x: torch.log_softmax(x, -1).exp(), rand(4, 6), {"R": 4, "C": 6}),
}


@pytest.mark.parametrize("name", SOFTMAXES)
def test_softmax_in_any_spelling(name: str) -> None:
    spelled, x, dims = SOFTMAXES[name]
    (binding,) = matches(softmax.PROBLEM, spelled, (x,))
    assert dict(binding.dims) == dims


NOT_SOFTMAX: dict[str, tuple[Spelled, torch.Tensor]] = {
    "log_softmax": (lambda x: x.log_softmax(-1), rand(4, 6)),
    "sigmoid": (torch.sigmoid, rand(4, 6)),
    "of an inner dimension": (lambda x: x.softmax(1), rand(2, 4, 6)),
    "of rows that do not merge": (lambda x: x.softmax(-1), rand(2, 6, 4).transpose(1, 2).transpose(0, 1)),
    "scaled": (lambda x: (x / 8).softmax(-1), rand(4, 6)),
}


@pytest.mark.parametrize("name", NOT_SOFTMAX)
def test_not_softmax(name: str) -> None:
    spelled, x = NOT_SOFTMAX[name]
    assert not matches(softmax.PROBLEM, spelled, (x,))


def test_a_softmax_that_changes_the_dtype_is_left_alone() -> None:
    x = torch.empty(4, 6, dtype=torch.bfloat16, device="meta")
    assert not softmax.propose_bindings(Window((x,), F.softmax(x, -1, dtype=torch.float32)))


# ---------------------------------------------------------------------------------------------------------- layernorm


def spelled_layernorm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = x.var(-1, unbiased=False, keepdim=True)
    return weight * (x - mean) / torch.sqrt(variance + 1e-6) + bias


LAYERNORMS: dict[str, tuple[Spelled, Tensors, tuple[Scalar, ...], dict[str, int], float]] = {
    "F.layer_norm": (
        lambda x, w, b: F.layer_norm(x, (6,), w, b, 1e-12),
        (rand(2, 3, 6), rand(6), rand(6) + 1),
        (6, 1e-12),
        {"R": 6, "C": 6},
        1e-12,
    ),
    "default eps": (
        lambda x, w, b: F.layer_norm(x, (6,), w, b),
        (rand(5, 6), rand(6), rand(6) + 1),
        (),
        {"R": 5, "C": 6},
        1e-5,
    ),
    "mean and var": (
        spelled_layernorm,
        (rand(2, 3, 6), rand(6), rand(6) + 1),
        (-1, True, 1e-6),
        {"R": 6, "C": 6},
        1e-6,
    ),
    "two small numbers": (
        spelled_layernorm,
        (rand(2, 3, 6), rand(6), rand(6) + 1),
        (1e-3, 1e-6),
        {"R": 6, "C": 6},
        1e-6,
    ),
    "over an image": (
        lambda x, w, b: F.layer_norm(x, (3, 2, 4), w, b),
        (rand(5, 3, 2, 4), rand(3, 2, 4), rand(3, 2, 4) + 1),
        (1e-5,),
        {"R": 5, "C": 24},
        1e-5,
    ),
    "transposed tokens": (
        lambda x, w, b: F.layer_norm(x, (6,), w, b),
        (rand(1, 6, 4).transpose(1, 2), rand(6), rand(6) + 1),
        (1e-5,),
        {"R": 4, "C": 6},
        1e-5,
    ),
}


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("name", LAYERNORMS)
def test_layernorm_in_any_spelling(name: str, order: int) -> None:
    spelled, tensors, constants, dims, eps = LAYERNORMS[name]
    (binding,) = matches(layernorm.PROBLEM, *reversed_too(spelled, tensors)[order], constants)
    assert (dict(binding.dims), dict(binding.scalars)) == (dims, {"eps": eps})


NOT_LAYERNORM: dict[str, Spelled] = {
    "unbiased variance": lambda x, w, b: (x - x.mean(-1, True)) * (x.var(-1, keepdim=True) + 1e-5).rsqrt() * w + b,
    "eps outside": lambda x, w, b: (
        (x - x.mean(-1, True)) / (x.var(-1, unbiased=False, keepdim=True).sqrt() + 1e-5) * w + b
    ),
    "mean kept": lambda x, w, b: x * (x.square().mean(-1, True) + 1e-5).rsqrt() * w + b,
    "one plus weight": lambda x, w, b: F.layer_norm(x, (6,), 1 + w, b),
}


@pytest.mark.parametrize("name", NOT_LAYERNORM)
def test_not_layernorm(name: str) -> None:
    tensors = (rand(4, 6), rand(6), rand(6) + 1)
    assert not matches(layernorm.PROBLEM, NOT_LAYERNORM[name], tensors, (1e-5,))


def test_a_layernorm_whose_rows_need_a_copy_is_left_alone() -> None:
    tensors = (rand(2, 6, 4).transpose(1, 2), rand(6), rand(6) + 1)
    assert not matches(layernorm.PROBLEM, lambda x, w, b: F.layer_norm(x, (6,), w, b), tensors)


# ------------------------------------------------------------------------------------------------------------- reduce

SUMS: dict[str, tuple[Spelled, torch.Tensor, dict[str, int], int]] = {
    "rows": (lambda x: x.sum(-1), rand(4, 6), {"R": 4, "C": 6}, -1),
    "columns": (lambda x: x.sum(0), rand(4, 6), {"R": 4, "C": 6}, 0),
    "last of four": (lambda x: x.sum(-1, keepdim=True), rand(2, 3, 4, 5), {"R": 24, "C": 5}, -1),
    "first of three": (lambda x: x.sum(0, keepdim=True), rand(3, 4, 5), {"R": 3, "C": 20}, 0),
    "all but the last": (lambda x: x.sum((0, 1)), rand(3, 4, 5), {"R": 12, "C": 5}, 0),
    "the last two": (lambda x: torch.sum(x, (1, 2), keepdim=True), rand(3, 4, 5), {"R": 3, "C": 20}, -1),
    "by a product with ones": (lambda x: x @ torch.ones(6, dtype=x.dtype), rand(4, 6), {"R": 4, "C": 6}, -1),
    "transposed": (lambda x: x.sum(1), rand(6, 4).t(), {"R": 4, "C": 6}, -1),
}


@pytest.mark.parametrize("name", SUMS)
def test_sum_in_any_spelling(name: str) -> None:
    spelled, x, dims, dim = SUMS[name]
    (binding,) = matches(reduce.PROBLEM, spelled, (x,))
    assert (dict(binding.dims), dict(binding.scalars)) == (dims, {"dim": dim})


NOT_SUMS: dict[str, tuple[Spelled, torch.Tensor]] = {
    "mean": (lambda x: x.mean(-1), rand(4, 6)),
    "maximum": (lambda x: x.amax(0), rand(4, 6)),
    "an inner dimension": (lambda x: x.sum(1), rand(3, 4, 5)),
    "squares": (lambda x: x.square().sum(-1), rand(4, 6)),
    "everything": (lambda x: x.sum(), rand(4, 6)),
    "square matrix, diagonal": (torch.diagonal, rand(5, 5)),
}


@pytest.mark.parametrize("name", NOT_SUMS)
def test_not_a_sum(name: str) -> None:
    spelled, x = NOT_SUMS[name]
    assert not matches(reduce.PROBLEM, spelled, (x,))


def test_a_square_matrix_binds_by_the_dimension_that_is_summed() -> None:
    for dim in (-1, 0):
        (binding,) = matches(reduce.PROBLEM, lambda x, dim=dim: x.sum(dim), (rand(5, 5),))
        assert binding.scalars["dim"] == dim


# ------------------------------------------------------------------------------------------------------ cross entropy


def spelled_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    picked = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return (logits.logsumexp(-1) - picked).mean()


LOSSES: dict[str, tuple[Spelled, Tensors, tuple[Scalar, ...]]] = {
    "F.cross_entropy": (F.cross_entropy, (rand(6, 9), classes(9, 6)), ()),
    "nn.CrossEntropyLoss": (torch.nn.CrossEntropyLoss(), (rand(6, 9), classes(9, 6)), (None, -100, 0.0)),
    "of a batch": (
        lambda x, t: F.cross_entropy(x.view(-1, 9), t.view(-1), ignore_index=-1),
        (rand(2, 3, 9), classes(9, 2, 3)),
        (-1, 9, -1),
    ),
    "by flattened sizes": (
        lambda x, t: F.cross_entropy(x.view(6, 9), t.view(6)),
        (rand(2, 3, 9), classes(9, 2, 3)),
        (6, 9, 6),
    ),
    "F.nll_loss": (lambda x, t: F.nll_loss(x.log_softmax(-1), t), (rand(6, 9), classes(9, 6)), (-1,)),
    "by logsumexp": (spelled_loss, (rand(2, 3, 9), classes(9, 2, 3)), ()),
}


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("name", LOSSES)
def test_cross_entropy_in_any_spelling(name: str, order: int) -> None:
    spelled, tensors, constants = LOSSES[name]
    (binding,) = matches(cross_entropy.PROBLEM, *reversed_too(spelled, tensors)[order], constants)
    assert dict(binding.dims) == {"R": 6, "V": 9}


NOT_LOSSES: dict[str, tuple[Spelled, Tensors, tuple[Scalar, ...]]] = {
    "a sum": (lambda x, t: F.cross_entropy(x, t, reduction="sum"), (rand(6, 9), classes(9, 6)), ()),
    "smoothed": (lambda x, t: F.cross_entropy(x, t, label_smoothing=0.1), (rand(6, 9), classes(9, 6)), (0.1,)),
    "an ignored class": (lambda x, t: F.cross_entropy(x, t, ignore_index=3), (rand(6, 9), classes(3, 6)), (3,)),
    "classes not last": (F.cross_entropy, (rand(2, 9, 3), classes(9, 2, 3)), ()),
    "each row's own": (lambda x, t: F.cross_entropy(x, t, reduction="none"), (rand(6, 9), classes(9, 6)), ()),
}


@pytest.mark.parametrize("name", NOT_LOSSES)
def test_not_cross_entropy(name: str) -> None:
    spelled, tensors, constants = NOT_LOSSES[name]
    assert not matches(cross_entropy.PROBLEM, spelled, tensors, constants)


@pytest.mark.parametrize("ignored", [-100, -1])
def test_rows_that_models_ignore_do_not_count(ignored: int) -> None:
    logits, targets = rand(6, 9), classes(9, 6)
    targets[1::2] = ignored
    loss = cross_entropy.reference(logits, targets)
    assert torch.allclose(loss, F.cross_entropy(logits, targets, ignore_index=ignored))
