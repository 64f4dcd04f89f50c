"""From matches and times to what is worth optimizing: rows that add up to the whole forward, and targets in rank order.

A target groups the regions of one problem and dtype: one kernel file serves them. Targets are ranked by what can be
won, measured time less the roofline floor; ops that no problem covers follow, by time.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from autokernel import registry
from autokernel.hardware import Hardware
from autokernel.regions.capture import Graph, module_path
from autokernel.regions.match import Match
from autokernel.regions.profiler import OpTime, Timing
from autokernel.types import DType, Region, Target, Workload, is_file, kernel_type

LEAST_SHARE = 0.0005  # a call pattern that costs less of the forward than this is left to PyTorch
PLACES = 4  # shown of each row
SPEEDUPS = ("1.5", "2", "3", "5")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the profile: a target, an op that no problem covers, or (``wait``) time in which a GPU waits for its
    host. Times are of one step; ``launch_us`` is what the launches of a target's kernels cost the host. Where the model
    is trained, ``direction`` says whose time it is: a target is its forward, ``backward_us`` of it is beside, and the
    row of that backward is named as the target is (``gradient_of``).
    """

    name: str
    problem: str | None
    places: tuple[str, ...]
    calls: int
    time_us: float
    share: float
    workloads: tuple[Workload, ...] = ()
    compute_floor_us: float | None = None
    memory_floor_us: float | None = None
    floor_us: float | None = None
    launch_us: float | None = None
    wait: bool = False
    direction: Literal["forward", "backward"] = "forward"
    backward_us: float | None = None
    gradient_of: str = ""

    @property
    def kind(self) -> str:
        if self.gradient_of:
            return "gradient"
        return "wait" if self.wait else "op" if self.problem is None else "region"

    @property
    def winnable_us(self) -> float:
        return max(self.time_us - self.floor_us, 0.0) if self.floor_us is not None else 0.0

    @property
    def headroom(self) -> float | None:
        return self.time_us / self.floor_us if self.floor_us else None

    @property
    def bound(self) -> str | None:
        if self.compute_floor_us is None or self.memory_floor_us is None:
            return None
        if self.launch_us is not None and self.time_us < self.launch_us:
            return "launch"
        return "compute" if self.compute_floor_us > self.memory_floor_us else "memory"

    def what_if(self) -> dict[str, float]:
        """Amdahl: how much faster the model becomes when this row becomes s times faster; "floor": at its floor.
        Nothing for a backward, which no kernel replaces.
        """
        if self.direction == "backward":
            return {}
        speedups = {s: float(s) for s in SPEEDUPS}
        if self.headroom is not None:
            speedups["floor"] = max(self.headroom, 1.0)
        return {name: 1 / (1 - self.share + self.share / s) for name, s in speedups.items()}

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "direction": self.direction,
            "problem": kernel_type(self.problem) if self.problem else None,
            "places": list(self.places),
            "calls": self.calls,
            "time_us": self.time_us,
            "share": self.share,
            "backward_us": self.backward_us,
            "workloads": [w.to_json() for w in self.workloads],
            "floor_us": self.floor_us,
            "headroom": self.headroom,
            "pct_of_ceiling": 100 / self.headroom if self.headroom else None,
            "bound": self.bound,
            "launch_us": self.launch_us,
            "what_if": self.what_if(),
        }


def rows(graphs: Sequence[Graph], matches: Sequence[Match], timing: Timing, hardware: Hardware) -> list[Row]:
    """All of one step: targets by what can be won, then uncovered ops by time, those of the backward (with that of each
    target), then waiting. Shares add up to 1.
    """
    total = timing.attributed_us
    regions, inside, launches, gradients = _regions(matches, timing, hardware)
    grouped: dict[tuple[str, DType], list[Region]] = defaultdict(list)
    for region in regions:
        grouped[region.problem, region.workloads[0].dtype].append(region)
    several = Counter(kernel_type(problem) for problem, _ in grouped)
    targets = [
        dataclasses.replace(
            _target_row(_name(problem, dtype, several), members, hardware, total),
            launch_us=launches.get((problem, dtype)),
            backward_us=gradients.get((problem, dtype)),
        )
        for (problem, dtype), members in grouped.items()
    ]
    targets.sort(key=lambda row: -row.winnable_us)
    paths = {(g.index, n.name): module_path(n) for g in graphs for n in g.nodes}
    ops = _op_rows(paths, timing.nodes, timing.outside, inside, total)
    backward = [
        Row(row.name, None, row.places, row.calls, row.backward_us, row.backward_us / total, gradient_of=row.name)
        for row in targets
        if row.backward_us is not None
    ]
    backward += _op_rows(paths, timing.backward, timing.outside_backward, inside, total)
    backward = [dataclasses.replace(row, direction="backward") for row in backward]
    return [*targets, *ops, *backward, *_wait_rows(timing, total)]


def targets_of(found: Sequence[Row], backend_of: Mapping[str, str], folder: Path) -> list[Target]:
    """The targets among the rows, in rank order; ``backend_of`` maps a problem to the backend of its kernel file. A
    problem that is a file is named relative to ``folder``, so that the folder can be moved.
    """

    def named(problem: str) -> str:
        return os.path.relpath(problem, folder) if is_file(problem) else problem

    return [
        Target(
            row.name, named(row.problem), backend_of[row.problem], row.workloads, row.share, row.time_us, row.floor_us
        )
        for row in found
        if row.problem is not None and row.floor_us is not None
    ]


