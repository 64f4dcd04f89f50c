"""LayerNorm over the last dimension: y = (x - mean(x)) / sqrt(var(x) + eps) · weight + bias."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from autokernel.problems._common import TIGHT, TORCH_DTYPES, nbytes, randn
from autokernel.problems._views import has_rows, rows_of
from autokernel.types import AdversarialInput, Binding, Dims, DType, Problem, Window, Workload


def reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """x [R, C], weight [C], bias [C] -> [R, C], all of one float dtype. Statistics in at least float32; the variance
    is the biased one, and the mean is subtracted before squaring.

    Source: Ba, Kiros and Hinton, "Layer Normalization", 2016.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(-1, keepdim=True)
    normed = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return (normed * weight + bias).to(x.dtype)


def eager(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def make_inputs(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    return (
        randn((dims["R"], dims["C"]), dtype, generator, scale=1.5, mean=0.5),
        randn((dims["C"],), dtype, generator, scale=0.5, mean=1.0),
        randn((dims["C"],), dtype, generator, scale=0.5),
    )


def _large_mean(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Mean 30, spread 0.01: E[x²] - E[x]² in float32 keeps no digit of this variance."""
    _, weight, bias = make_inputs(dims, dtype, generator)
    return randn((dims["R"], dims["C"]), dtype, generator, scale=0.01, mean=30.0), weight, bias


def _no_variance(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Constant rows, zero rows and rows of 1e-4 noise: eps decides, and the result is near the bias."""
    _, weight, bias = make_inputs(dims, dtype, generator)
    x = randn((dims["R"], dims["C"]), dtype, generator, scale=1e-4)
    x[::3] = 1000.0
    x[1::3] = 0
    return x, weight, bias


def _outlier(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """One element is 10,000 times the others: the first of some rows (where a shift might be taken from), the last
    of others."""
    x, weight, bias = make_inputs(dims, dtype, generator)
    x[0::2, 0] = 1e4
    x[1::2, dims["C"] - 1] = -1e4
    return x, weight, bias


def _scaled_rows(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Rows whose magnitudes span the dtype's comfortable range: a squared sum in fp16 overflows here."""
    x, weight, bias = make_inputs(dims, dtype, generator)
    exponents = torch.linspace(-8, 12 if dtype == "fp16" else 20, dims["R"]).unsqueeze(1)
    return (x.float() * 2.0**exponents).to(TORCH_DTYPES[dtype]), weight, bias


def _poisoned(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """A NaN in one row and +inf in another: those rows are NaN throughout, their neighbours are untouched."""
    x, weight, bias = make_inputs(dims, dtype, generator)
    x[1, dims["C"] // 3] = float("nan")
    x[3, 0] = float("inf")
    return x, weight, bias


def flops(workload: Workload) -> int:
    """Per element: two of the mean and the difference, two of the variance, one product, two of weight and bias."""
    return 7 * workload.dims["R"] * workload.dims["C"]


def bytes_moved(workload: Workload) -> int:
    rows, columns = workload.dims["R"], workload.dims["C"]
    return nbytes(workload.dtype, (rows, columns), (rows, columns), (columns,), (columns,))


def propose_bindings(window: Window) -> Sequence[Binding]:
    """x of any rank, with a weight and a bias of the shape of its last dimensions (one or more of them).

    eps is one of the window's small constants, else 1e-5. Accepted are inputs whose leading dimensions merge without
    a copy. A LayerNorm that lacks its weight or bias has no tensor to bind there, and is left alone.
    """
    if len(window.tensors) != 3 or not all(t.is_floating_point() for t in window.tensors):
        return []
    eps_values = list(dict.fromkeys(c for c in window.constants if isinstance(c, float) and 0 < c < 1e-2)) or [1e-5]
    bindings = []
    for i, j, k in itertools.permutations(range(3)):
        x, weight, bias = (window.tensors[n] for n in (i, j, k))
        tail = x.shape[x.dim() - weight.dim() :]
        if x.shape != window.output.shape or weight.dim() < 1 or x.dim() < weight.dim():
            continue
        if weight.shape != tail or bias.shape != tail or len({t.dtype for t in (x, weight, bias, window.output)}) > 1:
            continue
        columns = weight.numel()
        if not (has_rows(x, columns) and has_rows(weight, columns) and has_rows(bias, columns)):
            continue
        for eps in eps_values:
            bindings.append(
                Binding(
                    dims={"R": x.numel() // columns, "C": columns},
                    scalars={"eps": eps},
                    adapt=lambda *t, i=i, j=j, k=k: (
                        rows_of(t[i], t[j].numel()),
                        t[j].view(t[j].numel()),
                        t[k].view(t[k].numel()),
                    ),
                    restore=lambda out, *t, i=i: out.reshape(t[i].shape),
                )
            )
    return bindings


def held_out(rng: random.Random) -> Dims:
    return {"R": rng.randint(1, 97), "C": rng.randint(2, 2100)}


GUIDE = """
- Bytes: (2·R·C + 2·C) · itemsize: x read once, y written once; weight and bias come from the cache after the first
  rows. Structure: one owner a row; the row stays in registers over both reductions (mean, then centred squares), so
  that the exact two-pass variance costs no second read. Reductions take time that loads of other rows must hide:
  several rows in flight a multiprocessor, or a loop over rows with the next row's load issued early.
- Variance: the biased one, of centred values. E[x²] − E[x]² loses every digit at mean 30 and spread 0.01
  (large_mean); a shift by the first element fails where that element is the outlier. Pairwise (n, mean, M2) merging
  is safe for split rows. fp32 is held to 1e-5 of the output's size or 4 times PyTorch's own error, which is the
  larger where the mean dominates. fp16: 1000 squared overflows; every statistic in fp32. bf16: convert by shift,
  round once at the end.
- Constant rows: the centred values are exactly 0 if the mean is exact; a mean that is off by one unit in the last
  place of 1000 shows as noise times 1/sqrt(eps): sum in a tree or with several accumulators, and multiply by 1/C in
  fp32. NaN or +inf: that row is NaN throughout, others untouched.
- Measured on an H200 in fp16: torch.compile, the best there, reaches 57 % of the copy floor at 4096 x 5120 and 83 %
  at 8192 x 4096. 90 % is the aim; rows whose width is no power of two are where the most is left.
"""

PROBLEM = Problem(
    name="layernorm",
    summary=__doc__,
    reference=reference,
    inputs=("x", "weight", "bias"),
    make_inputs=make_inputs,
    shapes={
        "cpu": (
            {"R": 1, "C": 64},
            {"R": 4, "C": 128},
            {"R": 33, "C": 256},
            {"R": 7, "C": 768},
            {"R": 64, "C": 1024},
            {"R": 128, "C": 768},
            {"R": 16, "C": 2048},
            {"R": 8, "C": 5120},
        ),
        "cuda": (
            {"R": 1, "C": 4096},
            {"R": 32, "C": 128},
            {"R": 256, "C": 1024},
            {"R": 1024, "C": 768},
            {"R": 2048, "C": 2048},
            {"R": 8192, "C": 4096},
            {"R": 4096, "C": 5120},
            {"R": 1024, "C": 8192},
            {"R": 64, "C": 16384},
        ),
    },
    edge_shapes=(
        {"R": 3, "C": 1023},
        {"R": 2, "C": 1537},
        {"R": 2, "C": 4097},
        {"R": 5, "C": 1},
        {"R": 1, "C": 1},
        {"R": 0, "C": 8},
    ),
    adversarial=(
        AdversarialInput("large_mean", {"R": 16, "C": 768}, _large_mean),
        AdversarialInput("no_variance", {"R": 9, "C": 512}, _no_variance),
        AdversarialInput("outlier", {"R": 8, "C": 768}, _outlier),
        AdversarialInput("scaled_rows", {"R": 32, "C": 512}, _scaled_rows, {"eps": 1e-6}),
        AdversarialInput("poisoned", {"R": 6, "C": 257}, _poisoned),
    ),
    tolerances=TIGHT,
    tolerance_reason="Each output is one difference, two products and one addition on row statistics kept in float32, "
    "a few units in the last place where the mean is of the spread's size. Where it is far larger the difference "
    "cancels, in PyTorch too (4e-4 at mean 30 and spread 0.01): there its own error sets the budget.",
    flops=flops,
    bytes=bytes_moved,
    baselines={"eager": eager},
    propose_bindings=propose_bindings,
    held_out=held_out,
    scalars={"eps": 1e-5},
    edge_scalars=({"eps": 1e-3},),
)
