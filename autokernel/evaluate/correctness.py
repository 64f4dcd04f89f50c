"""Is it right? One output against the oracle, within a budget that PyTorch's own rounding has a say in.

Pass, elementwise: |out - oracle| <= max(atol * scale + rtol * |oracle|, OWN_ERRORS * own), where ``scale`` is the root
mean square of the oracle's finite part and ``own`` the largest error that PyTorch itself makes in this dtype. On
random inputs the root mean square error must also stay within a small multiple of PyTorch's: a product in TF32 or a
sum in float16 passes many an absolute tolerance, and fails that.

A problem that says that it has jumps (roundings, casts to whole numbers: ``jumps.py``) is judged as if what they read
were its outputs. Only where such a value is nearer to a tie than a right kernel's error may the output be off by what
falling to the other side changes, element by element; everywhere else the rule above holds as it stands.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import torch

from autokernel.evaluate.jumps import Jump, Lossy, Watch, recording
from autokernel.types import Problem, Scalar, Tolerance

OWN_ERRORS = 4.0
OWN_RMS_ERRORS = 8.0
RMS_UNITS: Mapping[torch.dtype, float] = {torch.float32: 200.0, torch.float16: 2.0, torch.bfloat16: 2.0}
FLOAT64_MAX_FLOPS = 4e9  # beyond this the CPU's oracle runs in float32, and the verdict says so
FLOAT64_COPIES = 12  # of the largest input that oracle and comparison hold in float64, for what a GPU's memory allows
JUMP_COPIES = 24  # the same where there are jumps
JUMP_OWN_RMS = 2.0  # of PyTorch's own mean square error, before a jump and in the outputs that no jump can change
MEETING, MEETING_DRAWS = 3.0, 6  # times what so many draws show where several jumps meet in an element
JUMP_RMS_UNITS: Mapping[torch.dtype, float] = {**RMS_UNITS, torch.float16: 0.25, torch.bfloat16: 0.25}


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a call should return. ``own`` is PyTorch's own largest error in the dtype, ``own_rms`` its mean square
    root (with jumps: of the elements that none can change); ``precision`` names the oracle's dtype.

    Of a problem with jumps, elementwise: ``room`` is what the output may be off beyond the budget because a jump may
    fall to either side; ``limit`` bounds the budget in half precision, whose tolerances may be wider than a step.
    """

    oracle: torch.Tensor
    dtype: torch.dtype
    own: float
    own_rms: float
    precision: str
    room: torch.Tensor | None = None
    limit: torch.Tensor | None = None

    @property
    def unsettled(self) -> float:
        """The share of the elements that a jump near a tie can change."""
        return 0.0 if self.room is None or not self.room.numel() else float((self.room > 0).double().mean())


def expected(
    problem: Problem, tensors: tuple[torch.Tensor, ...], scalars: Mapping[str, Scalar], flops: int, device: str
) -> Expected:
    """Run the oracle, and PyTorch in the tensors' own dtype, on ``device``, where the result lies, too."""
    there = tuple(t.to(device) for t in tensors)
    copies = JUMP_COPIES if problem.jumps else FLOAT64_COPIES
    wide = torch.float64 if affordable(there, flops, copies) else torch.float32
    native = next(t.dtype for t in there if t.is_floating_point())
    widened = tuple(t.to(wide) if t.is_floating_point() else t for t in there)
    call = functools.partial(problem.reference, **scalars)
    if problem.jumps:
        return _with_jumps(call, there, widened, native, wide)
    oracle = call(*widened)
    if wide is native:
        return Expected(oracle, native, 0.0, 0.0, "float32")
    mine = call(*there)
    return Expected(oracle, mine.dtype, *_own(mine, oracle), str(wide).removeprefix("torch."))


def _own(mine: torch.Tensor, oracle: torch.Tensor) -> tuple[float, float]:
    """PyTorch's largest error, and its root mean square."""
    error = (mine.to(oracle.dtype) - oracle).abs()
    error = error[torch.isfinite(error)]
    return (float(error.max()), float(error.square().mean().sqrt())) if error.numel() else (0.0, 0.0)


def affordable(tensors: Sequence[torch.Tensor], flops: int, copies: int = FLOAT64_COPIES) -> bool:
    """Whether the oracle can run in float64: in time on a CPU, in memory on a GPU."""
    if all(t.device.type == "cpu" for t in tensors):
        return flops <= FLOAT64_MAX_FLOPS
    elements = max(t.numel() for t in tensors)
    return copies * 8 * elements <= torch.cuda.mem_get_info(tensors[0].device)[0]


