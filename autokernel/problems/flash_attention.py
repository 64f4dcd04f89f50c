"""Scaled dot-product attention: O = softmax(Q · Kᵀ · sm_scale) · V, causal or not, with grouped queries."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F

from autokernel.problems._common import LOOSE, nbytes, randn
from autokernel.types import AdversarialInput, Binding, Dims, DType, Problem, Scalar, Window, Workload

View = Callable[[torch.Tensor], torch.Tensor]
MOST_HEADS = 256  # a longer dimension is the sequence; a guess costs a run


def reference(
    Q: torch.Tensor, K: torch.Tensor, V: torch.Tensor, causal: bool = True, sm_scale: float | None = None
) -> torch.Tensor:
    """Q [B, H, S, D], K and V [B, G, T, D] -> [B, H, S, D], all of one float dtype; any strides.

    G divides H: query head h reads head h // (H / G) of K and V. Causal means that query i sees keys 0 to i, counted
    from the top left as in ``scaled_dot_product_attention(is_causal=True)``. ``sm_scale`` is 1/sqrt(D) when None.
    Scores, softmax and sums in at least float32. Source: Vaswani et al., "Attention Is All You Need", 2017, and Ainslie
    et al., "GQA", 2023.
    """
    wide = torch.promote_types(Q.dtype, torch.float32)
    group = Q.shape[1] // K.shape[1]
    keys, values = (t.to(wide).repeat_interleave(group, dim=1) for t in (K, V))
    scores = Q.to(wide) @ keys.transpose(-1, -2) * (1 / math.sqrt(Q.shape[-1]) if sm_scale is None else sm_scale)
    if causal:
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~visible, float("-inf"))
    return (torch.softmax(scores, dim=-1) @ values).to(Q.dtype)


def eager(
    Q: torch.Tensor, K: torch.Tensor, V: torch.Tensor, causal: bool = True, sm_scale: float | None = None
) -> torch.Tensor:
    """The library call itself: FlashAttention or cuDNN on a GPU, a blocked kernel on a CPU."""
    return F.scaled_dot_product_attention(
        Q, K, V, is_causal=causal, scale=sm_scale, enable_gqa=Q.shape[1] != K.shape[1]
    )


def _shapes(dims: Dims) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (
        (dims["B"], dims["H"], dims["S"], dims["D"]),
        (dims["B"], dims["G"], dims["T"], dims["D"]),
    )


def make_inputs(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    queries, keys = _shapes(dims)
    return randn(queries, dtype, generator), randn(keys, dtype, generator), randn(keys, dtype, generator)


def _large_equal_scores(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """All scores of a row are the same and far above what exp can take (128): the result is the mean of V."""
    q, k, v = make_inputs(dims, dtype, generator)
    return torch.full_like(q, 16.0), torch.full_like(k, 8.0 / math.sqrt(dims["D"])), v


def _one_huge_score(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """One key in the middle outweighs all others: the running maximum jumps, what came before vanishes."""
    q, k, v = make_inputs(dims, dtype, generator)
    k[:, :, dims["T"] // 2] = 16.0
    return q.abs() + 0.5, k, v


def _rising_scores(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Every key scores higher than those before it: the maximum changes in every block, over a range of 80."""
    q, k, v = make_inputs(dims, dtype, generator)
    slope = torch.linspace(-5, 5, dims["T"]).view(-1, 1)
    return torch.ones_like(q) * 8 / math.sqrt(dims["D"]), (0.01 * k.float() + slope).to(k.dtype), v


