"""SwiGLU feed-forward block: y = (silu(x · w_gateᵀ) · (x · w_upᵀ)) · w_downᵀ."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F

from autokernel.problems._common import LOOSE, nbytes, randn
from autokernel.problems._views import has_rows, rows_of
from autokernel.types import AdversarialInput, Binding, Dims, DType, Problem, Window, Workload

View = Callable[[torch.Tensor], torch.Tensor]
Part = tuple[int, View]  # which tensor of the window, and how it is seen


def reference(x: torch.Tensor, w_gate: torch.Tensor, w_up: torch.Tensor, w_down: torch.Tensor) -> torch.Tensor:
    """x [M, D], w_gate [F, D], w_up [F, D], w_down [D, F] -> [M, D], all of one float dtype; any strides.

    As a model computes it: products accumulate in at least float32, every intermediate is rounded to the dtype.
    Source: Shazeer, "GLU Variants Improve Transformer", 2020.
    """
    return F.linear(F.silu(F.linear(x, w_gate)) * F.linear(x, w_up), w_down)


def make_inputs(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Weights are scaled by 1/sqrt(fan-in), as trained ones are: gates then spread around zero, where silu bends."""
    rows, width, hidden = dims["M"], dims["D"], dims["F"]
    return (
        randn((rows, width), dtype, generator),
        randn((hidden, width), dtype, generator, scale=max(width, 1) ** -0.5),
        randn((hidden, width), dtype, generator, scale=max(width, 1) ** -0.5),
        randn((width, hidden), dtype, generator, scale=max(hidden, 1) ** -0.5),
    )


def _shifted_gates(inputs: tuple[torch.Tensor, ...], shift: torch.Tensor | float) -> tuple[torch.Tensor, ...]:
    """x gets a column of ones, and w_gate the shift in it: every gate of a hidden unit moves by that much."""
    x, w_gate, w_up, w_down = inputs
    x[:, 0] = 1
    w_gate[:, 0] = shift if isinstance(shift, float) else shift.to(w_gate.dtype)
    return x, w_gate, w_up, w_down


