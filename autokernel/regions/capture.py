"""From a model to its graphs: what runs in one forward, node by node, with real shapes, dtypes and strides.

``torch.compile(model, backend=...)`` hands us each graph that Dynamo traces; nothing is compiled. Graph breaks are
tolerated: a forward is then several graphs with plain Python between them, and breaks are counted.
A graph stays at the level the user wrote (``F.linear``, ``x.pow(2)``), and each node keeps its ``nn_module_stack``.

Two rewrites make regions visible, and neither changes a result by more than its rounding:
``F.linear`` and ``torch.addmm`` with a bias become a product and an add, so that the product alone is a matmul region
(the bias add is then timed as an op of its own); ``F.rms_norm`` without eps gets the eps that its dtype implies.
Under autocast its casts become nodes, too: see ``autocast``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch._dynamo.utils import counters
from torch.utils._pytree import tree_leaves

from autokernel.regions.autocast import explicit
from autokernel.regions.model import LoadedModel
from autokernel.types import AutokernelError

KEPT_ELEMENTS = 1 << 24  # a constant value with more elements than this is not kept
_SPLIT = "autokernel_split"  # marks both nodes of a product that was parted from its bias
RANDOM = ("rand", "bernoulli", "multinomial", "normal", "dropout")


class Untraceable(AutokernelError):
    """A model that runs, and that torch.compile cannot trace."""


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """What a node's tensor looks like; strides in elements."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorSpec:
        return cls(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)

    def meta(self) -> torch.Tensor:
        """A tensor of this layout that holds no data."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")


@dataclasses.dataclass
class Graph:
    """One captured graph. It is filled by the first forward after capture, and not changed after that.

    ``free`` names the nodes whose output is a view of an input (or the input itself); ``mutating`` those that write
    into an input; ``constants`` holds the values of nodes that depend on no argument of the model and no parameter
    (masks, tables of positions), so that they are the same in every forward.
    """

    index: int
    module: fx.GraphModule
    calls: int = 0  # in one forward
    specs: dict[str, TensorSpec] = dataclasses.field(default_factory=dict)
    free: set[str] = dataclasses.field(default_factory=set)
    mutating: set[str] = dataclasses.field(default_factory=set)
    constants: dict[str, torch.Tensor] = dataclasses.field(default_factory=dict)

    @property
    def nodes(self) -> list[fx.Node]:
        return list(self.module.graph.nodes)


@dataclasses.dataclass
class Capture:
    """A model whose forward runs its captured graphs; ``forward`` takes who interprets them."""

    model: LoadedModel
    graphs: list[Graph]
    graph_breaks: int
    _compiled: Callable[..., Any]
    _interpret: Callable[[Graph, tuple[Any, ...]], Any] | None = None

    def forward(self, interpret: Callable[[Graph, tuple[Any, ...]], Any]) -> Any:
        """One forward; ``interpret(graph, args)`` runs each graph and returns its result."""
        with self._interpreted_by(interpret), self.model.conditions():
            return self._compiled(*self.model.inputs)

    @contextlib.contextmanager
    def _interpreted_by(self, interpret: Callable[[Graph, tuple[Any, ...]], Any]) -> Iterator[None]:
        self._interpret = interpret
        try:
            yield
        finally:
            self._interpret = None

    def _run(self, graph: Graph, args: tuple[Any, ...]) -> Any:
        if self._interpret is None:
            return graph.module(*args)
        return self._interpret(graph, args)


def capture(model: LoadedModel) -> Capture:
    """Trace one forward of the model and note what each node's tensor looks like.

    Raises Untraceable where PyTorch cannot trace the model although it runs.
    """
    torch._dynamo.reset()
    counters.clear()
    graphs: list[Graph] = []

    def backend(module: fx.GraphModule, _examples: Sequence[Any]) -> Callable[..., Any]:
        graph = Graph(len(graphs), split(module))
        graphs.append(graph)
        return lambda *args: captured._run(graph, args)

    compiled = torch.compile(model.module, backend=backend, dynamic=False)
    captured = Capture(model, graphs, 0, compiled)
    known = {id(t) for t in model.module.buffers()}
    try:
        with model.conditions():
            compiled(*model.inputs)  # traces; a graph is known only after this
    except torch._dynamo.exc.TorchDynamoException as error:
        reason = str(error).strip().splitlines()[0]
        raise Untraceable(f"{model.path.name} runs, but torch.compile cannot trace it: {reason}") from error
    noted = sum(counters["graph_break"].values())
    calls: Counter[int] = Counter()

    def note(graph: Graph, args: tuple[Any, ...]) -> Any:
        calls[graph.index] += 1
        if calls[graph.index] > 1:
            return graph.module(*args)
        return record(graph, args, known)

    captured.forward(note)
    for graph in graphs:
        graph.calls = calls[graph.index]
    captured.graphs = [g for g in graphs if g.calls]
    captured.graph_breaks = max(noted, sum(calls.values()) - 1)  # Dynamo does not count every kind
    return captured


def record(graph: Graph, args: Sequence[Any], buffers: set[int]) -> Any:
    """Runs a graph once, notes what each node's tensor looks like, and returns the graph's result.

    ``buffers`` holds the ids of the model's buffers: what depends on nothing else is the same in every forward.
    """
    return _Recorder(graph, buffers).run(*args)


def module_path(node: fx.Node) -> str:
    """The innermost module that a node belongs to ("layers.0.mlp"), "" for the model itself."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return clean_path(stack[-1][0]) if stack else ""


