"""Where the time of one step goes: each node of each graph, each op outside them, each counted once.

A step is a forward, or where the model is trained its forward, loss and backward. A backward's time belongs to the node
of the forward whose gradient it is: autograd numbers what it will run back, and the profiler tells those numbers.

The captured graphs run node by node under torch.profiler, each node inside a ``record_function`` range of its own. On a
CPU a node costs the time of the outermost ops inside its range; on CUDA, the device time of the kernels that those ops
launched, wherever they ran (an op's own row is never added to its kernels' rows). The profiler's own cost between ops
falls out of both. Ops that ran outside every graph (between graph breaks) are kept under their own names.
On CUDA the plain model runs under the profiler once more, for what its kernels leave open (``gaps``): the node-by-node
path keeps the host busier than the model does.
"""

from __future__ import annotations

import bisect
import dataclasses
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch._C._autograd import DeviceType, _get_sequence_nr
from torch.autograd.profiler import record_function

from autokernel.regions.capture import Capture, Graph
from autokernel.regions.gaps import Waiting, waiting
from autokernel.regions.model import LoadedModel
from autokernel.types import AutokernelError

PREFIX = "autokernel::"  # of the ranges' names, followed by graph index and node name
MOST_EAGER = 5  # forwards of the plain model that are timed at most
ENOUGH_S, LEAST_STEPS = 5.0, 3  # of a slow model no more steps of a kind than this holds, but so many
BACKWARD = "autograd::engine::evaluate_function"  # names of the ranges in which autograd runs one gradient begin so
BACKWARD_SCOPE = 1  # torch's RecordScope::BACKWARD_FUNCTION
Node = tuple[int, str]  # graph index, node name
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")  # names begin so


@dataclasses.dataclass(frozen=True)
class OpTime:
    """One kind of op inside one node (or outside every graph), in one step."""

    op: str
    time_us: float
    calls: float


@dataclasses.dataclass(frozen=True)
class Timing:
    """Times of one step. ``nodes`` maps each node to its ops; ``outside`` holds the ops that no graph
    contains; ``backward`` and ``outside_backward`` are the same of the gradients, by the node that they are of;
    ``forward_us`` is the median wall time of a plain step, without capture or profiler. On CUDA ``launch_us`` is what
    the launches of each node's kernels cost the host, and ``waiting`` what the GPU did not work.
    """

    nodes: Mapping[Node, tuple[OpTime, ...]]
    outside: tuple[OpTime, ...]
    forward_us: float
    launch_us: Mapping[Node, float] = dataclasses.field(default_factory=dict)
    waiting: Waiting | None = None
    backward: Mapping[Node, tuple[OpTime, ...]] = dataclasses.field(default_factory=dict)
    outside_backward: tuple[OpTime, ...] = ()

    @property
    def attributed_us(self) -> float:
        inside = [op for nodes in (self.nodes, self.backward) for ops in nodes.values() for op in ops]
        waits = self.waiting.launching_us + self.waiting.idle_us if self.waiting else 0.0
        return sum(op.time_us for op in (*inside, *self.outside, *self.outside_backward)) + waits

    def node_us(self, graph: int, name: str) -> float:
        return sum(op.time_us for op in self.nodes.get((graph, name), ()))

    def backward_us(self, graph: int, name: str) -> float:
        return sum(op.time_us for op in self.backward.get((graph, name), ()))


