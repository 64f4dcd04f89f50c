"""Which windows of a graph are a problem we know: recognition by testing, never by name.

A problem proposes how a window's tensors could fill its signature; the window and the problem's reference then run on
the same random inputs in double precision. Equal numbers at several magnitudes (so that a wrong eps or scale shows)
make it a region. Windows that do more work win over smaller ones, and regions share no node.
An input that is the same in every forward (a causal mask, a table of cosines) takes part with its real values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import fx

from autokernel import registry
from autokernel.problems._common import TORCH_DTYPES
from autokernel.regions.capture import Capture, Graph, module_path
from autokernel.regions.program import places
from autokernel.regions.trials import Trials, agree
from autokernel.regions.window import REFUSALS, Window, product_flops, windows
from autokernel.types import Binding, DType, Problem, Workload

MOST_FLOPS = {"cpu": 2e10, "cuda": 1e13}  # of a test at real sizes
DTYPE_NAMES: Mapping[torch.dtype, DType] = {t: n for n, t in TORCH_DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Match:
    """One recognised place: the nodes it replaces, and how its tensors fill the problem's signature.

    ``inputs`` are those the binding takes, in its order; ``workload.count`` is how often a forward makes this call.
    """

    problem: str
    workload: Workload
    binding: Binding
    graph: int
    nodes: tuple[fx.Node, ...]
    inputs: tuple[fx.Node, ...]

    @property
    def output(self) -> fx.Node:
        return self.nodes[-1]

    @property
    def module_path(self) -> str:
        """The innermost module that holds the whole window."""
        paths = [module_path(n).split(".") for n in self.nodes if n.meta.get("nn_module_stack")]
        if not paths:
            return ""
        shared = []
        for parts in zip(*paths, strict=False):
            if len(set(parts)) > 1:
                break
            shared.append(parts[0])
        return ".".join(shared)


@dataclasses.dataclass(frozen=True)
class _Found:
    """What a window's key was found to be: it holds for each window of that key."""

    problem: str
    workload: Workload
    binding: Binding
    taken: tuple[int, ...]  # positions of the window's inputs that the binding takes


Known = dict[tuple[str, frozenset[str]], "_Found | None"]


def match(captured: Capture, problems: Sequence[Problem] | None = None) -> list[Match]:
    """The regions of all graphs, disjoint, in execution order."""
    known: Known = {}
    chosen = problems if problems is not None else all_problems()
    return [m for graph in captured.graphs for m in match_graph(graph, chosen, captured.model.device, known)]


def all_problems() -> list[Problem]:
    """Every problem of the registry."""
    return [registry.load("problems", name) for name in registry.names("problems")]


def match_graph(graph: Graph, problems: Sequence[Problem], device: torch.device, known: Known) -> list[Match]:
    """The regions of one graph, disjoint, in execution order. ``known`` remembers from one graph to the next what
    equal windows were found to be.
    """
    position = {n: i for i, n in enumerate(graph.nodes)}
    taken: set[fx.Node] = set()
    chosen = []
    general = [p for p in problems if not p.program]
    found = [*reversed(_found(graph, general, known, device)), *_printed(graph, problems, known, device)]
    for window, result in sorted(found, key=lambda pair: -pair[0].compute):
        if not taken.isdisjoint(window.nodes):
            continue
        taken.update(window.nodes)
        chosen.append(_matched(window, result))
    return sorted(chosen, key=lambda m: position[m.output])


def match_window(window: Window, problem: Problem, device: torch.device, known: Known) -> Match | None:
    """This very window as the problem that was printed for such ones, its inputs being in the problem's order."""
    result = _tested(window, problem, device, known)
    return _matched(window, result) if result is not None else None


def _tested(window: Window, problem: Problem, device: torch.device, known: Known) -> _Found | None:
    key = (f"{problem.name}\n{window.key}", frozenset[str]())
    if key not in known:
        known[key] = _recognise(window, [problem], device)
    return known[key]


def _matched(window: Window, found: _Found) -> Match:
    return Match(
        problem=found.problem,
        workload=dataclasses.replace(found.workload, count=window.graph.calls),
        binding=found.binding,
        graph=window.graph.index,
        nodes=window.nodes,
        inputs=tuple(window.inputs[i] for i in found.taken),
    )


def _printed(
    graph: Graph, problems: Sequence[Problem], known: Known, device: torch.device
) -> Iterator[tuple[Window, _Found]]:
    """The windows of problems that say what the graph holds where it holds them; these too are tested."""
    for problem in problems:
        for window in places(graph, tuple(problem.program)) if problem.program else ():
            result = _tested(window, problem, device, known)
            if result is not None:
                yield window, result


