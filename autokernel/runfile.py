"""A Python file run as a module of its own: a kernel file, which is thereby built, or a model."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType


def run(path: Path, name: str) -> ModuleType:
    """The module of this file, known as ``name`` from now on. Raises ImportError where the file is no Python file, and
    whatever running it raises.
    """
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"a Python file (.py) was expected; got {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses, pickling and Triton look a module up by name
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """These variables for as long as it lasts; then all of the environment is what it was: in a user's own process
    torch.compile, for one, takes its compiler from there.
    """
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
