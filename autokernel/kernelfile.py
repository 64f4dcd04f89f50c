"""What a kernel file says of itself, read without running a line of it: KERNEL_TYPE, BACKEND, WORKLOADS, kernel_fn."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path
from typing import Any

from autokernel import registry
from autokernel.types import AutokernelError, Workload


@dataclasses.dataclass(frozen=True)
class KernelFile:
    """``workloads`` is empty when the file names none: then the problem's own shapes stand in. ``problem`` is a name,
    or the absolute path of its owner's reference or bench command (then ``backend`` is empty and the file any text).
    """

    path: Path
    source: str
    problem: str
    backend: str
    workloads: tuple[Workload, ...]


class NotAKernel(AutokernelError):
    """The file cannot be judged: it is no Python, or does not say what it is."""


def read(path: Path, problem: Path | None = None) -> KernelFile:
    """The kernel file at this path. NotAKernel names the line or the missing piece.

    ``problem`` is the file that stands for its problem; without it, a kernel of a run or of ``autokernel extract``
    finds its own in ``../context/`` or ``context/``: ``<KERNEL_TYPE>.py``, or ``<file>.json`` for a bench command.
    """
    beside = path.absolute().parent / "context"
    context = beside if beside.is_dir() else beside.parent.parent / "context"
    if problem is None and (context / f"{path.stem}.json").is_file():
        problem = context / f"{path.stem}.json"
    if problem is not None and problem.suffix == ".json":
        try:
            return KernelFile(path, path.read_text(encoding="utf-8"), str(problem.absolute()), "", ())
        except UnicodeDecodeError as error:
            raise NotAKernel(f"{path}: expected text in UTF-8, got bytes that are not ({error.reason})") from error
    try:
        source = path.read_text(encoding="utf-8")
        if "\0" in source:  # Python versions differ in how they refuse it
            raise NotAKernel(f"{path}: expected Python source, got a file with NUL bytes")
        tree = ast.parse(source, filename=str(path))
    except UnicodeDecodeError as error:
        raise NotAKernel(f"{path}: expected Python source in UTF-8, got bytes that are not ({error.reason})") from error
    except SyntaxError as error:
        raise NotAKernel(f"{path} line {error.lineno}: expected Python, got a syntax error: {error.msg}") from error
    if not any(
        isinstance(n, ast.FunctionDef) and n.name == "kernel_fn" for n in tree.body
    ) and "kernel_fn" not in _names(tree):
        raise NotAKernel(
            f"{path}: expected a top-level function kernel_fn, found none; `autokernel extract` shows the form"
        )
    name, backend = _text(tree, path, "KERNEL_TYPE"), _text(tree, path, "BACKEND")
    if problem is None and name.isidentifier() and (context / f"{name}.py").is_file():
        problem = context / f"{name}.py"
    if problem is not None and problem.stem != name:
        raise NotAKernel(
            f'{path}: expected KERNEL_TYPE = "{problem.stem}", as its reference {problem} is named; got "{name}"'
        )
    for kind, value in (("problems", name), ("backends", backend)):
        known = registry.names(kind)
        if value not in known and "." not in value and not (kind == "problems" and problem is not None):
            raise NotAKernel(f"{path}: {registry.unknown(kind, value, known)}")
    named = str(problem.absolute()) if problem is not None else name
    return KernelFile(path, source, named, backend, _workloads(tree, path))


def _names(tree: ast.Module) -> set[str]:
    """Names that top-level assignments define."""
    return {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}


def _value(tree: ast.Module, name: str) -> ast.expr | None:
    """The expression that the last top-level assignment gives to this name."""
    found = None
    for node in tree.body:
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets, value = [node.target], node.value
        else:
            continue
        if any(isinstance(t, ast.Name) and t.id == name for t in targets):
            found = value
    return found


def _literal(tree: ast.Module, path: Path, name: str) -> Any:
    expression = _value(tree, name)
    if expression is None:
        return None
    try:
        return ast.literal_eval(expression)
    except ValueError as error:
        raise NotAKernel(
            f"{path} line {expression.lineno}: expected {name} to be a literal, got an expression"
        ) from error


def _text(tree: ast.Module, path: Path, name: str) -> str:
    value = _literal(tree, path, name)
    if not isinstance(value, str):
        got = "no such line" if value is None else repr(value)
        example = {"KERNEL_TYPE": "rmsnorm", "BACKEND": "cpp"}[name]
        raise NotAKernel(
            f'{path}: expected a top-level {name} = "{example}" (say), got {got}; `autokernel list` names them'
        )
    return value


def _workloads(tree: ast.Module, path: Path) -> tuple[Workload, ...]:
    listed = _literal(tree, path, "WORKLOADS")
    try:
        return tuple(Workload.from_json(w) for w in listed or ())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NotAKernel(
            f"{path}: expected WORKLOADS to be a list like [{{'dims': {{'R': 512, 'C': 768}}, 'dtype': 'fp32', "
            f"'count': 1}}], got one without a readable {error}"
        ) from error