def _found(
    graph: Graph,
    problems: Sequence[Problem],
    known: Known,
    device: torch.device,
) -> list[tuple[Window, _Found]]:
    """The windows that are a problem, those that do the least work first.

    A window that holds a smaller one of the same problem and dtype does more than the problem asks, so that it is not
    tested for that problem: attention is attention, and not so with the rotation before it. This holds for matrix
    products, whose tests cost; a softmax is still one with the subtraction of the maximum before it.
    """
    found: list[tuple[Window, _Found]] = []
    by_output: dict[fx.Node, list[tuple[Window, _Found]]] = {}
    for window in reversed(windows(graph)):
        nodes = set(window.nodes)
        dtype = DTYPE_NAMES.get(graph.specs[window.output.name].dtype)
        held = (pair for node in window.nodes for pair in by_output.get(node, ()))
        without = frozenset(
            f.problem
            for w, f in held
            if w.products and w.compute < window.compute and f.workload.dtype == dtype and nodes.issuperset(w.nodes)
        )
        key = (window.key, without)
        if key not in known:
            known[key] = _recognise(window, [p for p in problems if p.name not in without], device)
        result = known[key]
        if result is not None:
            found.append((window, result))
            by_output.setdefault(window.output, []).append((window, result))
    return found


def _recognise(window: Window, problems: Sequence[Problem], device: torch.device) -> _Found | None:
    if not window.graph.specs[window.output.name].dtype.is_floating_point:
        return None
    names = [n.name for n in window.inputs]
    variants: list[frozenset[str]] = [frozenset()]
    if 0 < len(window.fixed) < len(names):
        variants.append(frozenset(window.fixed))
    reduced = window.reduced()
    real_trials = Trials(window, device)
    small_trials = Trials(reduced, torch.device("cpu")) if reduced else None
    for without in variants:
        taken = tuple(i for i, name in enumerate(names) if name not in without)
        for problem in problems:
            proposals = _propose(problem, window, without)
            small = _propose(problem, reduced, without) if reduced and proposals else []
            for i, binding in enumerate(proposals):
                workload = _workload(problem, binding, window, taken)
                if workload is None or not _as_much_work(window, problem, binding, taken):
                    continue
                if small_trials and len(small) == len(proposals) and small[i].scalars == binding.scalars:
                    same = agree(small_trials, problem, small[i], taken)
                else:  # sizes matter to the program: only the real ones tell
                    affordable = problem.flops(workload) <= MOST_FLOPS[device.type]
                    same = affordable and agree(real_trials, problem, binding, taken)
                if same:
                    return _Found(problem.name, workload, binding, taken)
    return None


def _as_much_work(window: Window, problem: Problem, binding: Binding, taken: Sequence[int]) -> bool:
    """Whether both do about the same matrix products: a test that costs no data, and spares most real ones."""
    metas = [window.graph.specs[window.inputs[i].name].meta() for i in taken]
    try:
        theirs = product_flops(lambda: problem.reference(*binding.adapt(*metas), **binding.scalars))
    except REFUSALS:
        return False
    ours = window.products
    return ours is None or theirs / 2 <= ours <= theirs * 2


def _propose(problem: Problem, window: Window, without: frozenset[str]) -> Sequence[Binding]:
    try:
        return problem.propose_bindings(window.offer(without))
    except REFUSALS as error:
        raise RuntimeError(f"{problem.name}.propose_bindings failed on {window.key}") from error


def _workload(problem: Problem, binding: Binding, window: Window, taken: Sequence[int]) -> Workload | None:
    """The call pattern of a binding, with the real strides; None where it has no name for the dtype, has no elements,
    or needs a copy (which a kernel's time would not show).
    """
    dtype = DTYPE_NAMES.get(window.graph.specs[window.output.name].dtype)
    if dtype is None or any(size < 1 for size in binding.dims.values()):
        return None
    metas = [window.graph.specs[window.inputs[i].name].meta() for i in taken]
    storages = {t.untyped_storage()._cdata for t in metas}
    try:
        adapted = binding.adapt(*metas)
    except REFUSALS:
        return None
    if any(t.untyped_storage()._cdata not in storages for t in adapted):
        return None
    if any(t.is_floating_point() and t.dtype != TORCH_DTYPES[dtype] for t in adapted):
        return None
    strides = {
        name: tuple(tensor.stride())
        for name, tensor in zip(problem.inputs, adapted, strict=True)
        if not tensor.is_contiguous()
    }
    return Workload(dict(binding.dims), dtype, 1, strides, dict(binding.scalars))
