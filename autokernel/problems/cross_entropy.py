"""Cross entropy of logits x against class indices t: y = mean over rows r of log(sum(exp(x[r]))) - x[r, t[r]]."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from autokernel.problems._common import ELEMENT_BYTES, TIGHT, TORCH_DTYPES, randn
from autokernel.problems._views import has_rows, rows_of
from autokernel.types import AdversarialInput, Binding, Dims, DType, Problem, Window, Workload

IGNORED = -100  # what PyTorch skips by default


def reference(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """logits [R, V] of a float dtype, targets [R] int64 -> a scalar [] of the logits' dtype, computed in at least
    float32.

    Rows whose target is negative do not count: PyTorch's ignore_index is -100 by default, -1 in many models, and any
    other negative target is an error there, so that this agrees with all of them. The mean of no rows is NaN. A
    target of V or more is an error.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    counts = targets >= 0
    losses = -torch.log_softmax(wide, -1).gather(1, targets.clamp(min=0).unsqueeze(1)).squeeze(1)
    total = torch.where(counts, losses, torch.zeros_like(losses)).sum()
    return (total / counts.sum()).to(logits.dtype)


def eager(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, targets, ignore_index=IGNORED)


def make_inputs(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    return (
        randn((dims["R"], dims["V"]), dtype, generator, scale=2.0),
        torch.randint(0, dims["V"], (dims["R"],), generator=generator),
    )


def _raised(
    dims: Dims, dtype: DType, generator: torch.Generator, by: float, shift: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs whose logit ``shift`` places after the target's is raised by ``by``."""
    logits, targets = make_inputs(dims, dtype, generator)
    rows = torch.arange(dims["R"])
    logits[rows, (targets + shift) % dims["V"]] += by
    return logits, targets


def _confident_right(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """The target's logit leads by far: the loss is small, the logarithm of a number just above one."""
    return _raised(dims, dtype, generator, by=14.0, shift=0)


def _confident_wrong(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Another logit leads by so much that the target's probability underflows: log(softmax) would be -inf."""
    return _raised(dims, dtype, generator, by=300.0, shift=1)


def _masked(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """-inf in half of the columns that are not the target, as a padded or banned vocabulary has."""
    logits, targets = make_inputs(dims, dtype, generator)
    banned = torch.rand(logits.shape, generator=generator) < 0.5
    banned[torch.arange(dims["R"]), targets] = False
    logits[banned] = float("-inf")
    return logits, targets


def _banned(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """The least finite number, by which many models mask: in the first two thirds of a row, in every third row in all
    columns, and in another third in all but the target's. Scaled by more than 1 it overflows.
    """
    logits, targets = make_inputs(dims, dtype, generator)
    least = torch.finfo(logits.dtype).min
    rows = torch.arange(dims["R"])
    chosen = logits[rows, targets]
    logits[:, : 2 * dims["V"] // 3] = least
    logits[rows % 3 == 1] = least
    logits[rows % 3 == 2] = least
    kept = rows % 3 != 1
    logits[rows[kept], targets[kept]] = chosen[kept]
    return logits, targets


def _huge(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Logits in the thousands, of either sign: exp overflows unless the maximum is subtracted first."""
    logits, targets = make_inputs(dims, dtype, generator)
    signs = torch.where(torch.arange(dims["R"]) % 2 == 0, 1.0, -1.0).unsqueeze(1)
    return (logits.float() * 10 + 9000 * signs).to(TORCH_DTYPES[dtype]), targets


def _equal(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """All logits the same: the loss is log(V), whatever the target."""
    logits, targets = make_inputs(dims, dtype, generator)
    return torch.full_like(logits, -7.5), targets


def _ignored(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Two thirds of the rows do not count: the mean is over the others alone."""
    logits, targets = make_inputs(dims, dtype, generator)
    targets[torch.arange(dims["R"]) % 3 != 1] = IGNORED
    return logits, targets


def _ends(dims: Dims, dtype: DType, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Targets in the first and the last columns, whose logits differ from all others."""
    logits, targets = make_inputs(dims, dtype, generator)
    logits[:, 0] = 3.0
    logits[:, -1] = -9.0
    targets[0::2] = 0
    targets[1::2] = dims["V"] - 1
    return logits, targets


def flops(workload: Workload) -> int:
    """Per logit: maximum, subtraction, exponential, addition."""
    return 4 * workload.dims["R"] * workload.dims["V"]


def bytes_moved(workload: Workload) -> int:
    rows, classes = workload.dims["R"], workload.dims["V"]
    return ELEMENT_BYTES[workload.dtype] * (rows * classes + 1) + 8 * rows


def propose_bindings(window: Window) -> Sequence[Binding]:
    """logits [..., V] and int64 targets of the leading shape -> a scalar, in the logits' dtype.

    Accepted are logits whose leading dimensions merge without a copy. A window that writes a number that could be an
    ignored class (an integer from 0 to V - 1 that is none of its sizes) is left alone: random targets would hardly
    ever meet it, so the test could not tell. So are class dimensions that are not the last.
    """
    if len(window.tensors) != 2 or window.output.numel() != 1 or window.output.dim() != 0:
        return []
    bindings = []
    for i, j in ((0, 1), (1, 0)):
        logits, targets = window.tensors[i], window.tensors[j]
        if not logits.is_floating_point() or targets.dtype != torch.int64 or logits.dtype != window.output.dtype:
            continue
        if logits.dim() < 1 or targets.numel() * logits.shape[-1] != logits.numel():
            continue
        sizes = {*logits.shape, *targets.shape, targets.numel()}
        classes = {c for c in window.constants if isinstance(c, int) and not isinstance(c, bool)} - sizes
        if any(0 <= c < logits.shape[-1] for c in classes):
            continue
        if not has_rows(logits, logits.shape[-1]) or not has_rows(targets, 1):
            continue
        bindings.append(
            Binding(
                dims={"R": targets.numel(), "V": logits.shape[-1]},
                scalars={},
                adapt=lambda *t, i=i, j=j: (rows_of(t[i], t[i].shape[-1]), t[j].view(t[j].numel())),
                restore=lambda out, *t: out,
            )
        )
    return bindings


def held_out(rng: random.Random) -> Dims:
    return {"R": rng.randint(1, 65), "V": rng.randint(2, 5000)}


GUIDE = """
- Bytes: R·V · itemsize read once, 8 bytes a target; nothing is written but one number. So the floor is half that of
  a softmax of the same size, and every second pass over the logits doubles the time.
- Structure: an owner a row walks it once with a running maximum and sum in several independent lanes, merges them,
  and subtracts the target's logit, which it loads by itself. log and exp at the end, once a row: loss = m + log(s)
  − x[t]. Then the mean: losses to R floats, and one block adds losses and counts in a fixed order; the division
  comes last. Few rows and a large V: several blocks a row, (m, s) pairs merged in order.
- Rows with a negative target do not count, whatever the number is: neither in the sum nor in the divisor. No
  counted row: NaN. fp16, bf16: the result is a scalar of the logits' dtype: fp32 until the final rounding. Logits
  of 9000 and the difference of large numbers: m − x[t] first, then log(s): confident_right has losses near 1e-6
  that log(1 + small) must not round away before the mean; fp32 is held to 1e-5 of the result or 4 times PyTorch's
  own error.
- −inf logits are ordinary (exp gives 0) unless a whole lane has seen nothing else: start m at the first value, or
  guard exp(−inf − (−inf)). So is the least finite number, by which many models mask: x · log2(e) − m · log2(e) in one
  multiply-add saves an instruction, and overflows there in fp32 and bf16; (x − m) · log2(e) does not.
- Measured on an H200 in fp16: torch.compile takes 2.5 to 3 times the floor at V = 32000 (175 µs against 61 at R =
  4096), eager 4 times: both read the logits more than once. There is a factor of two to be won.
"""

PROBLEM = Problem(
    name="cross_entropy",
    summary=__doc__,
    reference=reference,
    inputs=("logits", "targets"),
    make_inputs=make_inputs,
    shapes={
        "cpu": (
            {"R": 1, "V": 64},
            {"R": 4, "V": 128},
            {"R": 33, "V": 256},
            {"R": 7, "V": 1000},
            {"R": 64, "V": 1024},
            {"R": 16, "V": 4096},
            {"R": 128, "V": 512},
            {"R": 2, "V": 32000},
        ),
        "cuda": (
            {"R": 1, "V": 4096},
            {"R": 32, "V": 128},
            {"R": 256, "V": 1000},
            {"R": 8192, "V": 1024},
            {"R": 2048, "V": 8192},
            {"R": 1024, "V": 32000},
            {"R": 4096, "V": 32000},
            {"R": 512, "V": 50257},
            {"R": 512, "V": 128256},
        ),
    },
    edge_shapes=(
        {"R": 3, "V": 1023},
        {"R": 2, "V": 1537},
        {"R": 1023, "V": 5},
        {"R": 2, "V": 4097},
        {"R": 5, "V": 1},
        {"R": 1, "V": 1},
        {"R": 0, "V": 8},
    ),
    adversarial=(
        AdversarialInput("confident_right", {"R": 8, "V": 1000}, _confident_right),
        AdversarialInput("confident_wrong", {"R": 8, "V": 1000}, _confident_wrong),
        AdversarialInput("masked", {"R": 9, "V": 513}, _masked),
        AdversarialInput("banned", {"R": 9, "V": 9001}, _banned),
        AdversarialInput("huge", {"R": 8, "V": 700}, _huge),
        AdversarialInput("equal", {"R": 4, "V": 1024}, _equal),
        AdversarialInput("ignored", {"R": 20, "V": 300}, _ignored),
        AdversarialInput("ends", {"R": 6, "V": 259}, _ends),
    ),
    tolerances=TIGHT,
    tolerance_reason="A logarithm of a sum of positive terms kept in float32, averaged over rows and rounded once: the "
    "only cancellation is between the row's maximum and the target's logit, which PyTorch's own error allows for.",
    flops=flops,
    bytes=bytes_moved,
    baselines={"eager": eager},
    propose_bindings=propose_bindings,
    held_out=held_out,
)
