"""Where the time of one forward goes: each node of each graph, each op outside them, each counted once.

The captured graphs run node by node under torch.profiler, each node inside a ``record_function`` range of its own. On a
CPU a node costs the time of the outermost ops inside its range; on CUDA, the device time of the kernels that those ops
launched, wherever they ran (an op's own row is never added to its kernels' rows). The profiler's own cost between ops
falls out of both. Ops that ran outside every graph (between graph breaks) are kept under their own names.
On CUDA the plain model runs under the profiler once more, for what its kernels leave open (``gaps``): the node-by-node
path keeps the host busier than the model does.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch._C._autograd import DeviceType
from torch.autograd.profiler import record_function

from autokernel.regions.capture import Capture, Graph
from autokernel.regions.gaps import Waiting, waiting
from autokernel.regions.model import LoadedModel
from autokernel.types import AutokernelError

PREFIX = "autokernel::"  # of the ranges' names, followed by graph index and node name
MOST_EAGER = 5  # forwards of the plain model that are timed at most
LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")  # names begin so


@dataclasses.dataclass(frozen=True)
class OpTime:
    """One kind of op inside one node (or outside every graph), in one forward."""

    op: str
    time_us: float
    calls: float


@dataclasses.dataclass(frozen=True)
class Timing:
    """Times of one forward. ``nodes`` maps (graph index, node name) to its ops; ``outside`` holds the ops that no
    graph contains; ``forward_us`` is the median wall time of the plain model, without capture or profiler. On CUDA
    ``launch_us`` is what the launches of each node's kernels cost the host, and ``waiting`` what the GPU did not work.
    """

    nodes: Mapping[tuple[int, str], tuple[OpTime, ...]]
    outside: tuple[OpTime, ...]
    forward_us: float
    launch_us: Mapping[tuple[int, str], float] = dataclasses.field(default_factory=dict)
    waiting: Waiting | None = None

    @property
    def attributed_us(self) -> float:
        inside = sum(op.time_us for ops in self.nodes.values() for op in ops)
        waits = self.waiting.launching_us + self.waiting.idle_us if self.waiting else 0.0
        return inside + sum(op.time_us for op in self.outside) + waits

    def node_us(self, graph: int, name: str) -> float:
        return sum(op.time_us for op in self.nodes.get((graph, name), ()))


def time_nodes(
    captured: Capture,
    warmup: int = 5,
    iterations: int = 10,
    trace: Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> Timing:
    """Run ``warmup`` and then ``iterations`` profiled forwards; write a Chrome trace to ``trace`` where given.

    Raises AutokernelError where the trace cannot be written.
    """
    captured.forward(_interpret)  # once unprofiled: the node-by-node path has its own first-call costs
    return _time(captured.model, lambda: captured.forward(_interpret), warmup, iterations, trace, on_progress)


def time_operations(
    model: LoadedModel,
    warmup: int = 5,
    iterations: int = 10,
    trace: Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> Timing:
    """As ``time_nodes``, of a model that was not captured: every op is outside."""
    return _time(model, model.forward, warmup, iterations, trace, on_progress)


def _time(
    model: LoadedModel,
    run: Callable[[], Any],
    warmup: int,
    iterations: int,
    trace: Path | None,
    on_progress: Callable[[int, int], None],
) -> Timing:
    eager = min(MOST_EAGER, iterations)
    steps, done = warmup + eager + iterations, 0

    def step(call: Callable[[], Any]) -> float:
        nonlocal done
        start = time.perf_counter()
        call()
        _synchronize(model.device)
        seconds = time.perf_counter() - start
        done += 1
        on_progress(done, steps)
        return seconds

    for _ in range(warmup):
        step(model.forward)
    forward_us = statistics.median(step(model.forward) for _ in range(eager)) * 1e6
    activities = [torch.profiler.ProfilerActivity.CPU]
    cuda = model.device.type == "cuda"
    if cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(iterations):
            step(run)
    if trace is not None:
        try:
            trace.parent.mkdir(parents=True, exist_ok=True)
            profile.export_chrome_trace(str(trace))
        except (OSError, RuntimeError) as error:
            raise AutokernelError(f"the trace was expected to be writable at {trace}: {error}") from error
    events = list(profile.events() or ())
    nodes, outside = _attribute(events, model.device.type, iterations)
    if not cuda:
        return Timing(nodes, outside, forward_us)
    with torch.profiler.profile(activities=activities) as plain:
        for _ in range(eager):
            model.forward()
        _synchronize(model.device)
    return Timing(
        nodes,
        outside,
        forward_us,
        _launches(events, iterations),
        _waiting(list(plain.events() or ()), eager, forward_us),
    )


def _launches(events: Iterable[Any], iterations: int) -> dict[tuple[int, str], float]:
    """What the launches inside each range cost the host, per forward."""
    found: dict[tuple[int, str], float] = defaultdict(float)
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


def _interpret(graph: Graph, args: tuple[Any, ...]) -> Any:
    return _Timed(graph).run(*args)


class _Timed(fx.Interpreter):
    """Runs each node inside a range named after it."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.module)
        self.prefix = f"{PREFIX}{graph.index}::"

    def run_node(self, n: fx.Node) -> Any:
        if n.op in ("placeholder", "output", "get_attr"):
            return super().run_node(n)
        with record_function(self.prefix + n.name):
            return super().run_node(n)


def _attribute(
    events: Iterable[Any], device: str, iterations: int
) -> tuple[dict[tuple[int, str], tuple[OpTime, ...]], tuple[OpTime, ...]]:
    """Sum, for each range and each op name, the outermost ops; per forward.

    ``events`` are torch.profiler's FunctionEvents. An op counts when no other op encloses it: what encloses it is
    nothing, a range of ours, or a mark of the compiler's. A kernel that was launched with no op around it (a Triton
    kernel called from Python) belongs to the range itself.
    """
    sums: dict[tuple[int, str] | None, dict[str, list[float]]] = defaultdict(lambda: defaultdict(lambda: [0.0, 0]))
    for event in events:
        if event.device_type != DeviceType.CPU:
            continue
        if _is_range(event):
            node: tuple[int, str] | None = _node_of(event.name)
            for kernel in event.kernels if device == "cuda" else ():
                if not kernel.name.startswith(PREFIX):
                    _add(sums[node][kernel.name], kernel.duration)
            continue
        if not _is_op(event):
            continue
        parent, node = event.cpu_parent, None
        while parent is not None and not _is_op(parent):
            if _is_range(parent):
                node = _node_of(parent.name)
                break
            parent = parent.cpu_parent
        if parent is not None and _is_op(parent):
            continue
        _add(sums[node][event.name], event.device_time_total if device == "cuda" else event.cpu_time_total)
    times = {
        node: tuple(OpTime(op, total / iterations, calls / iterations) for op, (total, calls) in ops.items())
        for node, ops in sums.items()
    }
    outside = times.pop(None, ())
    return {node: ops for node, ops in times.items() if node is not None}, outside


def _add(entry: list[float], time_us: float) -> None:
    entry[0] += time_us
    entry[1] += 1


def _is_range(event: Any) -> bool:
    return bool(event.name.startswith(PREFIX))


def _is_op(event: Any) -> bool:
    """A dispatched op ("aten::add", "my_library::op"); not a range, a Python frame, a launch or the compiler's mark."""
    return "::" in event.name and " " not in event.name and not _is_range(event)


def _node_of(name: str) -> tuple[int, str]:
    index, _, node = name.removeprefix(PREFIX).partition("::")
    return int(index), node
