"""Rotary position embedding: each pair of features is turned by its position's angle."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence

import torch

from autokernel.problems._common import TIGHT, TORCH_DTYPES, nbytes, randn
from autokernel.problems._views import is_viewable
from autokernel.types import AdversarialInput, Binding, Dims, DType, Problem, Window, Workload

Pairs = tuple[torch.Tensor, torch.Tensor]


def _pairs(x: torch.Tensor, interleaved: bool) -> Pairs:
    """The first and the second feature of every pair, as views [..., D/2]: (2i, 2i + 1), or (i, i + D/2)."""
    half = x.shape[-1] // 2
    return (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])


def _tables(table: torch.Tensor, width: int, interleaved: bool) -> Pairs:
    """What the first and the second feature of a pair are multiplied by: the same [S, D/2], or each its own."""
    return _pairs(table, interleaved) if table.shape[-1] == width else (table, table)


def eager(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = True) -> torch.Tensor:
    """As ``reference``, in the dtype of x: eight elementwise passes."""
    (a, b), width = _pairs(x, interleaved), x.shape[-1]
    cos_a, cos_b = _tables(cos, width, interleaved)
    sin_a, sin_b = _tables(sin, width, interleaved)
    turned = (a * cos_a - b * sin_a, b * cos_b + a * sin_b)
    return torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)


def reference(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = True) -> torch.Tensor:
    """x [B, H, S, D], cos and sin [S, D/2] -> [B, H, S, D], all of one float dtype, D even; at least float32 inside.

    ``interleaved``: pair i is the features (2i, 2i + 1), as in the paper: out[2i] = x[2i] cos[i] - x[2i+1] sin[i],
    out[2i+1] = x[2i] sin[i] + x[2i+1] cos[i]. Otherwise it is (i, i + D/2), which GPT-NeoX and Hugging Face call
    rotate-half. Tables may also be [S, D], with a value for each feature: Hugging Face writes every angle twice.

    Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    return eager(x.to(wide), cos.to(wide), sin.to(wide), interleaved).to(x.dtype)