def _negative_scores(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """All scores are near -100: a maximum that starts from zero leaves sums that vanish in float32."""
    q, k, v = make_inputs(dims, dtype, generator)
    root = math.sqrt(dims["D"])
    return torch.full_like(q, -10.0), ((0.1 * k.float() + 10) / root).to(k.dtype), v


def _zero_values(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Zero rows in V, K and Q: weights are uniform where Q is zero, and no row may be skipped for it."""
    q, k, v = make_inputs(dims, dtype, generator)
    v[:, :, ::2] = 0
    k[:, :, 1::3] = 0
    q[:, :, ::5] = 0
    return q, k, v


def _outlying_values(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """V far from zero (mean 100): weights that do not add up to one show at once."""
    q, k, v = make_inputs(dims, dtype, generator)
    return q, k, (v.float() + 100).to(v.dtype)


def _nan_query(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """A NaN in one query spoils that row of the result, and no other."""
    q, k, v = make_inputs(dims, dtype, generator)
    q[:, :, dims["S"] // 2, 0] = float("nan")
    return q, k, v


def _visible_pairs(workload: Workload) -> int:
    """Pairs of query and key that count, for one head."""
    queries, keys = workload.dims["S"], workload.dims["T"]
    if not workload.scalars.get("causal", True):
        return queries * keys
    diagonal = min(queries, keys)
    return diagonal * (diagonal + 1) // 2 + (queries - diagonal) * keys


def flops(workload: Workload) -> int:
    """Two products over the visible pairs; the softmax is not counted, as usual."""
    dims = workload.dims
    return 4 * dims["B"] * dims["H"] * dims["D"] * _visible_pairs(workload)


def bytes_moved(workload: Workload) -> int:
    queries, keys = _shapes(workload.dims)
    return nbytes(workload.dtype, queries, keys, keys, queries)


def _heads(tensor: torch.Tensor) -> Iterator[tuple[str, View]]:
    """The ways to see a tensor as [B, heads, length, D], each with the layout's name."""
    if tensor.dim() == 4:
        yield "bhsd", lambda t: t
        yield "bshd", lambda t: t.transpose(1, 2)
    elif tensor.dim() == 3:  # bmm over B · H, or one unbatched sequence of heads
        yield "hsd", lambda t: t.unsqueeze(0)
    elif tensor.dim() == 2:
        yield "sd", lambda t: t[None, None]


def _restores(shape: tuple[int, ...], layout: str, dims: Dims) -> View | None:
    """How [B, H, S, D] becomes the region's output: in Q's layout, or with heads merged into [B, S, H · D]."""
    heads_first = (dims["B"], dims["H"], dims["S"], dims["D"])
    heads_second = (dims["B"], dims["S"], dims["H"], dims["D"])
    merged = (dims["B"], dims["S"], dims["H"] * dims["D"])
    if shape == heads_first and (layout == "bhsd" or shape != heads_second):
        return lambda out: out
    if shape == heads_second:
        return lambda out: out.transpose(1, 2)
    if layout in ("hsd", "sd") and shape == heads_first[4 - len(layout) :]:
        return lambda out: out.view(shape)
    if layout in ("bhsd", "bshd") and shape == merged:
        return lambda out: out.transpose(1, 2).reshape(shape)  # copies unless out lies so: the region copied too
    return None


def _scalar_choices(constants: Sequence[Scalar]) -> list[dict[str, Scalar]]:
    """Values of causal and sm_scale that the window's numbers allow: the default, a scale or its square (Q and K each
    scaled), the inverse of a divisor (scores divided by sqrt(D)), none at all.
    """
    flags = [c for c in constants if isinstance(c, bool)]
    # True may be enable_gqa; with False alone a causal mask may still come as a tensor, the same in every forward
    causal = (True, False) if not flags or any(flags) else (False, True)
    scales: list[float | None] = [None]
    for number in constants:
        if isinstance(number, float) and 1e-4 < number < 1e4:
            scales += [number, number * number] if number < 1 else [1 / number]
    if not any(flags):  # a True comes with the library's call, whose default is a scale
        scales.append(1.0)
    return [{"causal": c, "sm_scale": s} for s in dict.fromkeys(scales) for c in causal]


def propose_bindings(window: Window) -> Sequence[Binding]:
    """Three tensors as Q, K and V: scaled_dot_product_attention, or its spelling by products, mask and softmax, with
    heads before or after the sequence, or merged with the batch; K may come transposed, [.., D, T].

    A mask that comes as a tensor is not bound: whether it is causal is known only when the model runs.
    """
    bindings: list[Binding] = []
    tensors = window.tensors
    if len(tensors) != 3 or len({t.dtype for t in tensors}) != 1 or any(t.numel() == 0 for t in tensors):
        return bindings
    shape = tuple(window.output.shape)
    for (i, j, k), scalars in itertools.product(itertools.permutations(range(3)), _scalar_choices(window.constants)):
        for layout, view in _heads(tensors[i]):
            if tensors[j].dim() != len(layout) or tensors[k].dim() != len(layout):
                continue
            q, v, plain = view(tensors[i]), view(tensors[k]), view(tensors[j])
            for key, flip in ((plain, False), (plain.transpose(-1, -2), True)):
                batch, heads, length, depth = q.shape
                groups = v.shape[1]
                if len(layout) == 4 and heads > MOST_HEADS:
                    continue
                if tuple(key.shape) != tuple(v.shape) or (v.shape[0], v.shape[3]) != (batch, depth) or heads % groups:
                    continue
                dims = {"B": batch, "H": heads, "G": groups, "S": length, "T": v.shape[2], "D": depth}
                restore = _restores(shape, layout, dims)
                if restore is None:
                    continue

                def adapt(
                    *t: torch.Tensor, i: int = i, j: int = j, k: int = k, view: View = view, flip: bool = flip
                ) -> tuple[torch.Tensor, ...]:
                    keys = view(t[j])
                    return view(t[i]), keys.transpose(-1, -2) if flip else keys, view(t[k])

                bindings.append(Binding(dims, scalars, adapt, lambda out, *_, restore=restore: restore(out)))
    return bindings


def held_out(rng: random.Random) -> Dims:
    groups, length = rng.randint(1, 3), rng.randint(1, 150)
    return {
        "B": rng.randint(1, 2),
        "H": groups * rng.randint(1, 3),
        "G": groups,
        "S": length,
        "T": rng.choice((length, rng.randint(1, 150))),
        "D": rng.choice((16, 32, 40, 64, 80, 96, 128)),
    }


def _dims(batch: int, heads: int, groups: int, queries: int, keys: int, depth: int) -> Dims:
    return {"B": batch, "H": heads, "G": groups, "S": queries, "T": keys, "D": depth}


ADVERSARIAL_DIMS = _dims(1, 2, 1, 130, 130, 64)

GUIDE = """
- Bytes: (2·B·H·S·D + 2·B·G·T·D) · itemsize; flops: 4·D a visible pair of query and key: half of S·T with `causal`.
  Compute-bound from S of a few hundred; memory-bound for S = 1, where K and V are read once.
- Structure: a block of queries keeps O, the running maximum m and sum s in registers and walks over blocks of keys:
  scores, new maximum, p = exp2(scores − m), s and O rescaled, O += p · V. Scores never go to memory.
- Work next to the products: for D = 64 exponentials take as long as the products on a fast GPU, so fewer operations
  a score (folded scale, no mask off the diagonal) are worth as much as a better product.
- `causal` counts from the top left whatever S and T are: query i sees keys 0 to i; for T < S late queries see all
  keys. `sm_scale` None means 1/sqrt(D); any float may come. G divides H: query head h reads head h // (H / G).
- fp32: both products in real fp32. fp16, bf16: scores and sums in fp32; p may be rounded to the dtype for the
  second product, s sums the unrounded p. In fp16 scores of 128 and more are exact cases of large_equal_scores:
  scale in fp32, not in Q. NaN in one query spoils that row alone: the maximum must not be shared by rows.
- Inputs are often views ([B, S, H, D] transposed): use all strides, the last one too if it is not 1.
- Measured on an H200 in fp16, causal: the library reaches 52 % of the matmul rate at S = 2048 and D = 64, 60 % at S
  = 2048 and 81 % at S = 8192 with D = 128. It is strong; odd shapes, short sequences and decoding are where it
  leaves room.
"""

PROBLEM = Problem(
    name="flash_attention",
    summary=__doc__,
    reference=reference,
    inputs=("Q", "K", "V"),
    make_inputs=make_inputs,
    shapes={
        "cpu": (
            _dims(1, 1, 1, 16, 16, 16),
            _dims(1, 2, 2, 64, 64, 64),
            _dims(2, 4, 2, 48, 48, 32),
            _dims(1, 8, 1, 33, 33, 64),
            _dims(1, 2, 2, 128, 128, 64),
            _dims(1, 2, 1, 1, 96, 64),
            _dims(1, 1, 1, 300, 300, 32),
            _dims(1, 2, 2, 40, 72, 128),
            _dims(3, 2, 2, 24, 24, 80),
        ),
        "cuda": (
            _dims(1, 1, 1, 64, 64, 64),
            _dims(2, 12, 12, 512, 512, 64),
            _dims(1, 32, 32, 1024, 1024, 128),
            _dims(2, 32, 32, 2048, 2048, 64),
            _dims(1, 32, 32, 2048, 2048, 128),
            _dims(1, 32, 8, 2048, 2048, 128),
            _dims(1, 16, 1, 1024, 1024, 64),
            _dims(8, 32, 8, 1, 2048, 128),
            _dims(1, 8, 8, 512, 1024, 96),
        ),
    },
    edge_shapes=(
        _dims(1, 1, 1, 1, 1, 64),
        _dims(1, 3, 1, 17, 17, 16),
        _dims(1, 1, 1, 63, 65, 32),
        _dims(1, 2, 2, 65, 63, 63),
        _dims(1, 1, 1, 1, 1537, 16),
        _dims(1, 1, 1, 3, 4097, 8),
        _dims(1, 1, 1, 1023, 1023, 16),
        _dims(1, 1, 1, 5, 5, 1),
        _dims(0, 2, 2, 4, 4, 16),
        _dims(1, 2, 1, 0, 8, 16),
    ),
    adversarial=(
        AdversarialInput("large_equal_scores", ADVERSARIAL_DIMS, _large_equal_scores),
        AdversarialInput("one_huge_score", ADVERSARIAL_DIMS, _one_huge_score),
        AdversarialInput("rising_scores", ADVERSARIAL_DIMS, _rising_scores, {"causal": False}),
        AdversarialInput("rising_scores_causal", ADVERSARIAL_DIMS, _rising_scores),
        AdversarialInput("negative_scores", ADVERSARIAL_DIMS, _negative_scores, {"causal": False}),
        AdversarialInput("long_row", _dims(1, 1, 1, 2, 3000, 32), _zero_values, {"causal": False}),
        AdversarialInput("zero_values", ADVERSARIAL_DIMS, _zero_values),
        AdversarialInput("outlying_values", ADVERSARIAL_DIMS, _outlying_values, {"sm_scale": 0.3}),
        AdversarialInput("nan_query", ADVERSARIAL_DIMS, _nan_query),
    ),
    tolerances=LOOSE,
    tolerance_reason="A score is a sum of D products kept in float32; its error, about the score times 2^-24 times "
    "sqrt(D), is the relative error of a weight. Weights may be rounded to the dtype before the second product.",
    flops=flops,
    bytes=bytes_moved,
    baselines={"eager": eager},  # scaled_dot_product_attention is the best library call, too
    propose_bindings=propose_bindings,
    held_out=held_out,
    scalars={"causal": True, "sm_scale": None},
    edge_scalars=({"causal": False}, {"sm_scale": 0.5}, {"causal": False, "sm_scale": 0.05}),
)
