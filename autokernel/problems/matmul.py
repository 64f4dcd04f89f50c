"""Matrix product: C = A · B."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence

import torch

from autokernel.problems._common import LOOSE, TORCH_DTYPES, nbytes, randn
from autokernel.problems._views import has_rows, rows_of
from autokernel.types import AdversarialInput, Binding, Dims, DType, Problem, Window, Workload

View = Callable[[torch.Tensor], torch.Tensor]


def reference(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
    """A [M, K], B [K, N] -> [M, N], all of one float dtype; any strides.

    Source: torch.matmul, which accumulates half precision in float32.
    """
    return A @ B


def make_inputs(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """B is scaled by 1/sqrt(K), as trained weights are, so that the output's magnitude does not grow with K."""
    rows, depth, columns = dims["M"], dims["K"], dims["N"]
    return (
        randn((rows, depth), dtype, generator),
        randn((depth, columns), dtype, generator, scale=max(depth, 1) ** -0.5),
    )


def _cancellation(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """The second half of K takes the first away again, all but one row of B: partial sums are 20 times the result."""
    a, b = make_inputs(dims, dtype, generator)
    half = dims["K"] // 2
    a[:, half : 2 * half] = a[:, :half]
    b[:half] *= 32
    b[half : 2 * half] = -b[:half]
    b[half - 1] += torch.randn(dims["N"], generator=generator).to(b.dtype)
    return a, b


def _same_sign(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """A long sum of positive terms: an accumulator in half precision stops growing long before the end."""
    a, b = make_inputs(dims, dtype, generator)
    return a.abs() + 0.5, b.abs()


def _mixed_scales(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """A grows along K as B shrinks, by 2^18, and A's rows differ by 2^6: no single scale serves a tile of either."""
    a, b = make_inputs(dims, dtype, generator)
    depth = 2.0 ** torch.linspace(-9, 9, dims["K"])
    rows = 2.0 ** torch.linspace(-3, 3, dims["M"]).unsqueeze(1)
    return (a.float() * depth * rows).to(a.dtype), (b.float() / depth.unsqueeze(1)).to(b.dtype)


def _near_overflow(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Every result is finite in the dtype (about 30,000), and the partial sums of its first half are not in fp16."""
    a, b = make_inputs(dims, dtype, generator)
    depth = dims["K"]
    weights = torch.full((depth, 1), 2.0 * 90000 / depth)
    weights[depth // 2 :] = -2.0 * 60000 / depth
    return torch.ones_like(a), (weights * (1 + 0.01 * b.float().clamp(-3, 3))).to(b.dtype)


def _zeros(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Zero rows, zero columns and a zero block in the middle of K: nothing may be skipped or left over."""
    a, b = make_inputs(dims, dtype, generator)
    a[::3] = 0
    b[:, 1::4] = 0
    b[dims["K"] // 4 : dims["K"] // 2] = 0
    return a, b


def _denormals(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """A is below the dtype's normal range and B lifts it back: a kernel that flushes denormals returns zeros."""
    a, b = make_inputs(dims, dtype, generator)
    tiny = torch.finfo(TORCH_DTYPES[dtype]).tiny
    lift = 2.0**10 if dtype == "fp16" else 2.0**80
    return (a.double().clamp(-3, 3) * (tiny / 4)).to(a.dtype), (b.double() * lift).to(b.dtype)


def _infinite_rows(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """A row with a NaN and a row with an infinity spoil their own rows of the result, and no others."""
    a, b = make_inputs(dims, dtype, generator)
    a[1, dims["K"] // 2] = float("nan")
    a[dims["M"] - 1, 0] = float("inf")
    return a, b


def flops(workload: Workload) -> int:
    return 2 * workload.dims["M"] * workload.dims["K"] * workload.dims["N"]


def bytes_moved(workload: Workload) -> int:
    rows, depth, columns = workload.dims["M"], workload.dims["K"], workload.dims["N"]
    return nbytes(workload.dtype, (rows, depth), (depth, columns), (rows, columns))


def _left(tensor: torch.Tensor) -> Iterator[tuple[tuple[int, int], View]]:
    """The ways in which a tensor can be A, as (shape, view): its leading dimensions are rows, or it is transposed."""
    if tensor.dim() == 0 or tensor.numel() == 0:
        return
    depth = tensor.shape[-1]
    if has_rows(tensor, depth):
        yield (tensor.numel() // depth, depth), lambda t: rows_of(t, t.shape[-1])
    if tensor.dim() == 2:
        yield (tensor.shape[1], tensor.shape[0]), lambda t: t.t()


def _right(tensor: torch.Tensor) -> Iterator[tuple[tuple[int, int], View]]:
    """The ways in which a tensor can be B: the weight of F.linear (transposed), a matrix, a vector, or one matrix that
    is the same for the whole batch (an expanded weight in bmm).
    """
    if tensor.dim() == 2:
        yield (tensor.shape[1], tensor.shape[0]), lambda t: t.t()
        yield (tensor.shape[0], tensor.shape[1]), lambda t: t
    elif tensor.dim() == 1:
        yield (tensor.shape[0], 1), lambda t: t.unsqueeze(1)
    elif tensor.dim() == 3 and (tensor.shape[0] == 1 or tensor.stride(0) == 0):
        yield (tensor.shape[1], tensor.shape[2]), lambda t: t[0]
        yield (tensor.shape[2], tensor.shape[1]), lambda t: t[0].t()


def propose_bindings(window: Window) -> Sequence[Binding]:
    """Any pair of tensors whose product has the output's shape: F.linear without bias (B = weight.t(), strides (1, K)),
    ``@`` and bmm with a two-dimensional right side, Conv1D. What cannot be flattened without a copy is not offered.
    """
    bindings: list[Binding] = []
    if len(window.tensors) != 2 or window.tensors[0].dtype != window.tensors[1].dtype:
        return bindings
    out = window.output
    for i, j in itertools.permutations(range(2)):
        for ((rows, depth), left), (shape, right) in itertools.product(
            _left(window.tensors[i]), _right(window.tensors[j])
        ):
            columns = shape[1]
            fits = out.dim() < 2 or (out.shape[-1] == columns or columns == 1)
            if shape[0] != depth or out.numel() != rows * columns or not fits:
                continue
            bindings.append(
                Binding(
                    dims={"M": rows, "K": depth, "N": columns},
                    scalars={},
                    adapt=lambda *t, i=i, j=j, left=left, right=right: (left(t[i]), right(t[j])),
                    restore=lambda c, *_, shape=tuple(out.shape): c.view(shape),
                )
            )
    return bindings


def held_out(rng: random.Random) -> Dims:
    return {"M": rng.randint(1, 150), "K": rng.randint(1, 300), "N": rng.randint(1, 150)}


ADVERSARIAL_DIMS = {"M": 33, "K": 512, "N": 47}

GUIDE = """
- Bytes: (M·K + K·N + M·N) · itemsize at the least; flops: 2·M·K·N. Their ratio decides everything: with M of 1 to
  16 the product reads B once and is memory-bound, with all three in the hundreds it is compute-bound.
- Structure: a grid of output tiles; each keeps its accumulator in registers and walks along K. Reuse of a tile of
  BM x BN is BM·BN / (BM + BN): larger tiles need less traffic and more registers. All else (pipelining, order of
  tiles, layout in shared memory or packed panels) serves to keep the multiply-add units from waiting.
- Layout: B of a linear layer comes as weight.t(), strides (1, K), and A may be a slice with a row stride above K.
  The best kernel reads both as they lie; `contiguous()` costs a pass over the operand.
- fp32: real fp32 products. TF32 and half-precision tricks are caught by the mean square rule (2^-11 a term against
  2^-24). fp16: accumulate in fp32; partial sums exceed 65504 in near_overflow although every result fits. bf16:
  likewise; round once. Denormals of the inputs count: no flush to zero on the way in. NaN and infinity stay in
  their rows and columns, so a padded lane must be multiplied as zero times zero, never as zero times what memory
  holds.
- Edges: M, K or N of 0 (K = 0 gives zeros), 1, 17, 63, 1023, 1537, 4097. Masks along K matter most: a garbage tail
  is added to every element of the tile.
- Best known: cuBLAS and oneDNN; the ceiling for large squares is their own figure. A portable kernel that reaches
  80 % of theirs is good; small or skewed shapes and an epilogue are where they leave room.
"""

PROBLEM = Problem(
    name="matmul",
    summary=__doc__,
    reference=reference,
    inputs=("A", "B"),
    make_inputs=make_inputs,
    shapes={
        "cpu": (
            {"M": 1, "K": 64, "N": 64},
            {"M": 64, "K": 64, "N": 64},
            {"M": 128, "K": 128, "N": 128},
            {"M": 1, "K": 768, "N": 256},
            {"M": 5, "K": 384, "N": 96},
            {"M": 96, "K": 768, "N": 80},
            {"M": 256, "K": 32, "N": 144},
            {"M": 40, "K": 2048, "N": 24},
            {"M": 130, "K": 260, "N": 516},
        ),
        "cuda": (
            {"M": 128, "K": 128, "N": 128},
            {"M": 512, "K": 512, "N": 512},
            {"M": 1024, "K": 1024, "N": 1024},
            {"M": 2048, "K": 2048, "N": 2048},
            {"M": 4096, "K": 4096, "N": 4096},
            {"M": 4096, "K": 4096, "N": 11008},
            {"M": 2048, "K": 8192, "N": 1024},
            {"M": 2064, "K": 4112, "N": 2064},  # large, and no tile divides it
            {"M": 1, "K": 4096, "N": 4096},
            {"M": 16, "K": 4096, "N": 11008},
        ),
    },
    edge_shapes=(
        {"M": 1, "K": 1, "N": 1},
        {"M": 17, "K": 63, "N": 65},
        {"M": 40, "K": 72, "N": 104},  # rows begin where vectors may, and no tile divides it
        {"M": 65, "K": 1023, "N": 17},
        {"M": 3, "K": 4097, "N": 33},
        {"M": 63, "K": 9, "N": 1537},
        {"M": 1537, "K": 17, "N": 1},
        {"M": 31, "K": 1, "N": 129},
        {"M": 0, "K": 16, "N": 8},
        {"M": 8, "K": 16, "N": 0},
        {"M": 4, "K": 0, "N": 8},
    ),
    adversarial=(
        AdversarialInput("cancellation", ADVERSARIAL_DIMS, _cancellation),
        AdversarialInput("same_sign", {"M": 9, "K": 4096, "N": 17}, _same_sign),
        AdversarialInput("mixed_scales", ADVERSARIAL_DIMS, _mixed_scales),
        AdversarialInput("near_overflow", ADVERSARIAL_DIMS, _near_overflow),
        AdversarialInput("zeros", ADVERSARIAL_DIMS, _zeros),
        AdversarialInput("denormals", ADVERSARIAL_DIMS, _denormals),
        AdversarialInput("infinite_rows", ADVERSARIAL_DIMS, _infinite_rows),
    ),
    tolerances=LOOSE,
    tolerance_reason="Each output is a sum of K products kept in float32, whose rounding errors grow with sqrt(K), "
    "then one rounding to the dtype. The fp32 bound refuses products in TF32 or half precision (2^-11 a term).",
    flops=flops,
    bytes=bytes_moved,
    baselines={"eager": torch.matmul},  # it is the library call: cuBLAS, or MKL and oneDNN
    propose_bindings=propose_bindings,
    held_out=held_out,
)
