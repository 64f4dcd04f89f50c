"""What a region of a graph does, line by line, and where else a graph does the same.

A program names its inputs %0, %1, ... in the order in which its output needs them, and the values in between $0, $1,
...: two regions with equal programs differ in names, shapes and places only. Numbers that are written in the nodes (an
eps, a size) are part of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import fx

from autokernel.regions.capture import Graph
from autokernel.regions.window import Window, close, name_of

Program = tuple[str, ...]
_REFERENCE = re.compile(r"[%$]\d+")


def ordered(graph: Graph, output: fx.Node, inside: set[fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
    """(nodes, inputs) of the region that ends in ``output``: nodes after what they read, inputs by first use."""
    nodes: list[fx.Node] = []
    inputs: list[fx.Node] = []
    stack = [(output, iter(reads(output)))]
    seen = {output}
    while stack:
        node, left = stack[-1]
        source = next(left, None)
        if source is None:
            nodes.append(node)
            stack.pop()
        elif source not in seen:
            seen.add(source)
            if source in inside:
                stack.append((source, iter(reads(source))))
            else:
                inputs.append(source)
    return nodes, inputs


def program(graph: Graph, output: fx.Node, inside: set[fx.Node]) -> Program:
    """The lines of a region, the output's last."""
    nodes, inputs = ordered(graph, output, inside)
    named = {n: f"%{i}" for i, n in enumerate(inputs)} | {n: f"${i}" for i, n in enumerate(nodes)}
    return tuple(_line(node, named) for node in nodes)


def places(graph: Graph, wanted: Program) -> Iterator[Window]:
    """Where the graph holds this program: windows whose inputs are in the program's order."""
    ends = [n for n in graph.nodes if n.op in ("call_function", "call_method") and _blank(n) == _template(wanted[-1])]
    order = {n: i for i, n in enumerate(graph.nodes)} if ends else {}
    for end in ends:
        bound = _unified(wanted, end)
        if bound is None:
            continue
        members = {node for name, node in bound.items() if name.startswith("$")}
        window = close(graph, members, order, most_inputs=None)
        if window is not None and len(members) == len(wanted):
            inputs = sorted((n for n in bound if n.startswith("%")), key=lambda n: int(n[1:]))
            yield Window(graph, window.nodes, tuple(bound[n] for n in inputs))


def reads(node: fx.Node) -> list[fx.Node]:
    """What a node reads, in the order of its arguments, repeated where it reads it twice."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), found.append)
    return found


def _unified(wanted: Program, end: fx.Node) -> dict[str, fx.Node] | None:
    """The nodes that stand for the program's names where it ends in ``end``; None where it does not."""
    bound: dict[str, fx.Node] = {}
    stack = [(f"${len(wanted) - 1}", end)]
    while stack:
        name, node = stack.pop()
        if name in bound:
            if bound[name] is not node:
                return None
            continue
        bound[name] = node
        if name.startswith("%"):
            continue
        line = wanted[int(name[1:])]
        if _blank(node) != _template(line):
            return None
        stack += zip(_REFERENCE.findall(line), reads(node), strict=True)
    return bound


def _line(node: fx.Node, named: Mapping[fx.Node, str]) -> str:
    arguments = [_text(a, named) for a in node.args] + [f"{k}={_text(v, named)}" for k, v in node.kwargs.items()]
    prefix = "." if node.op == "call_method" else ""
    return f"{prefix}{name_of(node.target).removeprefix('_')}({', '.join(arguments)})"


def _blank(node: fx.Node) -> str:
    return _line(node, dict.fromkeys(reads(node), "_"))


def _template(line: str) -> str:
    return _REFERENCE.sub("_", line)


def _text(value: Any, named: Mapping[fx.Node, str]) -> str:
    if isinstance(value, fx.Node):
        return named[value]
    if isinstance(value, slice):
        return f"slice({', '.join(_text(v, named) for v in (value.start, value.stop, value.step))})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {_text(v, named)}" for k, v in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"{type(value).__name__}({', '.join(_text(v, named) for v in value)})"
    return repr(value)