def floor(workload: Workload, problem: str, hardware: Hardware) -> tuple[float, float, float]:
    """Compute bound, memory bound and roofline of all calls of a workload in one forward, in microseconds."""
    known = registry.load("problems", problem)
    flops, nbytes = known.flops(workload), known.bytes(workload)
    parts = (
        hardware.compute_us(flops, workload.dtype),
        hardware.memory_us(nbytes),
        hardware.floor_us(flops, nbytes, workload.dtype),
    )
    compute, memory, roof = (part * workload.count for part in parts)
    return compute, memory, roof


def _regions(
    matches: Sequence[Match], timing: Timing, hardware: Hardware
) -> tuple[list[Region], set[tuple[int, str]], Mapping[tuple[str, DType], float], Mapping[tuple[str, DType], float]]:
    """The regions worth having, the nodes inside them, and of each problem and dtype what its launches cost the host
    and what its backward takes. Call patterns too cheap to matter are dropped whole.
    """
    times = [sum(timing.node_us(m.graph, n.name) for n in m.nodes) for m in matches]
    cost: Counter[tuple[str, str]] = Counter()
    for m, time_us in zip(matches, times, strict=True):
        cost[m.problem, m.workload.key] += time_us  # type: ignore[assignment]
    least = LEAST_SHARE * timing.attributed_us
    regions: list[Region] = []
    inside: set[tuple[int, str]] = set()
    launches: dict[tuple[str, DType], float] = defaultdict(float)
    gradients: dict[tuple[str, DType], float] = defaultdict(float)
    for m, time_us in zip(matches, times, strict=True):
        if cost[m.problem, m.workload.key] < least:
            continue
        nodes = {(m.graph, n.name) for n in m.nodes}
        inside |= nodes
        if timing.launch_us:
            launches[m.problem, m.workload.dtype] += sum(timing.launch_us.get(node, 0.0) for node in nodes)
        if timing.backward:
            gradients[m.problem, m.workload.dtype] += sum(timing.backward_us(*node) for node in nodes)
        roof = floor(m.workload, m.problem, hardware)[2]
        regions.append(Region(m.problem, m.module_path, (m.workload,), time_us, roof))
    return regions, inside, launches, gradients


def _name(problem: str, dtype: DType, several: Mapping[str, int]) -> str:
    name = kernel_type(problem)
    return name if several[name] == 1 else f"{name}_{dtype}"


def _target_row(name: str, members: Sequence[Region], hardware: Hardware, total_us: float) -> Row:
    merged: dict[str, Workload] = {}
    for workload in (w for region in members for w in region.workloads):
        seen = merged.get(workload.key)
        count = workload.count + (seen.count if seen else 0)
        merged[workload.key] = dataclasses.replace(workload, count=count)
    problem = members[0].problem
    floors = [floor(workload, problem, hardware) for workload in merged.values()]
    time_us = sum(region.time_us for region in members)
    return Row(
        name=name,
        problem=problem,
        places=tuple(dict.fromkeys(region.module_path for region in members))[:PLACES],
        calls=sum(workload.count for workload in merged.values()),
        time_us=time_us,
        share=time_us / total_us,
        workloads=tuple(sorted(merged.values(), key=lambda w: -w.count)),
        compute_floor_us=sum(f[0] for f in floors),
        memory_floor_us=sum(f[1] for f in floors),
        floor_us=sum(f[2] for f in floors),
    )


def _wait_rows(timing: Timing, total_us: float) -> list[Row]:
    """Time in which no kernel runs, where the device is one that waits: of no op, and not to be won by a kernel."""
    if timing.waiting is None:
        return []
    launches = round(timing.waiting.launches)
    named = (("(launch overhead)", launches, timing.waiting.launching_us), ("(idle GPU)", 0, timing.waiting.idle_us))
    return [Row(name, None, (), calls, us, us / total_us, wait=True) for name, calls, us in named]


def _op_rows(
    paths: Mapping[tuple[int, str], str],
    nodes: Mapping[tuple[int, str], Sequence[OpTime]],
    outside: Sequence[OpTime],
    inside: set[tuple[int, str]],
    total_us: float,
) -> list[Row]:
    """What ran in no region, summed by op. ``paths`` maps each node to its module."""
    places: dict[str, dict[str, None]] = defaultdict(dict)
    times: Counter[str] = Counter()
    calls: Counter[str] = Counter()

    def add(ops: Sequence[OpTime], place: str) -> None:
        for op in ops:
            times[op.op] += op.time_us  # type: ignore[assignment]
            calls[op.op] += op.calls  # type: ignore[assignment]
            places[op.op].setdefault(place)

    for node, ops in nodes.items():
        if node not in inside:
            add(ops, paths.get(node, ""))
    add(outside, "(outside the captured graphs)")
    return [
        Row(op, None, tuple(places[op])[:PLACES], round(calls[op]), time_us, time_us / total_us)
        for op, time_us in times.most_common()
    ]