def _with_jumps(
    call: Callable[..., torch.Tensor],
    there: Sequence[torch.Tensor],
    widened: Sequence[torch.Tensor],
    native: torch.dtype,
    wide: torch.dtype,
) -> Expected:
    """What is right where a reference has jumps.

    PyTorch's own error is that of a run whose jumps all fall as the oracle's do, before each jump and in the output.
    A second such run tells which values are exact. The room is what the output changes by when the values that lie too
    near to a tie fall up, or down, or some up and some down: of each jump by itself, and added; it is never less than
    what PyTorch's own jumps change.
    """
    exact: list[Jump] = []
    with Watch(recording(exact)):
        oracle = call(*widened)
    falls = [jump.out for jump in exact]
    dtype, own, limit = native, (0.0, 0.0), None
    plain: list[Jump] = []
    left: list[Jump] = []
    if wide is not native:
        with Watch(recording(plain, falls)):
            mine = call(*there)
        with Lossy(recording(left, falls)):
            call(*there)
        dtype, own = mine.dtype, _own(mine, oracle)
        if dtype != torch.float32:
            error = (mine.to(wide) - oracle).abs().nan_to_num(0.0, 0.0, 0.0)
            limit = torch.finfo(dtype).eps * oracle.abs() + OWN_ERRORS * error + JUMP_OWN_RMS * own[1]
    room = torch.zeros_like(oracle)
    for place, jump in enumerate(exact):
        reach = _reach(jump, plain[place].value, left[place].value) if plain else _reach_of(jump)
        up, down = jump.at(jump.value + reach), jump.at(jump.value - reach)
        if torch.equal(up, jump.out) and torch.equal(down, jump.out):
            continue
        room += _changed(call, widened, oracle, place, up, down)
    if plain:
        room = torch.maximum(room, (call(*there) - mine).abs().to(wide).nan_to_num(0.0, 0.0, 0.0))
        own = own[0], _own(mine[room == 0], oracle[room == 0])[1]
    return Expected(oracle, dtype, *own, str(wide).removeprefix("torch."), room, limit)


def _changed(
    call: Callable[..., torch.Tensor],
    widened: Sequence[torch.Tensor],
    oracle: torch.Tensor,
    place: int,
    up: torch.Tensor,
    down: torch.Tensor,
) -> torch.Tensor:
    """By how much the output changes at most, elementwise, where one jump falls up or down, or some up and some down.

    Where that changes an element by more than all up or all down, several values meet in it and may cancel: then more
    draws are made, and a multiple is allowed, for few draws do not show how much they can come to.
    """

    def change(fallen: torch.Tensor) -> torch.Tensor:
        with Watch(lambda i, _: fallen if i == place else None):
            return (call(*widened) - oracle).abs().nan_to_num(0.0, 0.0, 0.0)

    plainly = torch.maximum(change(up), change(down))
    most = plainly
    generator = torch.Generator(up.device).manual_seed(place)
    for _ in range(MEETING_DRAWS):
        heads = torch.rand(up.shape, generator=generator, device=up.device) < 0.5
        most = torch.maximum(most, torch.maximum(change(up.where(heads, down)), change(down.where(heads, up))))
        if torch.equal(most, plainly):
            return plainly
    return MEETING * most


def _reach(jump: Jump, mine: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """How far from the oracle's a right kernel's value before this jump may be, elementwise: as much as the mean square
    rule allows an output, and a multiple of PyTorch's own error.

    Nothing for an exact tie: a whole number that an earlier jump gave, or a half of inputs that a power of two scales.
    """
    value = jump.value
    dtype = mine.dtype if mine.dtype in RMS_UNITS else torch.float32  # a kernel need not compute in float64
    error = (mine.to(value.dtype) - value).abs().nan_to_num(0.0, 0.0, 0.0)
    typical = float(error.square().mean().sqrt()) if error.numel() else 0.0
    reach = RMS_UNITS[dtype] * torch.finfo(dtype).eps * value.abs() + JUMP_OWN_RMS * typical
    reach = torch.maximum(reach, OWN_ERRORS * error)
    if not jump.inside:
        beside = (torch.nextafter(value, torch.full_like(value, end)) for end in (math.inf, -math.inf))
        tie = torch.ne(*map(jump.at, beside))
        reach = reach.masked_fill((error == 0) & (left.to(value.dtype) == value) & tie, 0.0)
    return reach.nan_to_num(0.0, 0.0, 0.0)


def _reach_of(jump: Jump) -> torch.Tensor:
    """The same where the oracle is no wider than a kernel: of it only whole numbers are known to be exact."""
    reach = RMS_UNITS[torch.float32] * torch.finfo(torch.float32).eps * jump.value.abs()
    return reach.masked_fill(jump.value == jump.value.round(), 0.0).nan_to_num(0.0, 0.0, 0.0)


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
    units, own_times, beside = RMS_UNITS, OWN_RMS_ERRORS, ""
    if want.room is not None:
        room = want.room[fits]
        error = (error - room).clamp(min=0.0)
        units, own_times, beside = JUMP_RMS_UNITS, JUMP_OWN_RMS, ", and what falling otherwise near a tie explains"
    if want.limit is not None:
        budget = torch.minimum(budget, want.limit[fits] + torch.finfo(want.dtype).tiny)
    ratio = error / budget
    worst = int(ratio.nan_to_num(nan=torch.inf).argmax())
    largest = float(ratio[worst])
    if not largest <= 1.0:
        return largest, (
            f"error {float(error[worst]):.3g} exceeds the budget {float(budget[worst]):.3g}{beside} "
            f"(expected {float(right[worst]):.6g}, got {float(got[worst]):.6g}; "
            f"{int((ratio > 1).sum())} of {ratio.numel()} elements off)"
        )
    if statistical and want.room is not None:
        error = error[room == 0]
    if statistical and error.numel():
        rms = float(error.square().mean().sqrt())
        allowed = own_times * want.own_rms + units[want.dtype] * torch.finfo(want.dtype).eps * scale
        if rms > allowed:
            return rms / allowed, (
                f"root mean square error {rms:.3g} exceeds {allowed:.3g}, a small multiple of PyTorch's own "
                f"{want.own_rms:.3g}: is it computed in a lower precision?"
            )
    return largest, None