def clean_path(path: str) -> str:
    """Dynamo's "L['self'].layers.0.mlp" (or a spelling with modules['0']) as "layers.0.mlp"."""
    for old in ("L['self']", "_modules"):
        path = path.replace(old, "")
    for old, new in (("['", "."), ("[", "."), ("']", ""), ("]", ""), ("..", ".")):
        path = path.replace(old, new)
    return path.strip(".")


def split(module: fx.GraphModule) -> fx.GraphModule:
    """Apply the rewrites of the module's docstring in place."""
    explicit(module)
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is F.linear:
            x, weight, bias = _arguments(node, ("input", "weight", "bias"))
            if bias is not None:
                _replace(graph, node, F.linear, (x, weight), bias)
        elif node.target is torch.addmm and not set(node.kwargs) & {"alpha", "beta", "out"}:
            bias, a, b = _arguments(node, ("input", "mat1", "mat2"))
            _replace(graph, node, torch.matmul, (a, b), bias)
        elif node.target in (F.rms_norm, torch.rms_norm):
            x, shape, weight, eps = _arguments(node, ("input", "normalized_shape", "weight", "eps"))
            example = x.meta.get("example_value") if isinstance(x, fx.Node) else None
            if eps is None and isinstance(example, torch.Tensor):
                node.args, node.kwargs = (x, shape, weight, _implied_eps(example.dtype)), {}
    graph.lint()
    module.recompile()
    return module


def parted(node: fx.Node) -> bool:
    """Whether a node is a product or a bias add that the owner wrote as one call: see ``split``."""
    return bool(node.meta.get(_SPLIT))


def join(graph: fx.Graph) -> None:
    """Undo the split of each product with bias that is still as ``split`` left it: one call is faster than two."""
    for total in list(graph.nodes):
        if not total.meta.get(_SPLIT) or total.target is not operator.add:
            continue
        product, bias = total.args
        if not isinstance(product, fx.Node) or not product.meta.get(_SPLIT) or len(product.users) != 1:
            continue
        with graph.inserting_before(total):
            if product.target is F.linear:
                whole = graph.call_function(F.linear, (*product.args, bias))
            elif product.target is torch.matmul:
                whole = graph.call_function(torch.addmm, (bias, *product.args))
            else:
                continue
        whole.meta = {k: v for k, v in total.meta.items() if k != _SPLIT}
        total.replace_all_uses_with(whole)
        graph.erase_node(total)
        graph.erase_node(product)


def _implied_eps(dtype: torch.dtype) -> float:
    """The eps that rms_norm takes when it is given none: that of the input's dtype or of its accumulator, by trial."""
    x = torch.full((1, 8), 1e-3, dtype=dtype)
    y = F.rms_norm(x, (8,)).double()
    eps = float(((x.double() / y).square() - x.double().square()).mean())
    return min((torch.finfo(t).eps for t in (dtype, torch.float32)), key=lambda e: abs(math.log(max(eps, 1e-9) / e)))


def _arguments(node: fx.Node, names: Sequence[str]) -> list[Any]:
    return [node.args[i] if i < len(node.args) else node.kwargs.get(name) for i, name in enumerate(names)]


def _replace(graph: fx.Graph, node: fx.Node, product: Callable[..., Any], factors: tuple[Any, ...], bias: Any) -> None:
    with graph.inserting_before(node):
        first = graph.call_function(product, factors)
        total = graph.call_function(operator.add, (first, bias))
    first.meta, total.meta = {**node.meta, _SPLIT: True}, {**node.meta, _SPLIT: True}
    node.replace_all_uses_with(total)
    graph.erase_node(node)


class _Recorder(fx.Interpreter):
    """Runs a graph once and fills its specs, free and mutating nodes, and constants."""

    def __init__(self, graph: Graph, buffers: set[int]) -> None:
        super().__init__(graph.module)
        self.record, self.buffers = graph, buffers
        self.fixed: set[str] = set()  # names of nodes that are the same in every forward

    def run_node(self, n: fx.Node) -> Any:
        inputs = [self.env[i] for i in n.all_input_nodes]
        tensors = [t for t in tree_leaves(inputs) if isinstance(t, torch.Tensor)]
        versions = [t._version for t in tensors]
        result = super().run_node(n)
        if any(t._version != v for t, v in zip(tensors, versions, strict=True)):
            self.record.mutating.add(n.name)
            self.fixed.difference_update(i.name for i in n.all_input_nodes)
            for i in n.all_input_nodes:
                self.record.constants.pop(i.name, None)
        elif self._is_fixed(n, result):
            self.fixed.add(n.name)
        storages = {t.untyped_storage().data_ptr() for t in tensors}
        results = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        if n.op != "placeholder" and results and all(t.untyped_storage().data_ptr() in storages for t in results):
            self.record.free.add(n.name)
        if isinstance(result, torch.Tensor):
            self.record.specs[n.name] = TensorSpec.of(result)
            if n.name in self.fixed and result.numel() <= KEPT_ELEMENTS:
                self.record.constants[n.name] = result.detach()
        return result

    def _is_fixed(self, node: fx.Node, result: Any) -> bool:
        if node.op == "placeholder":
            return id(result) in self.buffers
        if node.op == "get_attr":
            return not isinstance(result, torch.nn.Parameter)
        if any(word in str(node.target) for word in RANDOM):
            return False
        return node.op != "output" and all(i.name in self.fixed for i in node.all_input_nodes)
