"""Recipes over Triton starters: each finds its pattern, and what they make of a file is right, and compiles."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from autokernel import assets, registry
from autokernel.backends.triton import BACKEND
from autokernel.evaluate.workshop import Workshop
from autokernel.extension import Brief
from autokernel.proposers.recipes import recipes
from autokernel.types import Target

from .extent import only_with_all
from .test_triton_starters import FILES, compiled, examined

pytestmark = pytest.mark.skipif(bool(BACKEND.missing()), reason=f"no Triton here: {BACKEND.missing()}")


def test_each_recipe_finds_its_pattern_in_a_starter_and_only_once() -> None:
    brief = Brief(Target("t", "t", "triton", (), 0.5, 100.0, 1.0), "", None, (), {}, 0)
    for recipe in recipes("triton"):
        edited = {path: recipe.apply(path.read_text(), brief) for path in FILES}
        found = {path: source for path, source in edited.items() if source is not None}
        assert found, recipe.name
        for path, source in found.items():
            assert BACKEND.check(ast.parse(source)) is None
            assert source != path.read_text() and recipe.apply(source, brief) is None, (recipe.name, path)
        assert recipe.apply("import torch\n\ndef kernel_fn(x):\n    return x\n", brief) is None, recipe.name


@only_with_all
@pytest.mark.parametrize(("name", "applied"), [("rotary_embedding", 5), ("matmul", 1)])
def test_recipes_keep_a_starter_right(workshop: Workshop, tmp_path: Path, name: str, applied: int) -> None:
    """All that apply, one on top of the other: right in the interpreter, and compiled for Hopper."""
    file = assets.starter(name, "triton")
    assert file is not None
    source, count = file.read_text(), 0
    for recipe in recipes("triton"):
        brief = Brief(Target("t", name, "triton", (), 0.5, 100.0, 1.0), source, None, (), {}, 0)
        edited = recipe.apply(source, brief)
        source, count = edited or source, count + (edited is not None)
    assert count == applied
    examined(workshop, source, registry.load("problems", name), seed=22)
    (tmp_path / "edited.py").write_text(source)
    done = compiled(tmp_path / "edited.py", tmp_path / "binaries")
    assert done.returncode == 0, done.stderr[-2000:]
    assert BACKEND.evidence(tmp_path / "binaries")
