"""A folder of files is the table: no list to keep in step with the files.

``names("problems")`` lists ``autokernel/problems/*.py``; ``load("problems", "rmsnorm")`` imports that file and returns
its ``PROBLEM``. Anything that is not in the folder loads by dotted path (``my_package.my_module``), so that a
third-party kernel type, backend, proposer or strategy plugs in without an edit here. A problem may also be the path of
its owner's file (``/home/me/reference.py``): see ``autokernel/problems/_from_file.py`` for what it holds.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import Any

from autokernel.types import AutokernelError

EXPORTS = {  # kind -> the attribute that each of its files defines
    "problems": "PROBLEM",
    "backends": "BACKEND",
    "proposers": "create",
    "strategies": "create",
}


def names(kind: str) -> list[str]:
    """The built-in extensions of one kind, sorted."""
    package = importlib.import_module(f"autokernel.{kind}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.ispkg and not m.name.startswith("_"))


def load(kind: str, name: str) -> Any:
    """The extension ``name`` of this kind: a file of the folder, or a dotted path to a module that defines the export.

    Raises AutokernelError with the nearest match when there is no such thing.
    """
    if kind == "problems" and name.endswith(".py"):
        return importlib.import_module("autokernel.problems._from_file").load(name)
    known = names(kind)
    if name in known:
        path = f"autokernel.{kind}.{name}"
    elif "." in name:
        path = name
    else:
        raise AutokernelError(unknown(kind, name, known))
    try:
        module = importlib.import_module(path)
        return getattr(module, EXPORTS[kind])
    except ModuleNotFoundError as error:
        if error.name and path.startswith(error.name):
            raise AutokernelError(unknown(kind, name, known)) from error
        raise
    except AttributeError as error:
        raise AutokernelError(f"{path} was expected to define {EXPORTS[kind]}; it does not") from error


def unknown(kind: str, name: str, known: list[str]) -> str:
    """The one line for a name that does not exist, with the near match."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    singular = {"strategies": "strategy"}.get(kind, kind.rstrip("s"))
    return f"unknown {singular} '{name}': {hint}known: {', '.join(known) or 'none'}"
