"""Recipes over CUDA starters: each edits once and nothing else, and a file with all of them still compiles."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from autokernel.backends import cuda
from autokernel.backends.cuda import BACKEND
from autokernel.extension import Brief
from autokernel.proposers.recipes import Recipe
from autokernel.proposers.recipes.cuda_recipes import RECIPES
from autokernel.types import Target, Workload

from .extent import ALL
from .test_cuda_starters import FOLDER, PORTABLE, compiled


def brief(path: Path, source: str) -> Brief:
    target = Target("t", path.stem, "cuda", (Workload({"R": 1}, "fp16"),), 0.5, 20.0, 1.0)
    return Brief(target, source, None, (), {}, 0)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_recipe_edits_starters_once_and_nothing_else(recipe: Recipe) -> None:
    sources = {path: path.read_text() for path in PORTABLE}
    edited = {path: recipe.apply(source, brief(path, source)) for path, source in sources.items()}
    assert any(edited.values())
    for path, after in edited.items():
        if after is not None:
            ast.parse(after)
            assert BACKEND.check(ast.parse(after)) is None
            assert recipe.apply(after, brief(path, after)) is None, "it applies to its own result"
    bare = 'KERNEL_TYPE = "softmax"\n\n\ndef kernel_fn(x):\n    return x\n'
    assert recipe.apply(bare, brief(PORTABLE[0], bare)) is None


@pytest.mark.skipif(cuda._nvcc() is None, reason="no nvcc")
@pytest.mark.parametrize("name", ["rmsnorm", *(["matmul", "cross_entropy"] if ALL else [])])
def test_all_recipes_together_still_compile(name: str, tmp_path: Path) -> None:
    path = FOLDER / f"{name}.py"
    source = path.read_text()
    for recipe in RECIPES:
        source = recipe.apply(source, brief(path, source)) or source
    assert compiled(source, "90a", tmp_path, clean=False)
