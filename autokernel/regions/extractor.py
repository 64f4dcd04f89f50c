"""From a target to its kernel file: the starter of its problem and backend, told what the model really asks of it.

The file's docstring gains the model, the places, the real call patterns with their half and double scale, their flops
and bytes, and the tolerances; ``WORKLOADS``, a plain literal, lets any judge time the same calls. Where a backend has
no starter for a problem, the file is plain PyTorch with the oracle's own code inlined, so that it stands alone.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import pprint
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

from autokernel import assets, registry
from autokernel.problems._common import ELEMENT_BYTES
from autokernel.regions import generate
from autokernel.regions.rank import Row
from autokernel.types import AutokernelError, Problem, Workload, is_file, kernel_type

SCALES = (("half", 0.5), ("double", 2.0))
WIDTH = 110


def backend_for(problem: str, backend: str) -> str:
    """The backend of the file that will be written: ``backend`` where it has a starter, else "torch"."""
    there = generate.starter(problem, backend) if is_file(problem) else assets.starter(problem, backend)
    return backend if there else "torch"


def extract(row: Row, backend: str, model: str, arch: str | None = None) -> str:
    """The source of a target's kernel file. ``model`` is what its header calls the model; a starter for the
    architecture ``arch`` is preferred (see ``hardware.arch``).

    Raises AutokernelError where the starter is no kernel file (it does not parse, or lacks BACKEND).
    """
    assert row.problem is not None
    problem: Problem = registry.load("problems", row.problem)
    path = None if is_file(row.problem) else assets.starter(row.problem, backend, arch)
    source = path.read_text() if path else generate.starter(row.problem, backend) or torch_starter(problem)
    return annotate(source, header(row, problem, model), row.workloads, str(path or f"torch starter of {problem.name}"))


def header(row: Row, problem: Problem, model: str) -> str:
    """What a reader of the kernel file should know of the model's calls."""
    floor = f", roofline floor {row.floor_us:,.0f} us ({row.bound}-bound)" if row.floor_us else ""
    calls = "call" if row.calls == 1 else "calls"
    lines = [
        f"From {model}: {row.calls} {calls} in one forward, {row.time_us:,.0f} us as the model runs them "
        f"({row.share:.1%} of it){floor}.",
        f"Places: {', '.join(p or '(the model itself)' for p in row.places)}"
        f"{' and others' if row.calls > len(row.places) else ''}.",
        "Workloads:",
    ]
    for workload in row.workloads:
        lines += _describe(workload, problem)
    used = sorted({w.dtype for w in row.workloads})
    tolerances = "; ".join(
        f"{d} atol {problem.tolerances[d].atol:g} (of the output's size), rtol {problem.tolerances[d].rtol:g}"
        for d in used
    )
    lines += [f"Tolerances: {tolerances}.", problem.tolerance_reason]
    return "\n".join(
        textwrap.fill(line, WIDTH, subsequent_indent=_indent(line), break_long_words=False) for line in lines
    )


def annotate(source: str, extra: str, workloads: Sequence[Workload], name: str) -> str:
    """The kernel file with ``extra`` at the end of its docstring and ``WORKLOADS`` after its BACKEND."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise AutokernelError(f"{name}:{error.lineno}: a kernel file was expected to parse: {error.msg}") from error
    lines = source.splitlines()
    anchor = _assignment(tree, "BACKEND")
    if anchor is None:
        raise AutokernelError(f"{name}: a kernel file was expected to define BACKEND; it does not")
    literal = pprint.pformat([w.to_json() for w in workloads], width=WIDTH, sort_dicts=False, compact=True)
    lines[anchor:anchor] = ["", *f"WORKLOADS = {literal}".splitlines()]  # comes after line `anchor`, counted from one
    doc = tree.body[0] if ast.get_docstring(tree) is not None else None
    text = (ast.get_docstring(tree) or "").rstrip()
    quoted = '"""' + (text + "\n\n" + extra).replace("\\", "\\\\").replace('"""', "'''") + '\n"""'
    if doc is None:
        return "\n".join([quoted, "", *lines]) + "\n"
    assert doc.end_lineno is not None
    return "\n".join([*lines[: doc.lineno - 1], quoted, *lines[doc.end_lineno :]]) + "\n"


