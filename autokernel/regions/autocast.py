"""What autocast does, as nodes of the graph: regions then see the dtypes that their kernels really get.

Under ``torch.autocast`` a graph keeps the calls as they were written, and the casts happen inside of them: a linear
layer over float32 tensors gives bfloat16. Here the inputs of each such call are cast before it, so that autocast finds
nothing left to do. Which inputs these are is seen, not listed: each call runs once on tensors without data, and what
autocast casts in it, and the call itself does not, is noted.

A tensor is cast once for all who read it, where autocast casts an activation anew for each (only parameters are kept).
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode

REFUSALS = (RuntimeError, TypeError, ValueError, NotImplementedError)  # of a call whose inputs do not suit it
_INPLACE = (operator.setitem, operator.iadd, operator.isub, operator.imul, operator.itruediv)


def explicit(module: fx.GraphModule) -> None:
    """Insert the casts in place, where autocast is on. The graph is as Dynamo gave it, with its example values."""
    graph = module.graph
    nodes = list(graph.nodes)
    kinds = {value.device.type for value in map(_value, nodes) if value is not None}
    if not any(torch.is_autocast_enabled(kind) for kind in kinds):
        return
    last_input = next((n for n in reversed(nodes) if n.op == "placeholder"), None)
    shared = not any(map(_writes, nodes))
    casts: dict[tuple[fx.Node, torch.dtype], fx.Node] = {}
    for node in nodes:
        for source, wanted in _casts_of(node).items():
            cast = casts.get((source, wanted)) if shared else None
            if cast is None:
                after = last_input if source.op == "placeholder" else source
                with graph.inserting_after(after) if shared else graph.inserting_before(node):
                    cast = casts[source, wanted] = graph.call_method("to", (source, wanted))
                cast.meta = {k: v for k, v in (source if shared else node).meta.items() if k == "nn_module_stack"}
                cast.meta["example_value"] = source.meta["example_value"].to(wanted)
            node.replace_input_with(source, cast)
    graph.lint()
    module.recompile()


class _Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Which tensors are cast, and to which dtype."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.casts: list[tuple[torch.Tensor, torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype") is not None:
            self.casts.append((args[0], kwargs["dtype"]))
        return func(*args, **kwargs)


def _casts_of(node: fx.Node) -> Mapping[fx.Node, torch.dtype]:
    """The inputs of a call that autocast casts, and to what."""
    out = _value(node)
    if node.op not in ("call_function", "call_method") or out is None or _writes(node):
        return {}
    kind = out.device.type
    with_autocast, without = (_seen(node, kind, enabled=enabled) for enabled in (True, False))
    return {source: dtype for source, dtype in with_autocast.items() if without.get(source) != dtype}


def _seen(node: fx.Node, kind: str, *, enabled: bool) -> Mapping[fx.Node, torch.dtype]:
    """The inputs that are cast when the call runs on its example values."""

    def given(source: fx.Node) -> Any:
        return source.meta.get("example_value")

    args, kwargs = fx.map_arg(node.args, given), fx.map_arg(node.kwargs, given)
    dtype = torch.get_autocast_dtype(kind)
    with torch.autocast(kind, dtype, enabled=enabled, cache_enabled=False), torch.no_grad(), _Seen() as seen:
        try:
            if callable(node.target):
                node.target(*args, **kwargs)
            else:
                getattr(args[0], node.target)(*args[1:], **kwargs)
        except REFUSALS:
            pass  # what it casts before it refuses counts as well
    return {n: dtype for n in node.all_input_nodes for value, dtype in seen.casts if value is given(n)}


def _value(node: fx.Node) -> torch.Tensor | None:
    value = node.meta.get("example_value")
    return value if isinstance(value, torch.Tensor) else None


def _writes(node: fx.Node) -> bool:
    """Whether a call is spelled as one that writes into its argument."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    called = node.op in ("call_function", "call_method")
    return called and (node.target in _INPLACE or (name.endswith("_") and not name.endswith("__")))