def make_inputs(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """``dims["P"]`` is the tables' width, D/2 (the default) or D; at D each feature has an angle of its own."""
    angles = torch.rand((dims["S"], dims.get("P", dims["D"] // 2)), generator=generator) * 6.2831853
    return (
        randn((dims["B"], dims["H"], dims["S"], dims["D"]), dtype, generator),
        angles.cos().to(TORCH_DTYPES[dtype]),
        angles.sin().to(TORCH_DTYPES[dtype]),
    )


def _large(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Magnitudes near the top of what fp16 can turn without overflow, beside ordinary ones."""
    x, cos, sin = make_inputs(dims, dtype, generator)
    x[..., ::3] = x[..., ::3].clamp(-3, 3) * 1e4
    return x, cos, sin


def _quarter_turns(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """cos and sin of exactly 0, 1 and -1: a swapped pair or a wrong sign shows undiluted."""
    x, cos, _ = make_inputs(dims, dtype, generator)
    quarters = torch.randint(0, 4, cos.shape, generator=generator)
    values = torch.tensor([1.0, 0.0, -1.0, 0.0], dtype=x.dtype)
    return x, values[quarters], values[(quarters + 3) % 4]


def _cancelling(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Equal features turned by 45 degrees: the first of each pair cancels to nothing."""
    x, cos, sin = make_inputs(dims, dtype, generator)
    x[..., 1::2] = x[..., 0::2]
    return x, torch.full_like(cos, 0.5**0.5), torch.full_like(sin, 0.5**0.5)


def _poisoned(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """A NaN and an inf: each spoils its own pair and no other."""
    x, cos, sin = make_inputs(dims, dtype, generator)
    x[0, 0, 1, 0] = float("nan")
    x[-1, -1, 2, -1] = float("inf")
    return x, cos, sin


def flops(workload: Workload) -> int:
    """Per pair: four products, one sum, one difference."""
    dims = workload.dims
    return 3 * dims["B"] * dims["H"] * dims["S"] * dims["D"]


def bytes_moved(workload: Workload) -> int:
    dims = workload.dims
    shape = (dims["B"], dims["H"], dims["S"], dims["D"])
    table = (dims["S"], dims.get("P", dims["D"] // 2))
    return nbytes(workload.dtype, shape, shape, table, table)


def _table_views(tensors: Sequence[torch.Tensor]) -> list[Callable[..., Pairs]]:
    """The ways in which these tensors hold cos and sin, as views [S, P]: one complex or paired tensor, or two."""

    def flat(t: torch.Tensor) -> torch.Tensor:
        return t.view(t.shape[:-1].numel(), t.shape[-1])

    if len(tensors) == 2:
        return [lambda *t: (flat(t[0]), flat(t[1])), lambda *t: (flat(t[1]), flat(t[0]))]
    if tensors[0].is_complex():
        return [lambda *t: (flat(torch.view_as_real(t[0])[..., 0]), flat(torch.view_as_real(t[0])[..., 1]))]
    if tensors[0].dim() >= 2 and tensors[0].shape[-1] == 2:
        return [lambda *t: (flat(t[0][..., 0]), flat(t[0][..., 1]))]
    return []


def _layouts(x: torch.Tensor, positions: int) -> list[tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]]:
    """The ways to see x as [B, H, S, D], and back: positions before the features, or before the heads."""
    ways: list[tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]] = []
    lead = 4 - x.dim()
    if x.shape[-2] == positions:
        ways.append((lambda x: x[(None,) * lead], lambda out, x: out.reshape(x.shape)))
    if x.dim() >= 3 and x.shape[-3] == positions:
        ways.append((lambda x: x[(None,) * lead].transpose(1, 2), lambda out, x: out.transpose(1, 2).reshape(x.shape)))
    return ways


def propose_bindings(window: Window) -> Sequence[Binding]:
    """x of rank 2 to 4, positions before the features or before the heads, with its tables: cos and sin apart, or as
    one complex tensor [S, D/2], or as one real tensor [S, D/2, 2].

    All are views, rotate-half too (``interleaved=False``). Tables have one row a position; leading ones are dropped.
    Left alone: tables that differ from one sequence of a batch to the next, and tables of another dtype than x.
    """
    bindings = []
    for i, x in enumerate(window.tensors):
        rest = [j for j in range(len(window.tensors)) if j != i]
        tables = [window.tensors[j] for j in rest]
        if len(rest) not in (1, 2) or not x.is_floating_point() or not 2 <= x.dim() <= 4 or x.shape[-1] % 2:
            continue
        if x.shape != window.output.shape or x.dtype != window.output.dtype or any(t.dim() < 1 for t in tables):
            continue
        if any(not is_viewable(t, (t.shape[:-1].numel(), t.shape[-1])) for t in tables):
            continue
        for split in _table_views(tables):
            cos, sin = split(*tables)
            width = x.shape[-1]
            if (
                cos.shape != sin.shape
                or cos.shape[-1] not in (width // 2, width)
                or {cos.dtype, sin.dtype} != {x.dtype}
            ):
                continue
            for (see, back), interleaved in itertools.product(_layouts(x, cos.shape[0]), (True, False)):
                sizes = see(x).shape
                dims = dict(zip("BHSD", sizes, strict=True)) | ({"P": width} if cos.shape[-1] == width else {})
                bindings.append(
                    Binding(
                        dims=dims,
                        scalars={"interleaved": interleaved},
                        adapt=lambda *t, i=i, rest=rest, see=see, split=split: (
                            see(t[i]),
                            *split(*(t[j] for j in rest)),
                        ),
                        restore=lambda out, *t, i=i, back=back: back(out, t[i]),
                    )
                )
    return bindings


def held_out(rng: random.Random) -> Dims:
    width = 2 * rng.randint(1, 40)
    return {
        "B": rng.randint(1, 3),
        "H": rng.randint(1, 5),
        "S": rng.randint(1, 90),
        "D": width,
        "P": rng.choice((width // 2, width)),
    }


GUIDE = """
- Bytes: (2·B·H·S·D + 2·S·P) · itemsize, P the width of the tables (D/2, or D). Six flops a pair: memory decides.
  Structure: elementwise, but for the pairing. An owner takes positions of one sequence for several heads, so that
  cos and sin are loaded once and stay in registers; accesses of 16 bytes along D.
- interleaved=True: features (2i, 2i + 1): a 16-byte access holds whole pairs. interleaved=False: (i, i + D/2): two
  accesses D/2 apart, both contiguous. Both must be served by one file; branch once a call, not once an element.
- Tables of width D hold a value for every feature: the first and the second of a pair may have different angles. x
  is usually a transposed view of [B, S, H, D]: strides (S·H·D, D, H·D, 1). Walk in its memory order; the output is
  contiguous in [B, H, S, D], so either loads or stores jump by rows: rows of 64 to 128 elements are whole sectors
  anyway. All dtypes: products and sum in fp32, one rounding. cancelling has results near zero from large products:
  an fp16 product that is rounded first fails there. An fma of one product with the other is more exact than asked
  for.
- NaN or inf spoils its own pair and no other: do not blend the two outputs by multiplying with 0.
- Measured on an H200 in fp16 at 2 x 32 x 2048 x 128: eager 179 µs in eight passes, torch.compile 25, the floor 16.
  torch.compile is the baseline to beat.
"""

PROBLEM = Problem(
    name="rotary_embedding",
    summary=__doc__,
    reference=reference,
    inputs=("x", "cos", "sin"),
    make_inputs=make_inputs,
    shapes={
        "cpu": (
            {"B": 1, "H": 1, "S": 16, "D": 32},
            {"B": 2, "H": 3, "S": 33, "D": 64},
            {"B": 1, "H": 12, "S": 64, "D": 64},
            {"B": 1, "H": 4, "S": 128, "D": 128},
            {"B": 4, "H": 2, "S": 17, "D": 80},
            {"B": 1, "H": 8, "S": 1, "D": 128},
            {"B": 2, "H": 4, "S": 64, "D": 64, "P": 64},
            {"B": 1, "H": 2, "S": 100, "D": 96, "P": 96},
        ),
        "cuda": (
            {"B": 1, "H": 32, "S": 1, "D": 128},
            {"B": 2, "H": 3, "S": 33, "D": 64},
            {"B": 1, "H": 12, "S": 1024, "D": 64},
            {"B": 4, "H": 8, "S": 512, "D": 80},
            {"B": 1, "H": 32, "S": 2048, "D": 128, "P": 128},
            {"B": 2, "H": 32, "S": 2048, "D": 128},
            {"B": 2, "H": 32, "S": 4096, "D": 128},
            {"B": 1, "H": 8, "S": 8192, "D": 256},
        ),
    },
    edge_shapes=(
        {"B": 1, "H": 2, "S": 1023, "D": 6},
        {"B": 1, "H": 1, "S": 1537, "D": 2},
        {"B": 1, "H": 1, "S": 4097, "D": 2, "P": 2},
        {"B": 3, "H": 1, "S": 5, "D": 34},
        {"B": 1, "H": 1, "S": 1, "D": 2},
        {"B": 2, "H": 3, "S": 7, "D": 22, "P": 22},
        {"B": 0, "H": 2, "S": 4, "D": 8},
        {"B": 1, "H": 2, "S": 0, "D": 8},
    ),
    adversarial=tuple(
        AdversarialInput(f"{make.__name__[1:]}_{name}", dims, make, {"interleaved": name == "interleaved"})
        for make, dims in (
            (_large, {"B": 1, "H": 3, "S": 20, "D": 64}),
            (_quarter_turns, {"B": 2, "H": 2, "S": 17, "D": 40}),
            (_cancelling, {"B": 1, "H": 2, "S": 9, "D": 64}),
            (_poisoned, {"B": 2, "H": 2, "S": 8, "D": 32, "P": 32}),
        )
        for name in ("interleaved", "half")
    ),
    tolerances=TIGHT,
    tolerance_reason="Each output is two products and one sum in float32, rounded once; where the two products cancel, "
    "the error is held to the magnitude of the whole.",
    flops=flops,
    bytes=bytes_moved,
    baselines={"eager": eager},
    propose_bindings=propose_bindings,
    held_out=held_out,
    scalars={"interleaved": True},
    edge_scalars=({"interleaved": False},),
)