def _closed_gates(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Gates run from -120 to -4: exp(-gate) overflows float32 at one end; what the rest lets through is the result."""
    return _shifted_gates(make_inputs(dims, dtype, generator), torch.linspace(-120, -4, dims["F"]))


def _open_gates(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Gates near 100: silu is the identity there, and exp(gate) / (1 + exp(gate)) is infinity over infinity."""
    return _shifted_gates(make_inputs(dims, dtype, generator), 100.0)


def _mixed_gates(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Open and closed hidden units side by side, from -60 to 60: gate and up may not change places."""
    return _shifted_gates(make_inputs(dims, dtype, generator), torch.linspace(-60, 60, dims["F"]))


def _scaled_rows(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Rows of x from 2^-8 to 2^5: silu is x/2 for the first and x or 0 for the last."""
    x, *weights = make_inputs(dims, dtype, generator)
    return (x.float() * 2.0 ** torch.linspace(-8, 5, dims["M"]).unsqueeze(1)).to(x.dtype), *weights


def _zeros(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Zero rows of x, dead hidden units and a zero output column: nothing may be skipped or left over."""
    x, w_gate, w_up, w_down = make_inputs(dims, dtype, generator)
    x[::3] = 0
    w_gate[::4] = 0
    w_up[1::4] = 0
    w_down[dims["D"] // 2] = 0
    return x, w_gate, w_up, w_down


def _nan_row(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """A NaN in one row of x spoils that row of the result, and no other."""
    x, *weights = make_inputs(dims, dtype, generator)
    x[dims["M"] // 2, -1] = float("nan")
    return x, *weights


def flops(workload: Workload) -> int:
    """Three products; the activation's few operations a hidden element are not counted."""
    return 6 * workload.dims["M"] * workload.dims["D"] * workload.dims["F"]


def bytes_moved(workload: Workload) -> int:
    rows, width, hidden = workload.dims["M"], workload.dims["D"], workload.dims["F"]
    return nbytes(workload.dtype, (rows, width), *[(hidden, width)] * 3, (rows, width))


def _weights(tensors: Sequence[torch.Tensor], x: int, width: int) -> Iterator[tuple[int, tuple[Part, Part, Part]]]:
    """The ways in which all tensors but x are w_gate, w_up and w_down, as (F, where each is found): three matrices in
    any order, or two of which one stacks gate and up (or up and gate) in its rows. All lie as nn.Linear keeps them, or
    all transposed, as Conv1D does: a guess costs a run, and no model mixes the two.
    """
    orders = itertools.permutations(i for i in range(len(tensors)) if i != x)
    views: tuple[View, View] = (lambda t: t, lambda t: t.t())
    for order, view in itertools.product(orders, views):
        if any(tensors[i].dim() != 2 for i in order):
            continue
        *gates, (rows, hidden) = (tuple(view(tensors[i]).shape) for i in order)
        if rows != width:
            continue
        down = order[-1], view
        if gates == [(hidden, width)] * 2:
            yield hidden, ((order[0], view), (order[1], view), down)
        elif gates == [(2 * hidden, width)]:
            first = order[0], lambda t, view=view, n=hidden: view(t)[:n]
            second = order[0], lambda t, view=view, n=hidden: view(t)[n:]
            yield hidden, (first, second, down)
            yield hidden, (second, first, down)


def propose_bindings(window: Window) -> Sequence[Binding]:
    """x of any rank that is as wide as the output, with the weights of a SwiGLU in any order, transposed or stacked.

    What cannot be flattened to rows without a copy is not offered.
    """
    bindings: list[Binding] = []
    tensors, out = window.tensors, window.output
    if len(tensors) not in (3, 4) or len({t.dtype for t in tensors}) != 1 or any(t.numel() == 0 for t in tensors):
        return bindings
    for i, x in enumerate(tensors):
        if x.dim() == 0 or x.shape != out.shape or not has_rows(x, x.shape[-1]):
            continue
        width = x.shape[-1]
        for hidden, parts in _weights(tensors, i, width):

            def adapt(
                *t: torch.Tensor, i: int = i, parts: tuple[Part, ...] = parts, width: int = width
            ) -> tuple[torch.Tensor, ...]:
                return (rows_of(t[i], width), *(view(t[j]) for j, view in parts))

            bindings.append(
                Binding(
                    dims={"M": x.numel() // width, "D": width, "F": hidden},
                    scalars={},
                    adapt=adapt,
                    restore=lambda y, *_, shape=tuple(out.shape): y.view(shape),
                )
            )
    return bindings


def held_out(rng: random.Random) -> Dims:
    return {"M": rng.randint(1, 90), "D": rng.randint(1, 150), "F": rng.randint(1, 200)}


ADVERSARIAL_DIMS = {"M": 17, "D": 96, "F": 200}

GUIDE = """
- Bytes: (2·M·D + 3·D·F) · itemsize if the hidden layer never leaves the chip; flops: 6·M·D·F. For large M the three
  products are all that counts; for M of 1 to 16 the three weights are read once each, and that is the time.
- Structure in two kernels: (1) h = silu(x·w_gateᵀ) · (x·w_upᵀ), two accumulators over one walk along D; (2) y =
  h·w_downᵀ. The hidden tensor of M·F elements is written and read once: 2·M·F · itemsize, small beside the products
  when D is in the thousands. One kernel for both needs sums over F across owners: recomputation or atomics, neither
  pays. The oracle rounds gate, up and their product to the dtype in between; staying in fp32 there is allowed and
  more exact. silu: g / (1 + exp(−g)) in fp32: 0 for very negative g (1 + inf), g for large. Not exp(g) / (1 +
  exp(g)). fp32: real fp32 products. fp16, bf16: fp32 accumulators for both walks; h is rounded once when stored.
  w_gate, w_up are [F, D] and w_down [D, F], rows contiguous as nn.Linear keeps them: all three products contract
  over the fast dimension of both operands. Transposed or stacked views come, too: use strides.
- F is often no multiple of the tile (11008 = 86 · 128, 5632 = 44 · 128, 172): masks in the second walk's K
  dimension matter. Measured on an H200 in fp16: three library products and the elementwise pass reach 92 % of the
  floor at 2048 x 4096 x 11008. Fusing gate and up saves one read of x and four passes over the hidden tensor: a few
  percent there, more when M is small.
"""

PROBLEM = Problem(
    name="fused_mlp",
    summary=__doc__,
    reference=reference,
    inputs=("x", "w_gate", "w_up", "w_down"),
    make_inputs=make_inputs,
    shapes={
        "cpu": (
            {"M": 1, "D": 64, "F": 128},
            {"M": 4, "D": 32, "F": 96},
            {"M": 16, "D": 64, "F": 172},
            {"M": 64, "D": 64, "F": 64},
            {"M": 33, "D": 128, "F": 256},
            {"M": 100, "D": 96, "F": 48},
            {"M": 8, "D": 256, "F": 688},
            {"M": 130, "D": 80, "F": 130},
        ),
        "cuda": (
            {"M": 128, "D": 256, "F": 512},
            {"M": 512, "D": 768, "F": 2048},
            {"M": 512, "D": 2048, "F": 5632},
            {"M": 2048, "D": 2048, "F": 8192},
            {"M": 2064, "D": 2064, "F": 5648},  # large, and no tile divides it
            {"M": 2048, "D": 4096, "F": 11008},
            {"M": 4096, "D": 4096, "F": 11008},
            {"M": 1, "D": 4096, "F": 11008},
            {"M": 16, "D": 4096, "F": 14336},
        ),
    },
    edge_shapes=(
        {"M": 1, "D": 1, "F": 1},
        {"M": 17, "D": 63, "F": 65},
        {"M": 24, "D": 104, "F": 72},  # rows begin where vectors may, and no tile divides it
        {"M": 2, "D": 1023, "F": 17},
        {"M": 3, "D": 17, "F": 1537},
        {"M": 1, "D": 4097, "F": 9},
        {"M": 1537, "D": 5, "F": 7},
        {"M": 65, "D": 1, "F": 33},
        {"M": 0, "D": 16, "F": 24},
    ),
    adversarial=(
        AdversarialInput("closed_gates", ADVERSARIAL_DIMS, _closed_gates),
        AdversarialInput("open_gates", ADVERSARIAL_DIMS, _open_gates),
        AdversarialInput("mixed_gates", ADVERSARIAL_DIMS, _mixed_gates),
        AdversarialInput("scaled_rows", ADVERSARIAL_DIMS, _scaled_rows),
        AdversarialInput("zeros", ADVERSARIAL_DIMS, _zeros),
        AdversarialInput("nan_row", ADVERSARIAL_DIMS, _nan_row),
    ),
    tolerances=LOOSE,
    tolerance_reason="Two sums of products in a row, of D and of F terms, kept in float32; between them the hidden "
    "layer may be rounded to the dtype, as the reference does, or stay wide.",
    flops=flops,
    bytes=bytes_moved,
    baselines={"eager": reference},  # three library products; no library has the block as one call
    propose_bindings=propose_bindings,
    held_out=held_out,
)
