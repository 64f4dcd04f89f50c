"""Sum of a matrix over one dimension: y[r] = sum over c of x[r, c], or y[c] = sum over r of it."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from autokernel.problems._common import TIGHT, TORCH_DTYPES, nbytes, randn
from autokernel.problems._views import has_rows, rows_of
from autokernel.types import AdversarialInput, Binding, Dims, DType, Problem, Tolerance, Window, Workload


def reference(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """x [R, C] of a float dtype, dim one of -2, -1, 0, 1 -> [R] (dim -1 or 1) or [C] (dim 0 or -2) of that dtype.
    Sums in at least float32; the sum of nothing is 0.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return wide.sum(dim).to(x.dtype)


def eager(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    return x.sum(dim)


def make_inputs(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """The mean is a little off zero, so that a kernel which skips terms cannot hide behind their average."""
    return (randn((dims["R"], dims["C"]), dtype, generator, mean=0.1),)


def _alternating(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """+256 and -256 in turn along both dimensions, with noise: all that counts is what the large terms leave."""
    (x,) = make_inputs(dims, dtype, generator)
    signs = 1 - 2 * ((torch.arange(dims["R"]).unsqueeze(1) + torch.arange(dims["C"])) % 2)
    return ((x.float() + 256.0 * signs).to(TORCH_DTYPES[dtype]),)


def _cancelling(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """The second half takes back what the first half added, but for the noise: partial sums are far larger
    than what is left."""
    (x,) = make_inputs(dims, dtype, generator)
    wide = x.float() + 8.0
    wide[:, dims["C"] // 2 :] -= 16.0
    return (wide.to(TORCH_DTYPES[dtype]),)


def _same_sign(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Many terms of one sign: fp16 and bf16 accumulators stop growing long before the end."""
    return (torch.rand((dims["R"], dims["C"]), generator=generator).add(0.5).to(TORCH_DTYPES[dtype]),)


def _mostly_zero(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Zeros of both signs but for a few elements, and some rows and columns with none at all."""
    (x,) = make_inputs(dims, dtype, generator)
    keep = torch.rand(x.shape, generator=generator) < 0.02
    keep[::4] = False
    keep[:, ::4] = False
    return (torch.where(keep, x, x * 0),)


def _denormal(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Values below the smallest normal number of the dtype: flushing them to zero loses everything."""
    info = torch.finfo(TORCH_DTYPES[dtype])
    unit = info.smallest_normal * info.eps
    steps = torch.randint(1, 64, (dims["R"], dims["C"]), generator=generator)
    return ((steps.double() * unit).to(TORCH_DTYPES[dtype]),)


def _poisoned(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """A NaN, an inf and a pair of opposite infs: each reaches its own sum (NaN, inf, NaN) and no other."""
    (x,) = make_inputs(dims, dtype, generator)
    x[1, 5] = float("nan")
    x[2, 9] = float("inf")
    x[4, 7], x[4, 8] = float("inf"), float("-inf")
    return (x,)


def flops(workload: Workload) -> int:
    return workload.dims["R"] * workload.dims["C"]


def bytes_moved(workload: Workload) -> int:
    rows, columns = workload.dims["R"], workload.dims["C"]
    kept = rows if workload.scalars.get("dim", -1) in (-1, 1) else columns
    return nbytes(workload.dtype, (rows, columns), (kept,))


def propose_bindings(window: Window) -> Sequence[Binding]:
    """One input of any rank, summed over its last or its first dimensions (one or more, kept as ones or dropped).

    Accepted are inputs whose summed and whose kept dimensions each merge without a copy. A sum over inner dimensions
    alone, or over everything, is no view of this problem, and is left alone.
    """
    if len(window.tensors) != 1:
        return []
    (x,) = window.tensors
    if not x.is_floating_point() or x.dtype != window.output.dtype:
        return []
    bindings = []
    for split in range(1, x.dim()):  # the dimensions before the split and those after it
        head, tail = tuple(x.shape[:split]), tuple(x.shape[split:])
        columns = torch.Size(tail).numel()
        if not has_rows(x, columns):
            continue
        shapes = {-1: (head, (*head, *(1 for _ in tail))), 0: (tail, (*(1 for _ in head), *tail))}
        for dim, accepted in shapes.items():
            if tuple(window.output.shape) not in accepted:
                continue
            keep = len(window.output.shape) == x.dim()
            bindings.append(
                Binding(
                    dims={"R": x.numel() // columns, "C": columns},
                    scalars={"dim": dim},
                    adapt=lambda x, split=split: (rows_of(x, x.shape[split:].numel()),),
                    restore=lambda out, x, split=split, dim=dim, keep=keep: out.reshape(
                        _restored(x.shape, split, dim, keep)
                    ),
                )
            )
    return bindings


def _restored(shape: torch.Size, split: int, dim: int, keep: bool) -> tuple[int, ...]:
    """The output's shape in the model: the kept dimensions, the summed ones as 1 where the model keeps them."""
    head, tail = tuple(shape[:split]), tuple(shape[split:])
    if dim == -1:
        return (*head, *(1 for _ in tail)) if keep else head
    return (*(1 for _ in head), *tail) if keep else tail


def held_out(rng: random.Random) -> Dims:
    return {"R": rng.randint(1, 300), "C": rng.randint(1, 1200)}


GUIDE = """
- Bytes: R·C · itemsize read once, R or C results written. One add an element: only the read rate counts, and it is
  higher than the copy rate that the floor is computed from.
- Structure over the last dimension: an owner a row, several rows an owner when they are short, several owners when
  they are few and long (partial sums in a workspace, added in a fixed order). Wide loads, 4 or more accumulators.
- Structure over the first dimension (dim 0 or −2): neighbours own neighbouring columns, each walks down a stretch
  of rows; partial sums of the stretches are added in order by a second step. Never a column an owner with nothing
  else in flight. dim is one of −2, −1, 0, 1; normalise it first.
- Accumulate in fp32 in all dtypes: same_sign adds up thousands of terms of one sign, where fp16 stops growing at
  2048 times the term. fp32: a tree or blocks of a few hundred terms; one long chain of a million adds is off by
  more than 5e-5. alternating and cancelling leave small results of large terms: pairs of lanes may be summed in any
  fixed order, but nothing may be skipped, and half-precision partial sums are wrong at once.
- Denormal inputs count. inf − inf is NaN in its own sum only: no lane may be shared by two sums.
- R or C of 0: the sum over nothing is 0, so zeros must be written, or the output is empty.
- Measured on an H200 in fp16 over the last dimension: the best of eager and torch.compile reaches 85 % of the floor
  at 8192 x 8192, 71 % at 16384 x 4096, and 54 % at 1024 x 32768, where rows are few and long.
"""

PROBLEM = Problem(
    name="reduce",
    summary=__doc__,
    reference=reference,
    inputs=("x",),
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
            {"R": 2048, "C": 16},
            {"R": 4, "C": 16384},
        ),
        "cuda": (
            {"R": 1, "C": 4096},
            {"R": 32, "C": 128},
            {"R": 256, "C": 1024},
            {"R": 1024, "C": 768},
            {"R": 4096, "C": 4096},
            {"R": 8192, "C": 8192},
            {"R": 16384, "C": 4096},
            {"R": 1024, "C": 32768},
            {"R": 65536, "C": 256},
        ),
    },
    edge_shapes=(
        {"R": 3, "C": 1023},
        {"R": 1537, "C": 2},
        {"R": 2, "C": 4097},
        {"R": 4097, "C": 3},
        {"R": 5, "C": 1},
        {"R": 1, "C": 1},
        {"R": 0, "C": 8},
        {"R": 8, "C": 0},
    ),
    adversarial=tuple(
        AdversarialInput(f"{make.__name__[1:]}_dim{dim}", dims, make, {"dim": dim})
        for make, dims in (
            (_alternating, {"R": 64, "C": 1024}),
            (_cancelling, {"R": 33, "C": 2048}),
            (_same_sign, {"R": 256, "C": 2048}),
            (_mostly_zero, {"R": 65, "C": 130}),
            (_denormal, {"R": 40, "C": 70}),
            (_poisoned, {"R": 33, "C": 67}),
        )
        for dim in (-1, 0)
    ),
    tolerances={**TIGHT, "fp32": Tolerance(5e-5, 1e-5)},
    tolerance_reason="Terms are exact and the sum is rounded once to the output's dtype, so fp16 and bf16 are held to "
    "that one rounding. In fp32 the accumulator itself rounds at every term and terms may cancel: 5e-5 of the sums' "
    "magnitude, which a blocked or tree-shaped sum of a million terms keeps.",
    flops=flops,
    bytes=bytes_moved,
    baselines={"eager": eager},
    propose_bindings=propose_bindings,
    held_out=held_out,
    scalars={"dim": -1},
    edge_scalars=({"dim": 0},),
)
