"""The source of an extension, read and never imported: problems and baselines import torch, and the daemon may not.

``Module`` finds top-level definitions and gathers what one of them needs: constants, helper functions, imports, also
from neighbours of the same package. What needs no more than the standard library and autokernel's own records can be
evaluated here: the flops and bytes of a workload, tolerances, edge shapes. It is the project's or the owner's code.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_GROUND = ("autokernel.types", "autokernel.extension")  # imported as they are; they need no torch


@dataclasses.dataclass
class Code:
    """What a definition needs: lines that import, and definitions by name, each after those it needs."""

    imports: dict[str, None] = dataclasses.field(default_factory=dict)
    bodies: dict[str, str] = dataclasses.field(default_factory=dict)
    modules: set[str] = dataclasses.field(default_factory=set)

    @property
    def text(self) -> str:
        head = "\n".join(self.imports)
        return "\n\n\n".join(part for part in (head, *self.bodies.values()) if part)

    @property
    def pure(self) -> bool:
        """Whether it runs without anything but the standard library and autokernel's records."""
        return all(name in _GROUND or name.partition(".")[0] in sys.stdlib_module_names for name in self.modules)


class Module:
    """One source file. ``package`` is the top-level package whose modules may be read along with it."""

    def __init__(self, path: Path, package: str = "") -> None:
        self.path, self.package = path, package
        self.source = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.source, filename=str(path))
        self.definitions: dict[str, ast.stmt] = {}
        self.imported: dict[str, tuple[str, str | None]] = {}  # name -> (module, attribute or None)
        for node in self.tree.body:
            for name in _defined(node):
                self.definitions[name] = node
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self.imported[alias.asname or alias.name.partition(".")[0]] = (alias.name, None)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    self.imported[alias.asname or alias.name] = (node.module, alias.name)

    def value(self, name: str) -> ast.expr | None:
        """The expression assigned to a top-level name."""
        node = self.definitions.get(name)
        return node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None

    def text(self, name: str) -> str:
        """A top-level string constant, stripped; "" where there is none."""
        expression = self.value(name)
        if isinstance(expression, ast.Constant) and isinstance(expression.value, str):
            return expression.value.strip()
        return ""

    def function(self, name: str) -> ast.FunctionDef | None:
        node = self.definitions.get(name)
        return node if isinstance(node, ast.FunctionDef) else None

    def gather(self, names: Iterable[str], code: Code | None = None) -> Code:
        """The definitions of these names with all that they need."""
        code = code or Code()
        for name in names:
            if name in code.bodies:
                continue
            if name in self.definitions:
                node = self.definitions[name]
                code.bodies[name] = ""  # taken: a definition that needs itself ends here
                self.gather((n for n in _needs(node) if n != name), code)
                del code.bodies[name]  # comes again after what it needs
                text = self._segment(node)
                if text not in code.bodies.values():
                    code.bodies[name] = text
            elif name in self.imported:
                self._import(name, code)
        return code

    def evaluate(self, expression: ast.expr) -> Any:
        """The value of an expression of this file, or None where it needs more than ``Code.pure`` allows."""
        code = self.gather(dict.fromkeys(_names(expression)))
        if not code.pure:
            return None
        scope: dict[str, Any] = {}
        text = f"from __future__ import annotations\n{code.text}\n_value = {ast.unparse(expression)}\n"
        try:
            exec(compile(text, str(self.path), "exec"), scope)
        except (ArithmeticError, AttributeError, ImportError, LookupError, NameError, TypeError, ValueError):
            return None
        return scope["_value"]

    def _import(self, name: str, code: Code) -> None:
        module, attribute = self.imported[name]
        near = self.package and module.partition(".")[0] == self.package and module not in _GROUND
        if near and attribute is not None and (neighbour := load(module)) is not None:
            neighbour.gather([attribute], code)
            return
        code.modules.add(module)
        if attribute is None:
            plain = f"import {module}"
            code.imports.setdefault(plain if module == name else f"{plain} as {name}")
        else:
            code.imports.setdefault(f"from {module} import {attribute}" + (f" as {name}" if attribute != name else ""))

    def _segment(self, node: ast.stmt) -> str:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        return "\n".join(self.source.splitlines()[first - 1 : node.end_lineno])


@functools.lru_cache(maxsize=64)
def load(name: str) -> Module | None:
    """The source of a dotted module name or of a path to a .py file; None where there is none that parses.

    Packages on the way are not imported, but for the top one's finder.
    """
    path = Path(name) if name.endswith(".py") or "/" in name else _locate(name)
    try:
        return Module(path, "" if path.name == name or "/" in name else name.partition(".")[0]) if path else None
    except (OSError, SyntaxError, ValueError):
        return None


def extension(kind: str, name: str) -> Module | None:
    """The source of a problem or backend, named as in the registry: built in, dotted path, or path of a file."""
    if name.endswith(".py") or "/" in name or "." in name:
        return load(name)
    return load(f"autokernel.{kind}.{name}")


def _locate(dotted: str) -> Path | None:
    top, *rest = dotted.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for base in spec.submodule_search_locations or ():
        stem = Path(base).joinpath(*rest)
        for path in (stem.with_suffix(".py"), stem / "__init__.py"):
            if path.is_file():
                return path
    return None


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, ast.Assign):
        yield from (n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id


def _needs(node: ast.stmt) -> dict[str, None]:
    """Global names that a definition reads when it runs; its annotations are never evaluated."""
    unannotated = ast.parse(ast.unparse(node))
    for inner in ast.walk(unannotated):
        if isinstance(inner, ast.FunctionDef):
            inner.returns = None
        elif isinstance(inner, ast.arg):
            inner.annotation = None
        elif isinstance(inner, ast.AnnAssign):
            inner.annotation = ast.Constant(None)
    return dict.fromkeys(_names(unannotated))


def _names(node: ast.AST) -> Iterator[str]:
    yield from (n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))
