"""Candidate windows of a graph: connected sets of nodes that could be one kernel, and how to run one on any inputs.

A window has one tensor output, and nothing outside reads its inner values. Windows grow backwards from each node, one
node at a time, latest first; a node that something outside also reads stays an input. Each step of that growth is a
window, and so is the body of each module. Equal windows (of a model's equal layers) have equal keys.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import heapq
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils.flop_counter import FlopCounterMode

from autokernel.regions.capture import Graph, TensorSpec, clean_path
from autokernel.types import Scalar
from autokernel.types import Window as ProblemWindow

MOST_NODES = 32  # a window of more nodes is not looked at
MOST_INPUTS = 6
SMALL = 8  # an integer of at most this much in a node is an index or a rank; a larger one may be a size
WIDE = {
    **dict.fromkeys((torch.float16, torch.bfloat16, torch.float32), torch.float64),
    torch.complex64: torch.complex128,
}
CASTS = ("float", "half", "bfloat16")
# What running a window, or a binding that does not fit it, may raise.
REFUSALS = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, NotImplementedError)


@dataclasses.dataclass(frozen=True)
class Window:
    """Nodes in execution order; ``inputs`` in order of first use; ``constants`` are the numbers written in the nodes.

    ``fixed`` maps those inputs that are the same in every forward to their values.
    """

    graph: Graph
    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]

    @property
    def output(self) -> fx.Node:
        return self.nodes[-1]

    @functools.cached_property
    def compute(self) -> int:
        """How many nodes do work (a view does none)."""
        return sum(n.name not in self.graph.free for n in self.nodes)

    @functools.cached_property
    def fixed(self) -> Mapping[str, torch.Tensor]:
        return {n.name: self.graph.constants[n.name] for n in self.inputs if n.name in self.graph.constants}

    @functools.cached_property
    def numbers(self) -> tuple[Scalar, ...]:
        return tuple(number for node in self.nodes for number in _numbers((node.args, node.kwargs)))

    @functools.cached_property
    def key(self) -> str:
        """Equal keys: the same program on inputs of the same layout (and, where they are fixed, of the same values)."""
        place = {n: f"%{i}" for i, n in enumerate((*self.inputs, *self.nodes))}
        lines = [f"{self.graph.specs[n.name]} {_digest(self.fixed.get(n.name))}" for n in self.inputs]
        for node in self.nodes:
            args = fx.map_arg((node.args, node.kwargs), lambda n: place[n])
            lines.append(f"{node.op} {name_of(node.target)} {args!r}")
        return "\n".join(lines)

    @functools.cached_property
    def products(self) -> int | None:
        """Operations of the matrix products inside; None where that cannot be told without data."""
        metas = [self.graph.specs[n.name].meta() for n in self.inputs]
        metas = [t.to(WIDE.get(t.dtype, t.dtype)) for t in metas]
        try:
            return product_flops(lambda: self.run(metas))
        except REFUSALS:
            return None

    def offer(self, without: frozenset[str] = frozenset()) -> ProblemWindow:
        """The window as problems see it; inputs named in ``without`` are left out."""
        return ProblemWindow(
            tensors=tuple(self.graph.specs[n.name].meta() for n in self.inputs if n.name not in without),
            output=self.graph.specs[self.output.name].meta(),
            constants=self.numbers,
        )

    def run(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """The window's output for these values of its inputs, in double precision where it says a float dtype, on the
        device of the first value. May raise whatever the nodes raise.
        """
        device = values[0].device
        env: dict[fx.Node, Any] = dict(zip(self.inputs, values, strict=True))
        for node in self.nodes:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: env[n])
            args, kwargs = _widen(args, device), _widen(kwargs, device)
            if node.op == "call_method":
                name = "double" if node.target in CASTS else str(node.target)
                env[node] = getattr(args[0], name)(*args[1:], **kwargs)
            else:
                env[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        result = env[self.output]
        assert isinstance(result, torch.Tensor)
        return result

    def reduced(self) -> Window | None:
        """The same program on inputs of a few elements, where no size is written in a node; else None."""
        if self.fixed or any(isinstance(v, int) and not isinstance(v, bool) and abs(v) > SMALL for v in self.numbers):
            return None
        shapes = [self.graph.specs[n.name].shape for n in (*self.inputs, *self.nodes) if n.name in self.graph.specs]
        sizes = _small_sizes({s for shape in shapes for s in shape})
        if sizes is None:
            return None
        specs = {
            n.name: _resize(self.graph.specs[n.name], sizes)
            for n in (*self.inputs, *self.nodes)
            if n.name in self.graph.specs
        }
        return Window(dataclasses.replace(self.graph, specs=specs), self.nodes, self.inputs)


def windows(graph: Graph) -> list[Window]:
    """All windows, those that do the most work first; of equals, the one with the fewest nodes."""
    order = {n: i for i, n in enumerate(graph.nodes)}
    found: dict[tuple[str, ...], Window] = {}
    for members in (*_grown(graph, order), *_modules(graph)):
        window = close(graph, members, order)
        if window is not None:
            found.setdefault(tuple(n.name for n in window.nodes), window)
    return sorted(found.values(), key=lambda w: (-w.compute, len(w.nodes)))


def product_flops(run: Callable[[], Any]) -> int:
    """Operations of the matrix products (attention's included) that ``run`` makes. Meta tensors cost nothing."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def usable(graph: Graph, node: fx.Node) -> bool:
    if node.name in graph.constants:
        return False  # the same in every forward: always an input, with its values
    return node.op in ("call_function", "call_method") and node.name not in graph.mutating


def _grown(graph: Graph, order: Mapping[fx.Node, int]) -> Iterator[list[fx.Node]]:
    """Backwards from each tensor node: a step takes the latest node all of whose readers are already inside."""
    for end in order:
        if not usable(graph, end) or end.name not in graph.specs:
            continue
        inside: list[fx.Node] = []
        member: set[fx.Node] = set()
        seen = {end}
        heap = [(-order[end], end.name, end)]
        while heap and len(inside) < MOST_NODES:
            node = heapq.heappop(heap)[2]
            if node is not end and not set(node.users) <= member:
                continue  # read from outside: it stays an input
            inside.append(node)
            member.add(node)
            for source in node.all_input_nodes:
                if source not in seen and usable(graph, source):
                    seen.add(source)
                    heapq.heappush(heap, (-order[source], source.name, source))
            yield list(inside)


def _modules(graph: Graph) -> Iterator[list[fx.Node]]:
    bodies: dict[str, list[fx.Node]] = {}
    for node in graph.nodes:
        for path, _ in node.meta.get("nn_module_stack", {}).values():
            bodies.setdefault(clean_path(path), []).append(node)
    yield from (body for body in bodies.values() if len(body) <= MOST_NODES)


def close(
    graph: Graph, members: Iterable[fx.Node], order: Mapping[fx.Node, int], most_inputs: int | None = MOST_INPUTS
) -> Window | None:
    """These nodes as a window, or None where they are none (a value that escapes, an input that is no tensor)."""
    nodes = tuple(sorted(members, key=order.__getitem__))
    inside = set(nodes)
    last = nodes[-1]
    if last.name not in graph.specs or not all(usable(graph, n) for n in nodes):
        return None
    if any(n is not last and not set(n.users) <= inside for n in nodes):
        return None
    inputs = tuple(dict.fromkeys(i for n in nodes for i in n.all_input_nodes if i not in inside))
    if not inputs or any(i.name not in graph.specs for i in inputs):
        return None
    if most_inputs is not None and len(inputs) > most_inputs:
        return None
    if all(n.name in graph.free for n in nodes):
        return None
    if graph.mutating:  # something may write an input between the window's first and last node
        span = range(order[nodes[0]], order[last])
        if any(order[n] in span for n in order if n.name in graph.mutating):
            return None
    return Window(graph, nodes, inputs)


def _numbers(value: Any) -> Iterator[Scalar]:
    if isinstance(value, (bool, int, float)):
        yield value
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from _numbers(v)
    elif isinstance(value, slice):
        yield from _numbers((value.start, value.stop, value.step))
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from _numbers(v)


def _widen(value: Any, device: torch.device) -> Any:
    """Arguments with each float dtype made double and each device made ``device``."""
    if isinstance(value, torch.dtype):
        return WIDE.get(value, value)
    if isinstance(value, torch.device):
        return device
    if isinstance(value, Mapping):
        return {k: _widen(v, device) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_widen(v, device) for v in value)
    return value


def name_of(target: Any) -> str:
    """A callable's name without its address."""
    return target if isinstance(target, str) else f"{getattr(target, '__module__', '')}.{target.__name__}"


def _digest(value: torch.Tensor | None) -> str:
    if value is None:
        return "free"
    raw = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(raw.tobytes()).hexdigest()


def _small_sizes(sizes: set[int]) -> dict[int, int] | None:
    """A small size for each, distinct for distinct ones and with the same divisibility; None where that fails."""
    small: dict[int, int] = {s: s for s in sizes if s <= 1}
    for size in sorted(s for s in sizes if s > 1):
        step = 1
        for other, reduced in small.items():
            if other > 1 and size % other == 0:
                step = step * reduced // _gcd(step, reduced)
        value = step
        while value < 4 or value in small.values():
            value += step
        if value > size:
            return None
        small[size] = value
    return small


def _gcd(a: int, b: int) -> int:
    while b:
        a, b = b, operator.mod(a, b)
    return a


def _resize(spec: TensorSpec, sizes: Mapping[int, int]) -> TensorSpec:
    shape = tuple(sizes[s] for s in spec.shape)
    return TensorSpec(shape, dense_strides(shape, spec.stride), spec.dtype)


def dense_strides(shape: Sequence[int], like: Sequence[int]) -> tuple[int, ...]:
    """Strides of a gapless tensor of this shape whose dimensions lie in memory in the order of ``like``; a dimension
    of stride 0 there (an expanded one) keeps it.
    """
    strides, step = [0] * len(shape), 1
    for dim in sorted(range(len(shape)), key=lambda d: (like[d], -d)):
        if like[dim] == 0 and shape[dim] > 1:
            continue
        strides[dim] = step
        step *= max(shape[dim], 1)
    return tuple(strides)
