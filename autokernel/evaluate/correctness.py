"""Is it right? One output against the oracle, within a budget that PyTorch's own rounding has a say in.

Pass, elementwise: |out - oracle| <= max(atol * scale + rtol * |oracle|, OWN_ERRORS * own), where ``scale`` is the root
mean square of the oracle's finite part and ``own`` the largest error that PyTorch itself makes in this dtype. On
random inputs the root mean square error must also stay within a small multiple of PyTorch's: a product in TF32 or a
sum in float16 passes many an absolute tolerance, and fails that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch

from autokernel.types import Problem, Scalar, Tolerance

OWN_ERRORS = 4.0
OWN_RMS_ERRORS = 8.0
RMS_UNITS: Mapping[torch.dtype, float] = {torch.float32: 200.0, torch.float16: 2.0, torch.bfloat16: 2.0}
FLOAT64_MAX_FLOPS = 4e9  # beyond this the CPU's oracle runs in float32, and the verdict says so
FLOAT64_COPIES = 12  # of the largest input that oracle and comparison hold in float64, for what a GPU's memory allows


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a call should return. ``own`` is PyTorch's own largest error in the dtype, ``own_rms`` its mean square
    root; ``precision`` names the oracle's dtype.
    """

    oracle: torch.Tensor
    dtype: torch.dtype
    own: float
    own_rms: float
    precision: str


def expected(
    problem: Problem, tensors: tuple[torch.Tensor, ...], scalars: Mapping[str, Scalar], flops: int, device: str
) -> Expected:
    """Run the oracle, and PyTorch in the tensors' own dtype, on ``device``, where the result lies, too."""
    there = tuple(t.to(device) for t in tensors)
    wide = torch.float64 if affordable(there, flops) else torch.float32
    native = next(t.dtype for t in there if t.is_floating_point())
    oracle = problem.reference(*(t.to(wide) if t.is_floating_point() else t for t in there), **scalars)
    if wide is native:
        return Expected(oracle, native, 0.0, 0.0, "float32")
    mine = problem.reference(*there, **scalars)
    error = (mine.to(wide) - oracle).abs()
    error = error[torch.isfinite(error)]
    own = float(error.max()) if error.numel() else 0.0
    own_rms = float(error.square().mean().sqrt()) if error.numel() else 0.0
    return Expected(oracle, mine.dtype, own, own_rms, str(wide).removeprefix("torch."))


def affordable(tensors: Sequence[torch.Tensor], flops: int) -> bool:
    """Whether the oracle can run in float64: in time on a CPU, in memory on a GPU."""
    if all(t.device.type == "cpu" for t in tensors):
        return flops <= FLOAT64_MAX_FLOPS
    elements = max(t.numel() for t in tensors)
    return FLOAT64_COPIES * 8 * elements <= torch.cuda.mem_get_info(tensors[0].device)[0]


def mismatch(out: torch.Tensor, want: Expected, tolerance: Tolerance, *, statistical: bool) -> tuple[float, str | None]:
    """The largest error over its budget (1.0 is the limit), and what is wrong, or None.

    ``out`` has the oracle's shape. ``statistical`` adds the mean square rule, for random inputs.
    """
    oracle = want.oracle
    if oracle.numel() == 0:
        return 0.0, None
    wide = out.to(oracle.dtype)
    finite = torch.isfinite(oracle)
    if not torch.equal(torch.isnan(wide), torch.isnan(oracle)):
        count = int((torch.isnan(wide) != torch.isnan(oracle)).sum())
        return float("inf"), f"{count} of {oracle.numel()} elements are NaN where the oracle is not, or the reverse"
    limit = torch.finfo(want.dtype).max
    fits = finite & (oracle.abs() <= limit)  # beyond the dtype's range an infinity of the right sign is right
    infinite = ~fits & ~torch.isnan(oracle)
    if infinite.any() and not (torch.isinf(wide[infinite]) & (wide[infinite].sign() == oracle[infinite].sign())).all():
        return float("inf"), "the oracle is infinite where the output is not"
    if not fits.any():
        return 0.0, None
    right, got = oracle[fits], wide[fits]
    scale = float(right.square().mean().sqrt())
    error = (got - right).abs()
    budget = torch.clamp(tolerance.atol * scale + tolerance.rtol * right.abs(), min=OWN_ERRORS * want.own)
    budget = budget + torch.finfo(want.dtype).tiny
    ratio = error / budget
    worst = int(ratio.nan_to_num(nan=torch.inf).argmax())
    largest = float(ratio[worst])
    if not largest <= 1.0:
        return largest, (
            f"error {float(error[worst]):.3g} exceeds the budget {float(budget[worst]):.3g} "
            f"(expected {float(right[worst]):.6g}, got {float(got[worst]):.6g}; "
            f"{int((ratio > 1).sum())} of {ratio.numel()} elements off)"
        )
    if statistical:
        rms = float(error.square().mean().sqrt())
        allowed = OWN_RMS_ERRORS * want.own_rms + RMS_UNITS[want.dtype] * torch.finfo(want.dtype).eps * scale
        if rms > allowed:
            return rms / allowed, (
                f"root mean square error {rms:.3g} exceeds {allowed:.3g}, a small multiple of PyTorch's own "
                f"{want.own_rms:.3g}: is it computed in a lower precision?"
            )
    return largest, None
