"""Softmax over the last dimension: y = exp(x - max(x)) / sum(exp(x - max(x)))."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from autokernel.problems._common import TIGHT, TORCH_DTYPES, nbytes, randn
from autokernel.problems._views import has_rows, rows_of
from autokernel.types import AdversarialInput, Binding, Dims, DType, Problem, Window, Workload


def reference(x: torch.Tensor) -> torch.Tensor:
    """x [R, C] of a float dtype -> [R, C] of it. Exponentials and sums in at least float32.

    A row that holds a NaN or +inf, or nothing but -inf, is NaN throughout; -inf beside finite values gives 0.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.softmax(wide, -1).to(x.dtype)


def eager(x: torch.Tensor) -> torch.Tensor:
    return F.softmax(x, -1)


def make_inputs(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    return (randn((dims["R"], dims["C"]), dtype, generator, scale=2.0),)


def _large_equal_rows(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Every element of a row is the same large number: exp overflows unless the maximum is subtracted first."""
    x = torch.full((dims["R"], dims["C"]), 3e4, dtype=TORCH_DTYPES[dtype])
    x[1::2] *= -1
    return (x,)


def _extremes(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Both ends of the dtype in one row: the difference overflows to -inf, the ties at the top share the mass."""
    shape = (dims["R"], dims["C"])
    top = torch.finfo(TORCH_DTYPES[dtype]).max
    signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    signs[:, 0] = 1
    return ((signs.double() * top).to(TORCH_DTYPES[dtype]),)


def _masked(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """A causal mask and random holes of -inf; the first row keeps one finite element, no row loses all."""
    (x,) = make_inputs(dims, dtype, generator)
    rows, columns = x.shape
    holes = torch.rand((rows, columns), generator=generator) < 0.5
    causal = torch.arange(columns) * rows > torch.arange(1, rows + 1).unsqueeze(1) * columns
    x[holes | causal] = float("-inf")
    x[:, 0] = 0.5
    x[0, 1:] = float("-inf")
    return (x,)


def _outlier(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """One element beside which all others vanish, at another place in each row: first, last, in between."""
    (x,) = make_inputs(dims, dtype, generator)
    places = torch.linspace(0, dims["C"] - 1, dims["R"]).long()
    x[torch.arange(dims["R"]), places] = 1e4
    return (x,)


def _underflow(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """A ramp from 0 down to -200: exp passes through float32's denormals (below -87) to zero (below -104)."""
    ramp = torch.linspace(0, -200, dims["C"]).expand(dims["R"], -1)
    shift = torch.randn((dims["R"], 1), generator=generator)
    return ((ramp + shift).to(TORCH_DTYPES[dtype]),)


def _poisoned(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """A NaN in one row and +inf in another: those rows are NaN throughout, their neighbours are untouched."""
    (x,) = make_inputs(dims, dtype, generator)
    x[1, dims["C"] // 3] = float("nan")
    x[3, dims["C"] - 1] = float("inf")
    return (x,)


def flops(workload: Workload) -> int:
    """Per element: maximum, subtraction, exponential, addition, product."""
    return 5 * workload.dims["R"] * workload.dims["C"]


def bytes_moved(workload: Workload) -> int:
    shape = (workload.dims["R"], workload.dims["C"])
    return nbytes(workload.dtype, shape, shape)


def propose_bindings(window: Window) -> Sequence[Binding]:
    """One input of any rank: softmax over its last dimension, or over either of a matrix.

    Accepted are inputs whose leading dimensions merge into one without a copy. A softmax over an inner dimension of
    a tensor of rank three or more is no view of this problem, and is left alone.
    """
    if len(window.tensors) != 1:
        return []
    (x,) = window.tensors
    if not x.is_floating_point() or x.shape != window.output.shape or x.dtype != window.output.dtype:
        return []
    bindings = []
    if x.dim() >= 1 and has_rows(x, x.shape[-1]):
        bindings.append(
            Binding(
                dims={"R": x.numel() // x.shape[-1], "C": x.shape[-1]},
                scalars={},
                adapt=lambda x: (rows_of(x, x.shape[-1]),),
                restore=lambda out, x: out.reshape(x.shape),
            )
        )
    if x.dim() == 2 and x.shape[0] > 0:
        bindings.append(
            Binding(
                dims={"R": x.shape[1], "C": x.shape[0]},
                scalars={},
                adapt=lambda x: (x.t(),),
                restore=lambda out, x: out.t(),
            )
        )
    return bindings


def held_out(rng: random.Random) -> Dims:
    return {"R": rng.randint(1, 97), "C": rng.randint(2, 2100)}


GUIDE = """
- Bytes: 2·R·C · itemsize, each element read once and written once. Memory decides; exponentials are the only
  arithmetic that comes near a limit, on a GPU in half precision.
- Structure: a row is owned by a warp (short), a block (up to some 32 thousand elements, kept in registers) or
  several blocks (longer, few rows). Maximum, exponentials and sum, product: three steps over registers, not over
  memory. Long rows: online, carry (m, s) and rescale s by exp(m_old − m_new); the second read of x for the output
  is the price, unless the row waits in shared memory (on Hopper up to 116 thousand halves; by cp.async, a block a
  row). All dtypes: convert to fp32 on load, round once on store. The maximum is subtracted before any scaling could
  overflow; 3e4 · log2(e) does not fit fp16.
- −inf: exp(−inf − m) is 0 while m is finite. A row of −inf only: m is −inf, the difference is NaN, and so is the
  oracle. +inf and NaN make their row NaN and leave its neighbours alone: a shared maximum over several rows would
  not. Tolerances are tight (fp32 1e-5, fp16 1e-3, bf16 2e-3, relative to the row's size): an exponential within 2
  to 3 units in the last place is needed, and denormal results may be 0.
- Measured on an H200 in fp16: the best of all libraries reaches 82 % of the copy floor at 4096 x 4096, 94 % at 8192
  x 8192, and half of it at 1024 x 50257, where rows no longer fit: that is where most is to be won.
"""

PROBLEM = Problem(
    name="softmax",
    summary=__doc__,
    reference=reference,
    inputs=("x",),
    make_inputs=make_inputs,
    shapes={
        "cpu": (
            {"R": 1, "C": 64},
            {"R": 4, "C": 128},
            {"R": 33, "C": 256},
            {"R": 96, "C": 512},
            {"R": 7, "C": 768},
            {"R": 64, "C": 1024},
            {"R": 16, "C": 2048},
            {"R": 3, "C": 10000},
        ),
        "cuda": (
            {"R": 1, "C": 4096},
            {"R": 32, "C": 128},
            {"R": 12288, "C": 512},
            {"R": 1024, "C": 768},
            {"R": 2048, "C": 2048},
            {"R": 4096, "C": 4096},
            {"R": 1024, "C": 8192},
            {"R": 1024, "C": 50257},
            {"R": 64, "C": 128256},
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
        AdversarialInput("large_equal_rows", {"R": 4, "C": 1024}, _large_equal_rows),
        AdversarialInput("extremes", {"R": 5, "C": 513}, _extremes),
        AdversarialInput("masked", {"R": 64, "C": 300}, _masked),
        AdversarialInput("outlier", {"R": 9, "C": 768}, _outlier),
        AdversarialInput("underflow", {"R": 3, "C": 1000}, _underflow),
        AdversarialInput("poisoned", {"R": 6, "C": 257}, _poisoned),
    ),
    tolerances=TIGHT,
    tolerance_reason="Each output is one exponential over a sum of positive terms kept in float32: nothing cancels, so "
    "the error is a few units in the last place. Outputs far below the row's largest are held to its magnitude.",
    flops=flops,
    bytes=bytes_moved,
    baselines={"eager": eager},
    propose_bindings=propose_bindings,
    held_out=held_out,
)
