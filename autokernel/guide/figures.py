"""What a target's numbers say: flops and bytes of its calls, what bounds them, what a gain is worth to the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from autokernel.guide.problem import ProblemText
from autokernel.hardware import Hardware
from autokernel.types import Measurements, Target, Workload

Bound = Literal["memory", "compute", "launch", ""]
LAUNCH_US = {"cuda": 5.0, "cpu": 10.0}  # a call whose floor is below this is decided by what starting it costs


@dataclasses.dataclass(frozen=True)
class Call:
    """One workload and the least time that its bytes and its flops take here, in microseconds a call."""

    workload: Workload
    flops: int
    nbytes: int
    memory_us: float
    compute_us: float

    @property
    def floor_us(self) -> float:
        return max(self.memory_us, self.compute_us)


def ceilings(hardware: Mapping[str, Any]) -> Hardware | None:
    """The measured ceilings of a brief's device; None where it brings none."""
    try:
        return Hardware.from_json(hardware)
    except (KeyError, TypeError):
        return None


def calls(workloads: Sequence[Workload], problem: ProblemText, device: Hardware | None) -> tuple[Call, ...]:
    """The cost of each workload; none where the problem's cost is unknown. Times are 0 without ceilings."""
    if problem.cost is None:
        return ()
    found = []
    for work in workloads:
        flops, nbytes = problem.cost(work)
        known = device is not None and device.copy_gbps and device.tflops.get(work.dtype)
        memory_us = device.memory_us(nbytes) if device is not None and known else 0.0
        compute_us = device.compute_us(flops, work.dtype) if device is not None and known else 0.0
        found.append(Call(work, flops, nbytes, memory_us, compute_us))
    return tuple(found)


def bound(costs: Sequence[Call], device: str) -> Bound:
    """What decides the target's time: the larger of the two floors, weighted by counts; "" where it is unknown."""
    total = sum(c.workload.count for c in costs)
    floor_us = sum(c.workload.count * c.floor_us for c in costs)
    if not total or not floor_us:
        return ""
    if floor_us / total < LAUNCH_US.get(device, LAUNCH_US["cuda"]):
        return "launch"
    memory_us, compute_us = (
        sum(c.workload.count * t for c, t in zip(costs, each, strict=True))
        for each in ([c.memory_us for c in costs], [c.compute_us for c in costs])
    )
    return "memory" if memory_us >= compute_us else "compute"


@dataclasses.dataclass(frozen=True)
class Worth:
    """Fractions of the model's forward as its owner wrote it, and speedups of it by Amdahl's law.

    ``now`` is with the incumbent in place (where it beats eager), ``at_ten`` with 10 % less time in this target,
    ``at_floor`` with the target at its roofline floor.
    """

    share_now: float
    now: float
    at_ten: float
    at_floor: float


def worth(target: Target, position: Measurements | None) -> Worth:
    """What this target can still give to the whole model, other targets left as they are."""
    eager_us = (position.baselines_us.get("eager") if position else None) or target.eager_us
    relative = min(1.0, position.latency_us / eager_us) if position and eager_us > 0 else 1.0
    floor = min(relative, target.floor_us / target.eager_us) if target.eager_us > 0 else relative
    rest = 1.0 - target.share

    def speedup(time: float) -> float:
        return 1.0 / max(1e-9, rest + target.share * time)

    share_now = target.share * relative / max(1e-9, rest + target.share * relative)
    return Worth(share_now, speedup(relative), speedup(0.9 * relative), speedup(floor))