class Spans:
    """Which node of the forward made which of autograd's nodes: those numbered from a start to before an end."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._found: list[tuple[int, Node]] = []

    def add(self, start: int, end: int, node: Node) -> None:
        """Spans come in order: autograd counts up."""
        if end > start:
            self._starts.append(start)
            self._found.append((end, node))

    def node_of(self, number: int) -> Node | None:
        at = bisect.bisect_right(self._starts, number) - 1
        return self._found[at][1] if at >= 0 and number < self._found[at][0] else None


def time_nodes(
    captured: Capture,
    warmup: int = 5,
    iterations: int = 10,
    trace: Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> Timing:
    """Run ``warmup`` and then ``iterations`` profiled steps; write a Chrome trace to ``trace`` where given.

    Raises AutokernelError where the trace cannot be written.
    """
    spans = Spans()

    def interpret(graph: Graph, args: tuple[Any, ...]) -> Any:
        return _Timed(graph, spans).run(*args)

    def run() -> None:
        captured.model.step(lambda *inputs: captured.forward(interpret))

    run()  # once unprofiled: the node-by-node path has its own first-call costs
    return _time(captured.model, run, warmup, iterations, trace, on_progress, spans)


def time_operations(
    model: LoadedModel,
    warmup: int = 5,
    iterations: int = 10,
    trace: Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> Timing:
    """As ``time_nodes``, of a model that was not captured: every op is outside."""
    return _time(model, model.step, warmup, iterations, trace, on_progress, Spans())


def _time(
    model: LoadedModel,
    run: Callable[[], Any],
    warmup: int,
    iterations: int,
    trace: Path | None,
    on_progress: Callable[[int, int], None],
    spans: Spans,
) -> Timing:
    eager = min(MOST_EAGER, iterations)
    steps, done = warmup + eager + iterations, 0

    def repeated(call: Callable[[], Any], count: int) -> list[float]:
        """Seconds of each of these steps: of ``count``, or of fewer where they are slow."""
        nonlocal done
        seconds: list[float] = []
        while len(seconds) < count and (len(seconds) < LEAST_STEPS or sum(seconds) < ENOUGH_S):
            start = time.perf_counter()
            call()
            _synchronize(model.device)
            seconds.append(time.perf_counter() - start)
            on_progress(done + len(seconds), steps)
        done += count
        return seconds

    repeated(model.step, warmup)
    forward_us = statistics.median(repeated(model.step, eager)) * 1e6
    activities = [torch.profiler.ProfilerActivity.CPU]
    cuda = model.device.type == "cuda"
    if cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        iterations = len(repeated(run, iterations))
    if trace is not None:
        try:
            trace.parent.mkdir(parents=True, exist_ok=True)
            profile.export_chrome_trace(str(trace))
        except (OSError, RuntimeError) as error:
            raise AutokernelError(f"the trace was expected to be writable at {trace}: {error}") from error
    events = list(profile.events() or ())
    forward, backward = _attribute(events, model.device.type, iterations, spans)
    timing = Timing(*forward, forward_us, backward=backward[0], outside_backward=backward[1])
    if not cuda:
        return timing
    with torch.profiler.profile(activities=activities) as plain:
        for _ in range(eager):
            model.step()
        _synchronize(model.device)
    return dataclasses.replace(
        timing,
        launch_us=_launches(events, iterations),
        waiting=_waiting(list(plain.events() or ()), eager, forward_us),
    )


def _launches(events: Iterable[Any], iterations: int) -> dict[Node, float]:
    """What the launches inside each range cost the host, per forward."""
    found: dict[Node, float] = defaultdict(float)
    for event in events:
        if event.device_type != DeviceType.CPU or not event.name.startswith(LAUNCHES):
            continue
        parent = event.cpu_parent
        while parent is not None and not _is_range(parent):
            parent = parent.cpu_parent
        if parent is not None:
            found[_node_of(parent.name)] += event.cpu_time_total / iterations
    return dict(found)


def _waiting(events: Iterable[Any], forwards: int, forward_us: float) -> Waiting | None:
    """The kernels and copies, and the launches, of profiled forwards of the plain model."""
    kernels, launches = [], []
    for event in events:
        span = (event.time_range.start, event.time_range.end)
        if event.device_type == DeviceType.CPU:
            if event.name.startswith(LAUNCHES):
                launches.append(span)
        elif not getattr(event, "is_user_annotation", False):  # a range as the GPU saw it encloses kernels
            kernels.append(span)
    return waiting(kernels, launches, forwards, forward_us)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _Timed(fx.Interpreter):
    """Runs each node inside a range named after it, and notes what autograd will run back for it."""

    def __init__(self, graph: Graph, spans: Spans) -> None:
        super().__init__(graph.module)
        self.index, self.spans = graph.index, spans

    def run_node(self, n: fx.Node) -> Any:
        if n.op in ("placeholder", "output", "get_attr"):
            return super().run_node(n)
        start = _get_sequence_nr()
        with record_function(f"{PREFIX}{self.index}::{n.name}"):
            result = super().run_node(n)
        self.spans.add(start, _get_sequence_nr(), (self.index, n.name))
        return result


Attributed = tuple[dict[Node, tuple[OpTime, ...]], tuple[OpTime, ...]]  # inside nodes, outside of them


def _attribute(events: Iterable[Any], device: str, iterations: int, spans: Spans) -> tuple[Attributed, Attributed]:
    """Sum, for each range and each op name, the outermost ops; per step. The forward's, then the backward's.

    ``events`` are torch.profiler's FunctionEvents. An op counts when no other op encloses it: what encloses it is
    nothing, a range of ours or of autograd's, or a mark of the compiler's. A kernel that was launched with no op around
    it (a Triton kernel called from Python) belongs to the range itself.
    """
    sums: dict[tuple[bool, Node | None], dict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0]))
    for event in events:
        if event.device_type != DeviceType.CPU:
            continue
        if _is_op(event):
            holder = event.cpu_parent
            while holder is not None and not (_is_op(holder) or _is_range(holder) or _is_gradient(holder)):
                holder = holder.cpu_parent
            if holder is None or not _is_op(holder):
                time_us = event.device_time_total if device == "cuda" else event.cpu_time_total
                _add(sums[_place(holder, spans)][event.name], time_us)
        elif device == "cuda" and (_is_range(event) or _is_gradient(event)):
            for kernel in event.kernels:
                if not kernel.name.startswith(PREFIX):
                    _add(sums[_place(event, spans)][kernel.name], kernel.duration)

    def one(backward: bool) -> Attributed:
        times = {
            node: tuple(OpTime(op, total / iterations, calls / iterations) for op, (total, calls) in ops.items())
            for (back, node), ops in sums.items()
            if back is backward
        }
        return {node: ops for node, ops in times.items() if node is not None}, times.get(None, ())

    return one(backward=False), one(backward=True)


def _place(holder: Any, spans: Spans) -> tuple[bool, Node | None]:
    """Whether a range is of the backward, and the node that its time belongs to."""
    if holder is not None and _is_gradient(holder):
        return True, spans.node_of(holder.sequence_nr)
    return False, _node_of(holder.name) if holder is not None else None


def _add(entry: list[float], time_us: float) -> None:
    entry[0] += time_us
    entry[1] += 1


def _is_range(event: Any) -> bool:
    return bool(event.name.startswith(PREFIX))


def _is_gradient(event: Any) -> bool:
    """Where autograd runs one gradient: the engine's range, or inside of it the gradient's own."""
    return bool(event.name.startswith(BACKWARD) or event.scope == BACKWARD_SCOPE)


def _is_op(event: Any) -> bool:
    """A dispatched op ("aten::add", "my_library::op"); not a range, a Python frame, a launch or the compiler's mark."""
    return "::" in event.name and " " not in event.name and not _is_range(event)


def _node_of(name: str) -> Node:
    index, _, node = name.removeprefix(PREFIX).partition("::")
    return int(index), node
