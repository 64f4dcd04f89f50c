"""Mixed candidates in a row: no growth of memory, descriptors, processes or files. 500 of them:
``python benchmarks/endurance.py``.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "endurance.py"


@pytest.fixture(scope="module")
def endurance() -> ModuleType:
    spec = importlib.util.spec_from_file_location("endurance", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["endurance"] = module
    spec.loader.exec_module(module)
    return module


def test_the_judge_does_not_wear_out(endurance: ModuleType) -> None:
    rows, wrong = endurance.endure(count=27, every=27)
    assert wrong == []
    assert len(rows) == 2
    assert endurance.growth(rows) == []


def test_growth_is_seen(endurance: ModuleType) -> None:
    before = {"candidates": 0, "judge MiB": 400, "judge fds": 20, "processes": 2, "entries": 3, "shm": 0}
    after = {"candidates": 99, "judge MiB": 500, "judge fds": 23, "processes": 3, "entries": 4, "shm": 1}
    assert len(endurance.growth([before, after])) == 5
    assert endurance.growth([before, {**before, "candidates": 99}]) == []
