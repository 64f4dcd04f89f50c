"""One node of a graph as a line of Python that a person would write: ``F.gelu(a, approximate="tanh")``, ``a + b``.

Casts are written so that the function means the same in any float dtype: to the dtype of the region's own inputs
(``x.dtype``), or to at least float32 (``wide``). A reference in float64 is then exact, and no cast rounds it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

INFIX = {
    operator.add: "+", operator.sub: "-", operator.mul: "*", operator.truediv: "/", operator.floordiv: "//",
    operator.mod: "%", operator.pow: "**", operator.and_: "&", operator.or_: "|", operator.xor: "^",
    operator.lt: "<", operator.le: "<=", operator.gt: ">", operator.ge: ">=", operator.eq: "==", operator.ne: "!=",
    operator.matmul: "@",
}  # fmt: skip
PREFIX = {operator.neg: "-", operator.invert: "~", operator.pos: "+"}
NORMS = (F.layer_norm, torch.layer_norm, F.rms_norm, torch.rms_norm)
CASTS = {"float": torch.float32, "half": torch.float16, "bfloat16": torch.bfloat16}
MODULES = (("torch", torch), ("F", F), ("torch.linalg", torch.linalg), ("torch.special", torch.special))


def spelled(node: fx.Node, names: Mapping[fx.Node, str], dtype: torch.dtype, first: str) -> str | None:
    """The expression of a node whose inputs have these names; None where it cannot be written plainly.

    ``dtype`` is that of the region's float inputs, and ``first`` the name of one of them.
    """
    target = node.target

    def text(value: Any) -> str:
        return _argument(value, names, dtype, first)

    try:
        arguments = [text(a) for a in node.args]
        named = [f"{key}={text(value)}" for key, value in node.kwargs.items()]
        if node.op == "call_method" and isinstance(target, str) and not target.endswith("_"):
            if target in CASTS and len(node.args) == 1:
                return f"{arguments[0]}.to({text(CASTS[target])})"
            return f"{arguments[0]}.{target}({', '.join(arguments[1:] + named)})"
        if node.op != "call_function" or isinstance(target, str):
            return None
        if target is operator.getitem:
            return f"{arguments[0]}[{_index(node.args[1], text)}]"
        if target is getattr and isinstance(node.args[1], str):
            return f"{arguments[0]}.{node.args[1]}"
        if target in INFIX:
            return f"{arguments[0]} {INFIX[target]} {arguments[1]}"
        if target in PREFIX:
            return f"{PREFIX[target]}{arguments[0]}"
    except _Unspeakable:
        return None
    if target in NORMS and len(node.args) > 1 and isinstance(node.args[1], (tuple, list)):
        arguments[1] = (
            f"{arguments[0]}.shape[-{len(node.args[1])}:]"  # a size in the code would be the only one it takes
        )
    where = _where(target)
    return None if where is None else f"{where}({', '.join(arguments + named)})"


class _Unspeakable(Exception):
    """An argument that has no plain literal."""


def _where(target: Callable[..., Any]) -> str | None:
    """How a function is called by name: "torch.rsqrt"."""
    name = getattr(target, "__name__", "")
    if not name or name.endswith("_") or name.startswith("_"):
        return None
    return next((f"{prefix}.{name}" for prefix, module in MODULES if getattr(module, name, None) is target), None)


def _argument(value: Any, names: Mapping[fx.Node, str], dtype: torch.dtype, first: str) -> str:
    if isinstance(value, fx.Node):
        return names[value]
    if isinstance(value, torch.dtype):
        if value == dtype:
            return f"{first}.dtype"
        return "wide" if value == torch.float32 else repr(value)
    if isinstance(value, torch.device):
        return f"{first}.device"
    if isinstance(value, str):
        return f'"{value}"' if value.isidentifier() else repr(value)
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return f'float("{value}")'
    if (isinstance(value, float) and value < 0) or (isinstance(value, int) and value < 0):
        return f"({value!r})" if isinstance(value, float) else repr(value)
    if value is None or value is Ellipsis or isinstance(value, (bool, int, float)):
        return "..." if value is Ellipsis else repr(value)
    if isinstance(value, (tuple, list)):
        inner = ", ".join(_argument(v, names, dtype, first) for v in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(value) == 1 else ''})"
    raise _Unspeakable


def _index(value: Any, text: Callable[[Any], str]) -> str:
    """What stands between the brackets of an index."""
    if isinstance(value, tuple) and value:
        return ", ".join(_index(v, text) for v in value) + ("," if len(value) == 1 else "")
    if isinstance(value, slice):
        start, stop, step = ("" if v is None else text(v) for v in (value.start, value.stop, value.step))
        return f"{start}:{stop}" + (f":{step}" if step else "")
    return text(value)
