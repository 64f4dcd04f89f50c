"""What counts as growth of the judge. Mixed candidates in a row, and whether it grew: ``make endurance``."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from autokernel import runfile

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "endurance.py"


@pytest.fixture(scope="module")
def endurance() -> ModuleType:
    return runfile.run(SCRIPT, "endurance")


def test_growth_is_seen(endurance: ModuleType) -> None:
    before = {"candidates": 0, "judge MiB": 400, "judge fds": 20, "processes": 2, "entries": 3, "shm": 0}
    after = {"candidates": 99, "judge MiB": 500, "judge fds": 23, "processes": 3, "entries": 4, "shm": 1}
    assert len(endurance.growth([before, after])) == 5
    assert endurance.growth([before, {**before, "candidates": 99}]) == []
