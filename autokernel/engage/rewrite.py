"""A captured graph with won kernels in place of its regions; everything else stays as the model's owner wrote it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from autokernel.engage.kernel import Kernel
from autokernel.engage.won import Won
from autokernel.regions import capture, match
from autokernel.regions.capture import Graph, TensorSpec
from autokernel.regions.match import Match
from autokernel.types import Binding, Problem


@dataclasses.dataclass
class Engagement:
    """How often one target's kernel took part: places in the graphs that it holds, calls it has run, and what kept it
    from others (reason -> how often).
    """

    regions: int = 0
    calls: int = 0
    refused: Counter[str] = dataclasses.field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        return {"regions": self.regions, "calls": self.calls, "refused": dict(self.refused)}


def region(name: str, kernel: Kernel, binding: Binding, spec: TensorSpec) -> Callable[..., torch.Tensor]:
    """One engaged region as a function of the graph: its inputs as the problem takes them, the kernel, its output as
    the model expects it. No module: to call one costs as much as a view does.
    """

    def engaged(*inputs: torch.Tensor) -> torch.Tensor:
        problem_out = kernel(binding.adapt(*inputs), binding.scalars)
        out: torch.Tensor = binding.restore(problem_out, *inputs)
        if out.stride() == spec.stride or out.numel() == 0:
            return out
        laid = torch.empty_strided(spec.shape, spec.stride, dtype=out.dtype, device=out.device)
        return laid.copy_(out)

    engaged.__name__ = name
    return engaged


class Rewriter:
    """Rewrites graphs for a set of kernels, and remembers what it recognised from one graph to the next."""

    def __init__(self, won: Sequence[Won], device: str, buffers: set[int]) -> None:
        self.won = won
        self.kernels = {each.target.name: Kernel.of(each) for each in won}
        self.engaged: dict[str, Engagement] = {name: Engagement() for name in self.kernels}
        self._before = {name: (kernel.calls, Counter(kernel.refused)) for name, kernel in self.kernels.items()}
        self.device = torch.device(device)
        self._buffers = buffers
        self._known: match.Known = {}
        self._problems: list[Problem] = list({k.problem.name: k.problem for k in self.kernels.values()}.values())

    def rewrite(self, module: fx.GraphModule, args: Sequence[Any]) -> fx.GraphModule:
        """The same program with kernels engaged; ``args`` are real arguments, which say what the shapes are."""
        on = {t.device.type for t in tree_leaves(args) if isinstance(t, torch.Tensor)}
        if not self.kernels or on - {self.device.type}:
            if self.kernels:
                for engagement in self.engaged.values():
                    engagement.refused[f"the model runs on {', '.join(sorted(on))}, the run was on {self.device}"] += 1
            return module
        graph = Graph(0, capture.split(_copied(module)), calls=1)
        apart = [_apart(arg) for arg in args]
        buffers = {id(new) for new, arg in zip(apart, args, strict=True) if id(arg) in self._buffers}
        with torch.no_grad(), torch.random.fork_rng(devices=_devices(self.device)):
            capture.record(graph, apart, buffers)
        matches = match.match_graph(graph, self._problems, self.device, self._known)
        inner = graph.module.graph
        now: dict[fx.Node, fx.Node] = {}  # a region's old output -> the node that gives it now
        for found in matches:
            target = self._target_of(found)
            if target is None:
                continue
            name = f"autokernel_{target}_{self.engaged[target].regions}"
            self.engaged[target].regions += 1
            call = region(name, self.kernels[target], found.binding, graph.specs[found.output.name])
            with inner.inserting_after(found.output):
                node = inner.call_function(call, tuple(now.get(i, i) for i in found.inputs))
            now[found.output] = node
            node.meta = dict(found.output.meta)
            found.output.replace_all_uses_with(node)
            for old in reversed(found.nodes):
                inner.erase_node(old)
        capture.join(inner)
        _erase_unread(graph)
        inner.lint()
        graph.module.recompile()
        return graph.module

    def report(self) -> Mapping[str, Engagement]:
        """Engagement by target, with the calls that its kernel has run since this rewriter was made."""
        for name, engagement in self.engaged.items():
            calls, refused = self._before[name]
            engagement.calls = self.kernels[name].calls - calls
            now = Counter(self.kernels[name].refused)
            now.subtract(refused)
            engagement.refused = Counter(engagement.refused) | Counter({k: v for k, v in now.items() if v > 0})
        return self.engaged

    def _target_of(self, found: Match) -> str | None:
        """The target that was won for exactly this call; why none was is noted."""
        same = [w.target for w in self.won if self.kernels[w.target.name].problem.name == found.problem]
        for target in same:
            if any(work.key == found.workload.key for work in target.workloads):
                return target.name
        for target in same:
            self.engaged[target.name].refused[f"won for other calls than {found.workload.key}"] += 1
        return None


def _copied(module: fx.GraphModule) -> fx.GraphModule:
    """The same graph over the same parameters: what is rewritten must leave the original as it was. Where each argument
    comes from stays known: CUDA graphs would copy a parameter at each call, did they not know it for one.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}, return_output_node=False))
    copied = fx.GraphModule(module, graph)
    copied.meta = dict(module.meta)
    for new, old in zip(graph.nodes, module.graph.nodes, strict=True):
        if hasattr(old, "_dynamo_source"):
            new._dynamo_source = old._dynamo_source
    if hasattr(module, "_param_name_to_source"):
        copied._param_name_to_source = module._param_name_to_source
    return copied


def _devices(device: torch.device) -> list[int]:
    return [device.index or 0] if device.type == "cuda" else []


def _apart(value: Any) -> Any:
    """A copy of a tensor: recording runs the graph, and the graph may write into its arguments."""
    return value.clone() if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter) else value


def _erase_unread(graph: Graph) -> None:
    """Drop what only the replaced nodes read (a causal mask, say). A node that writes, or gives no tensor, stays."""
    for node in reversed(graph.nodes):
        pure = node.op in ("call_function", "call_method", "get_attr") and node.name in graph.specs
        if pure and not node.users and node.name not in graph.mutating:
            graph.module.graph.erase_node(node)
