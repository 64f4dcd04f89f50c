"""A profile over all input sets of a model: each is captured and timed for itself, then they are one forward's mix.

Shapes differ between sets, so that each is captured with shapes of its own (``dynamic=False``). A workload's count is a
whole number, so weights become the forwards of one *round*: 0.7 and 0.3 are 7 and 3 forwards. Counts, calls and times
of a profile are those of one round; with a single set a round is one forward.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from autokernel.regions import capture, profiler
from autokernel.regions.capture import Graph
from autokernel.regions.match import Match, match
from autokernel.regions.model import LoadedModel
from autokernel.regions.profiler import OpTime, Timing
from autokernel.regions.uncovered import Shelf, with_uncovered
from autokernel.types import is_file

LONGEST_ROUND = 100  # forwards
CLOSE = 0.01  # a set's forwards in a round may be off its weight by this part


@dataclasses.dataclass(frozen=True)
class Measured:
    """One round: ``forwards`` says how many of each input set, the most frequent first. ``lost`` holds the reasons why
    a set could not be captured: its operations are then timed without being told apart by place.
    """

    graphs: tuple[Graph, ...]
    matches: tuple[Match, ...]
    timing: Timing
    graph_breaks: int
    forwards: tuple[int, ...]
    lost: tuple[str, ...]

    @property
    def attention(self) -> bool:
        """Whether scaled_dot_product_attention is called, whatever region its node is part of."""
        called = (str(node.target) for graph in self.graphs for node in graph.nodes)
        return any("scaled_dot_product" in name for name in (*called, *(op.op for op in self.timing.outside)))


def measure(
    model: LoadedModel,
    warmup: int,
    iterations: int,
    trace: Path | None,
    emit: Callable[..., None],
    shelf: Shelf | None = None,
) -> Measured:
    """Capture, match and time every input set; ``trace`` is of the most frequent one. Regions that no built-in problem
    covers are printed onto ``shelf``; without one they are not looked for.
    """
    forwards = rounds([each.weight for each in model.sets])
    parts: list[Measured] = []
    for number, (each, times) in enumerate(zip(model.sets, forwards, strict=True), start=1):
        if len(model.sets) > 1:
            emit("capture", f"input set {number} of {len(model.sets)}: {times} of {sum(forwards)} forwards")
        one = dataclasses.replace(model, inputs=each.inputs, sets=(each,))
        parts.append(_repeated(_one(one, warmup, iterations, trace if number == 1 else None, emit, shelf), times))
    return _joined(parts)


def rounds(weights: Sequence[float]) -> tuple[int, ...]:
    """The forwards of each set in the shortest round that keeps every weight within 1 %, or in one of about 100."""
    total = sum(weights)
    for size in range(len(weights), LONGEST_ROUND):
        exact = [size * weight / total for weight in weights]
        if all(round(each) >= 1 and abs(round(each) - each) <= CLOSE * each for each in exact):
            return tuple(round(each) for each in exact)
    return tuple(max(1, round(LONGEST_ROUND * weight / total)) for weight in weights)


def _one(
    model: LoadedModel,
    warmup: int,
    iterations: int,
    trace: Path | None,
    emit: Callable[..., None],
    shelf: Shelf | None,
) -> Measured:
    def progress(done: int, of: int) -> None:
        emit("time", f"{'step' if model.train else 'forward'} {done} of {of}", done, of)

    emit("capture", f"tracing {model.name}")
    try:
        captured = capture.capture(model)
    except capture.Untraceable as error:
        emit("capture", f"{error}: operations are timed, and no region is looked for")
        timing = profiler.time_operations(model, warmup, iterations, trace, progress)
        return Measured((), (), timing, 0, (1,), (str(error),))
    nodes = sum(len(g.nodes) for g in captured.graphs)
    emit("match", f"{nodes} nodes in {len(captured.graphs)} graphs, {captured.graph_breaks} graph breaks")
    matches = match(captured)
    emit("match", f"{len(matches)} regions found")
    timing = profiler.time_nodes(captured, warmup, iterations, trace, progress)
    if shelf is not None:
        matches = with_uncovered(captured, matches, timing, shelf)
        emit("match", f"{sum(is_file(m.problem) for m in matches)} regions that no built-in problem covers")
    return Measured(tuple(captured.graphs), tuple(matches), timing, captured.graph_breaks, (1,), ())


def _repeated(part: Measured, times: int) -> Measured:
    """The same forward so many times."""

    def ops(found: Sequence[OpTime]) -> tuple[OpTime, ...]:
        return tuple(OpTime(op.op, op.time_us * times, op.calls * times) for op in found)

    timing = part.timing
    repeated = Timing(
        {node: ops(found) for node, found in timing.nodes.items()},
        ops(timing.outside),
        timing.forward_us * times,
        {node: us * times for node, us in timing.launch_us.items()},
        timing.waiting.times(times) if timing.waiting else None,
        {node: ops(found) for node, found in timing.backward.items()},
        ops(timing.outside_backward),
    )
    matches = tuple(
        dataclasses.replace(m, workload=dataclasses.replace(m.workload, count=m.workload.count * times))
        for m in part.matches
    )
    return dataclasses.replace(part, matches=matches, timing=repeated, forwards=(times,))


def _joined(parts: Sequence[Measured]) -> Measured:
    """All sets as one: graphs are numbered through."""
    if len(parts) == 1:
        return parts[0]
    graphs: list[Graph] = []
    matches: list[Match] = []
    nodes, launches, backward = {}, {}, {}
    outside: list[OpTime] = []
    outside_backward: list[OpTime] = []
    for part in parts:
        offset = max((g.index for g in graphs), default=-1) + 1
        for graph in part.graphs:
            graph.index += offset
            graphs.append(graph)
        matches += (dataclasses.replace(m, graph=m.graph + offset) for m in part.matches)
        nodes.update({(g + offset, name): found for (g, name), found in part.timing.nodes.items()})
        launches.update({(g + offset, name): us for (g, name), us in part.timing.launch_us.items()})
        backward.update({(g + offset, name): found for (g, name), found in part.timing.backward.items()})
        outside += part.timing.outside
        outside_backward += part.timing.outside_backward
    waits = [part.timing.waiting for part in parts if part.timing.waiting]
    waiting = waits[0] if waits else None
    for each in waits[1:]:
        waiting = waiting.plus(each) if waiting else each
    forward_us = sum(p.timing.forward_us for p in parts)
    timing = Timing(nodes, tuple(outside), forward_us, launches, waiting, backward, tuple(outside_backward))
    return Measured(
        tuple(graphs),
        tuple(matches),
        timing,
        sum(p.graph_breaks for p in parts),
        tuple(times for p in parts for times in p.forwards),
        tuple(dict.fromkeys(reason for p in parts for reason in p.lost)),
    )
