"""What a brief says of a problem: its oracle's text, signature, tolerances, cases, cost, and its own GUIDE."""

from __future__ import annotations

import ast
import dataclasses
import functools
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autokernel.guide.modules import Module, extension
from autokernel.types import Workload


@dataclasses.dataclass(frozen=True)
class ProblemText:
    """``oracle`` is Python source that stands alone; ``owned`` says that it is a file of the owner's, whole: their
    reference, or the JSON of their bench command. ``adversarial`` maps each kind of adversarial input to what it is.
    ``cost`` gives (flops, bytes) of one call, or is None where they cannot be computed without torch; what is unknown
    is empty.
    """

    summary: str = ""
    guide: str = ""
    oracle: str = ""
    owned: bool = False
    signature: str = ""
    tolerances: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    tolerance_reason: str = ""
    adversarial: Mapping[str, str] = dataclasses.field(default_factory=dict)
    edges: tuple[str, ...] = ()
    edge_scalars: tuple[str, ...] = ()
    cost: Callable[[Workload], tuple[int, int]] | None = None


@functools.lru_cache(maxsize=32)
def describe(name: str) -> ProblemText:
    """The text of a problem named as in the registry. A file without ``PROBLEM`` is its own oracle, whole."""
    if name.endswith(".json"):
        return ProblemText(oracle=_text(name), owned=True)
    module = extension("problems", name)
    if module is None:
        return ProblemText()
    made = module.value("PROBLEM")
    fields = {k.arg: k.value for k in made.keywords if k.arg} if isinstance(made, ast.Call) else {}
    reference = _name(fields.get("reference")) or "reference"
    summary = textwrap.dedent(ast.get_docstring(module.tree) or "").strip()
    function = module.function(reference)
    if function is None or not fields:
        return _owned(module, summary, function)
    tolerances = _value(module, fields, "tolerances") or {}
    return ProblemText(
        summary=summary,
        guide=module.text("GUIDE"),
        oracle=f"from __future__ import annotations\n\n{module.gather([reference]).text}",
        signature=_signature(function),
        tolerances={str(dtype): (float(t.atol), float(t.rtol)) for dtype, t in tolerances.items()},
        tolerance_reason=str(_value(module, fields, "tolerance_reason") or ""),
        adversarial=_adversarial(module, fields.get("adversarial")),
        edges=tuple(_dims(dims) for dims in _value(module, fields, "edge_shapes") or ()),
        edge_scalars=tuple(
            ", ".join(f"{n}={v}" for n, v in scalars.items())
            for scalars in _value(module, fields, "edge_scalars") or ()
        ),
        cost=_cost(_value(module, fields, "flops"), _value(module, fields, "bytes")),
    )


def _owned(module: Module, summary: str, function: ast.FunctionDef | None) -> ProblemText:
    """A reference as its owner wrote it: ``reference`` or ``class Model``, and what else the file may define."""
    flops, nbytes = (module.evaluate(ast.Name(name, ast.Load())) for name in ("flops", "bytes_moved"))
    counted = callable(flops) and callable(nbytes)
    return ProblemText(
        summary=summary,
        guide=module.text("GUIDE"),
        oracle=module.source.strip(),
        owned=True,
        signature=_signature(function),
        cost=_cost(lambda w: flops(**w.dims), lambda w: nbytes(**w.dims)) if counted else None,
    )


def guide_of(kind: str, name: str) -> str:
    """The GUIDE of a problem or backend; "" where it has none."""
    module = extension(kind, name)
    return module.text("GUIDE") if module else ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return ""


def _value(module: Module, fields: Mapping[str, ast.expr], name: str) -> Any:
    return module.evaluate(fields[name]) if name in fields else None


def _cost(flops: Any, nbytes: Any) -> Callable[[Workload], tuple[int, int]] | None:
    if not callable(flops) or not callable(nbytes):
        return None
    return lambda work: (int(flops(work)), int(nbytes(work)))


def _name(expression: ast.expr | None) -> str | None:
    return expression.id if isinstance(expression, ast.Name) else None


def _signature(function: ast.FunctionDef | None) -> str:
    if function is None:
        return ""
    arguments = function.args.args
    defaults = [None] * (len(arguments) - len(function.args.defaults)) + list(function.args.defaults)
    parts = [f"{a.arg}={ast.unparse(d)}" if d is not None else a.arg for a, d in zip(arguments, defaults, strict=True)]
    return f"kernel_fn({', '.join(parts)})"


def _adversarial(module: Module, expression: ast.expr | None) -> dict[str, str]:
    """The functions that the expression names, each with its docstring: what its inputs are made to break."""
    found: dict[str, str] = {}
    for node in ast.walk(expression) if expression is not None else ():
        function = module.function(node.id) if isinstance(node, ast.Name) else None
        told = ast.get_docstring(function) if function else None
        if function is not None and told:
            found[function.name.lstrip("_")] = " ".join(told.split())
    return dict(sorted(found.items()))


def _dims(dims: Mapping[str, int]) -> str:
    return "x".join(f"{n}{v}" for n, v in dims.items())
