"""What no built-in problem covers, as problems of its own: connected regions with one output, worth having.

A region grows backwards from its output and takes every operation whose readers are all inside: such a set is convex,
has one output, and is as large as it can be. First come regions of operations that a loop over rows and columns can do
(``lower``); a softmax or a norm that a built-in problem recognised is taken in where enough surrounds it. What is left
becomes regions of any other operations without matrix products: they start as plain PyTorch.
Regions of equal programs are one problem, printed as a file (``printed``), and are then recognised by that file as
every region is: by testing.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from autokernel import registry
from autokernel.problems._owner import INPUT_DTYPES
from autokernel.regions import match, printed
from autokernel.regions.capture import RANDOM, Capture, Graph, parted
from autokernel.regions.loops import NotLoops
from autokernel.regions.lower import lower
from autokernel.regions.match import Match
from autokernel.regions.profiler import Timing
from autokernel.regions.program import Program, ordered, places, program, reads
from autokernel.regions.sizes import find
from autokernel.regions.spell import spelled
from autokernel.regions.values import observe
from autokernel.regions.window import Window, close, usable
from autokernel.types import AutokernelError, Problem, kernel_type

LEAST_SHARE = 0.02  # of the forward: a program whose places cost less together is left to PyTorch
LEAST_NODES = 2  # that work: one operation alone has nothing to be fused with
LEAST_ADDED = 0.2  # of a region's time, by which it must exceed the built-in problems that it takes in
MOST_NODES, MOST_INPUTS = 64, 10
WITHIN = "fake_quantize"  # functions that round where the judge cannot see what they round


class Shelf:
    """The folder of the problems that were printed for a model, each program once."""

    def __init__(self, folder: Path, model: str) -> None:
        self.folder, self.model = folder, model
        self._known: dict[tuple[Program, str], list[Problem]] = defaultdict(list)
        self._names: set[str] = set(registry.names("problems"))

    def known(self, lines: Program, dtype: str) -> Sequence[Problem]:
        return self._known[lines, dtype]

    def write(self, title: str, text: Callable[..., str | None]) -> Problem | None:
        """Writes ``text(name=name)`` and loads it; None where there is no text for this region, or it does not run."""
        name = next(n for n in (title, *(f"{title}_{i}" for i in range(2, 10_000))) if n not in self._names)
        source = text(name=name)
        if source is None:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.py"
        path.write_text(source)
        try:
            problem: Problem = registry.load("problems", str(path))
        except AutokernelError:  # it runs on the model's inputs, and not on such as are drawn like them
            path.unlink()
            return None
        return problem

    def keep(self, lines: Program, dtype: str, problem: Problem) -> None:
        self._names.add(kernel_type(problem.name))
        self._known[lines, dtype].append(problem)


def with_uncovered(captured: Capture, matches: Sequence[Match], timing: Timing, shelf: Shelf) -> list[Match]:
    """The matches, and one for each further region that is worth having; those that a larger region takes in are left
    out. In execution order of each graph.
    """
    least = LEAST_SHARE * timing.attributed_us
    covered = {(m.graph, n.name) for m in matches for n in m.nodes}
    open_us = sum(timing.node_us(*node) for node in timing.nodes if node not in covered)
    if open_us < LEAST_ADDED * least:  # too little for any region, and looking costs seconds
        return list(matches)
    regions = [region for graph in captured.graphs for region in _regions(graph, matches, timing)]
    groups: dict[tuple[Program, str], list[Window]] = defaultdict(list)
    for window in regions:
        lines = program(window.graph, window.output, set(window.nodes))
        groups[lines, str(window.graph.specs[window.output.name].dtype)].append(window)
    worth = {
        key: found for key, found in groups.items() if sum(_time(timing, w.graph, w.nodes) for w in found) >= least
    }
    found = _recognised(captured, worth, shelf)
    taken = {(m.graph, n.name) for m in found for n in m.nodes}
    left = [m for m in matches if not any((m.graph, n.name) in taken for n in m.nodes)]
    position = {(g.index, n.name): i for g in captured.graphs for i, n in enumerate(g.nodes)}
    return sorted([*left, *found], key=lambda m: (m.graph, position[m.graph, m.output.name]))


def _recognised(captured: Capture, worth: Mapping[tuple[Program, str], Sequence[Window]], shelf: Shelf) -> list[Match]:
    """The places of each program as matches of its problem: one file, or more where shapes do not fit one."""
    inputs: dict[int, set[str]] = defaultdict(set)
    for windows in worth.values():
        for window in windows:
            inputs[window.graph.index] |= {n.name for n in window.inputs}
    looks = observe(captured, inputs) if worth else {}
    known: match.Known = {}
    found = []
    for (lines, dtype), windows in worth.items():
        for window in windows:
            named = {n.name for n in window.nodes}
            place = next((p for p in places(window.graph, lines) if {n.name for n in p.nodes} == named), None)
            if place is None:
                continue
            one = next((m for p in shelf.known(lines, dtype) if (m := _match(place, p, captured, known))), None)
            if one is None:
                values = [looks[place.graph.index, n.name] for n in place.inputs]
                text = functools.partial(printed.printed, place, values=values, model=shelf.model)
                problem = shelf.write(printed.title(place), text)
                one = _match(place, problem, captured, known) if problem is not None else None
                if problem is not None and one is not None:
                    shelf.keep(lines, dtype, problem)
                elif problem is not None:  # what was printed is not what the graph does
                    Path(problem.name).unlink()
            if one is not None:
                found.append(one)
    return found


def _match(place: Window, problem: Problem, captured: Capture, known: match.Known) -> Match | None:
    return match.match_window(place, problem, captured.model.device, known)


# ------------------------------------------------------------------------------------------------- which regions


def _regions(graph: Graph, matches: Sequence[Match], timing: Timing) -> Iterator[Window]:
    """Disjoint regions of one graph."""
    mine = [frozenset(m.nodes) for m in matches if m.graph == graph.index]
    order = {n: i for i, n in enumerate(graph.nodes)}
    kind = _Kinds(graph)
    kinds = {n: kind(n) for n in graph.nodes if _pure(graph, n)}
    loops = {n for n, k in kinds.items() if k == "loop"}
    absorbed = [m for m in mine if m <= loops]
    fixed = frozenset().union(*mine) if mine else frozenset()
    taken: set[fx.Node] = set()
    for window in _grown(graph, order, loops - (fixed - frozenset().union(*absorbed)), taken, absorbed, timing):
        taken |= set(window.nodes)
        yield window
    others = {n for n, k in kinds.items() if k != "hidden jump"} - fixed - taken
    for window in _grown(graph, order, others, set(taken), [], timing):
        if window.products == 0:
            yield window


def _grown(
    graph: Graph,
    order: Mapping[fx.Node, int],
    allowed: set[fx.Node],
    taken: set[fx.Node],
    absorbed: Sequence[frozenset[fx.Node]],
    timing: Timing,
) -> Iterator[Window]:
    """From the last operation to the first: the largest region that ends in each and is disjoint from those before."""
    taken = set(taken)
    for end in reversed(graph.nodes):
        if end not in allowed or end in taken or end.name in graph.free:
            continue
        usable_here = allowed - taken
        while True:
            members = _cone(end, usable_here)
            torn = [m for m in absorbed if m & members and not m <= members]
            inside = [m for m in absorbed if m <= members]
            extra = {n for n in members.difference(*inside) if not parted(n)}  # a bias comes free with its product
            dull = inside and _time(timing, graph, extra) < LEAST_ADDED * _time(timing, graph, members)
            refused = torn or (inside if dull else [])
            if not refused or end not in usable_here:
                break
            usable_here = usable_here.difference(*refused)
        if end not in usable_here:
            continue
        window = _window(graph, members, order)
        if window is not None:
            taken |= set(window.nodes)
            yield window


def _cone(end: fx.Node, allowed: set[fx.Node]) -> set[fx.Node]:
    """``end`` and every allowed operation before it whose readers are all among these, MOST_NODES at most."""
    members = {end}
    waiting = dict.fromkeys(s for s in reads(end) if s in allowed)
    while len(members) < MOST_NODES:
        node = next((n for n in waiting if members.issuperset(n.users)), None)
        if node is None:
            break
        members.add(node)
        del waiting[node]
        waiting |= dict.fromkeys(s for s in reads(node) if s in allowed and s not in members)
    return members


def _window(graph: Graph, members: set[fx.Node], order: Mapping[fx.Node, int]) -> Window | None:
    """The members as a window that can be a problem: something to fuse, one float dtype at its border."""
    window = close(graph, members, order, MOST_INPUTS)
    if window is None or window.compute < LEAST_NODES:
        return None
    out = graph.specs[window.output.name].dtype
    specs = [graph.specs[n.name] for n in window.inputs]
    floats = {s.dtype for s in specs if s.dtype.is_floating_point}
    fits = floats == {out} and all(s.dtype in INPUT_DTYPES for s in specs) and out in match.DTYPE_NAMES
    return window if fits else None


def _pure(graph: Graph, node: fx.Node) -> bool:
    """Whether a node may be part of a region: a function of tensors alone that can be written down."""
    if not usable(graph, node) or node.name not in graph.specs or not node.all_input_nodes:
        return False
    if any(i.name not in graph.specs for i in node.all_input_nodes):
        return False
    if node.name not in graph.free and any(word in str(node.target) for word in RANDOM):  # dropout may be switched off
        return False
    return spelled(node, dict.fromkeys([node, *node.all_input_nodes], "x"), torch.float32, "x") is not None


class _Kinds:
    """What an operation is, found by trying, once for each kind: "loop" over rows and columns, "hidden jump", "other".

    A rounding, or a cast to whole numbers, is as good as other operations: the problem that is printed says that it has
    such, and the judge watches them (``evaluate/jumps.py``). What makes a step of a last digit in another way (an
    argmax, say) it cannot judge: that is a hidden jump.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.known: dict[tuple[Program, tuple[Any, ...]], str] = {}

    def __call__(self, node: fx.Node) -> str:
        inputs = ordered(self.graph, node, {node})[1]
        specs = [self.graph.specs[n.name] for n in inputs]
        key = program(self.graph, node, {node}), tuple((s.shape, s.dtype) for s in specs)
        if key not in self.known:
            self.known[key] = self._try(node, inputs)
        return self.known[key]

    def _try(self, node: fx.Node, inputs: Sequence[fx.Node]) -> str:
        specs = [self.graph.specs[n.name] for n in inputs]
        dtypes = [s.dtype for s in specs]
        names = {n: f"x{i}" for i, n in enumerate(inputs)}
        native, first = next(((d, f"x{i}") for i, d in enumerate(dtypes) if d.is_floating_point), (torch.float32, "x0"))
        text = spelled(node, names, native, first)
        call = eval(f"lambda {', '.join(names.values())}: {text}", {"torch": torch, "F": F, "wide": torch.float32})
        out = self.graph.specs[node.name].dtype
        whole = not out.is_floating_point and out != torch.bool and any(d.is_floating_point for d in dtypes)
        if WITHIN in str(text) or (whole and not printed.rounds(call, specs)):
            return "hidden jump"
        try:
            lower(call, find(call, [s.shape for s in specs], dtypes), dtypes)
        except NotLoops:
            return "other"
        return "loop"


def _time(timing: Timing, graph: Graph, nodes: Iterable[fx.Node]) -> float:
    return sum(timing.node_us(graph.index, n.name) for n in nodes)
