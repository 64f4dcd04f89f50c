"""Structural recipes: edits that apply to any kernel file of a backend in which their pattern is found.

``<backend>_recipes.py`` defines ``RECIPES``. A recipe knows nothing of the kernel: whether its edit is right and
faster is for the judge to say.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Sequence

from autokernel.extension import Brief


@dataclasses.dataclass(frozen=True)
class Recipe:
    """``apply(source, brief)`` gives the edited file, or None where the pattern is not there or cannot matter.

    ``worth`` orders recipes, the most promising first; ``why`` completes "tier 2: <name>: <why>".
    """

    name: str
    why: str
    worth: float
    apply: Callable[[str, Brief], str | None]


def recipes(backend: str) -> Sequence[Recipe]:
    """The recipes for files of this backend, the most promising first; none for a backend without any."""
    name = f"{__name__}.{backend}_recipes"
    if not backend.isidentifier() or importlib.util.find_spec(name) is None:
        return ()
    found: Sequence[Recipe] = importlib.import_module(name).RECIPES
    return sorted(found, key=lambda recipe: -recipe.worth)