def torch_starter(problem: Problem) -> str:
    """A kernel file in plain PyTorch: the reference, renamed ``kernel_fn``, with everything it uses."""
    module = inspect.getmodule(problem.reference)
    assert module is not None
    imports: dict[str, None] = {"import torch": None}
    bodies: dict[str, str] = {}
    _collect(problem.reference, imports, bodies)
    name = problem.reference.__name__
    functions = [re.sub(rf"\b{name}\(", "kernel_fn(", body) for body in bodies.values()]
    summary = (problem.summary or problem.name).strip()
    head = [
        f'"""{summary}\n\nPlain PyTorch, the problem\'s own reference: a start for a kernel of any language.\n"""',
        "",
        "from __future__ import annotations",
        "",
        *imports,
        "",
        f'KERNEL_TYPE = "{kernel_type(problem.name)}"',
        'BACKEND = "torch"',
    ]
    return "\n".join(head) + "\n\n\n" + "\n\n\n".join(functions) + "\n"


def _collect(function: Callable[..., Any], imports: dict[str, None], bodies: dict[str, str]) -> None:
    """Gather a function's source after that of what it uses: imports, constants, and functions of this package."""
    if function.__name__ in bodies:
        return
    source = textwrap.dedent(inspect.getsource(function))
    module = inspect.getmodule(function)
    scope = vars(module)
    for name in _names(source):
        if name not in scope or name == function.__name__:
            continue
        value = scope[name]
        if isinstance(value, ModuleType):
            plain = f"import {value.__name__}"
            imports.setdefault(plain if value.__name__ == name else f"{plain} as {name}")
        elif inspect.isfunction(value) and value.__module__.startswith("autokernel."):
            _collect(value, imports, bodies)
        elif isinstance(value, (bool, int, float, str, tuple)):
            bodies.setdefault(name, f"{name} = {value!r}")
        elif getattr(value, "__module__", None):
            imports.setdefault(f"from {value.__module__} import {name}")
    bodies[function.__name__] = source.strip()


def _names(source: str) -> Iterator[str]:
    """Global names that the code reads, in order; annotations are never evaluated and do not count."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
    yield from dict.fromkeys(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))


def _describe(workload: Workload, problem: Problem) -> list[str]:
    flops, nbytes = problem.flops(workload), problem.bytes(workload)
    dims = " ".join(f"{n}={v}" for n, v in workload.dims.items())
    scalars = "".join(f", {n}={v}" for n, v in workload.scalars.items())
    lines = [
        f"  {workload.count} x [{dims}] {workload.dtype}{scalars}: {flops:,} flops, {nbytes:,} bytes, "
        f"{flops / max(nbytes, 1):.2f} flops a byte"
    ]
    if workload.strides:
        strides = "; ".join(f"{n} {list(s)}" for n, s in workload.strides.items())
        lines.append(
            f"    strides, in elements of {ELEMENT_BYTES[workload.dtype]} bytes: {strides}; the rest contiguous"
        )
    for word, scale in SCALES:
        scaled = _scaled(workload, scale)
        dims = " ".join(f"{n}={v}" for n, v in scaled.dims.items())
        lines.append(f"    {word} scale: [{dims}] {problem.flops(scaled):,} flops, {problem.bytes(scaled):,} bytes")
    return lines


def _scaled(workload: Workload, scale: float) -> Workload:
    """The call with its first dimension longer than one (rows, batch or heads) scaled: what a batch size does."""
    dims = dict(workload.dims)
    name = next((n for n, v in dims.items() if v > 1), next(iter(dims)))
    dims[name] = max(1, round(dims[name] * scale))
    return dataclasses.replace(workload, dims=dims, strides={})


def _indent(line: str) -> str:
    return " " * (len(line) - len(line.lstrip()) + (4 if line.startswith(" ") else 0))


def _assignment(tree: ast.Module, name: str) -> int | None:
    """Line number at which the module-level assignment to ``name`` ends, counted from one."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return node.end_lineno
    return None
