"""The table of benchmarks/table4.py: what each row is measured against, and that tables of older runs can be shown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "table4.py"
ROW = {"problem": "softmax", "failed": {}, "best_rival": "eager", "ours": "cpp", "ratio": 2.0}
TIMES = {"times_us": {"eager": 20.0, "cpp": 10.0}}
OLDER = {"case": "older", **ROW, **TIMES, "floor_us": 5.0, "of_floor": 0.5}
BY_MEMORY = {"case": "by memory", **ROW, **TIMES, "copy_us": 8.0, "of_copy": 0.8}
BY_ARITHMETIC = {"case": "by arithmetic", **ROW, **TIMES, "floor_us": 6.0, "of_floor": 0.6}


def shown(folder: Path, *rows: dict[str, object]) -> list[list[str]]:
    """The cells of each line of the table that ``--show`` prints."""
    path = folder / "run.json"
    path.write_text(json.dumps({"machine": {"name": "here"}, "dtype": "fp32", "time": "now", "rows": rows}))
    command = [sys.executable, str(SCRIPT), "--show", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]


def test_a_row_is_shown_against_what_bounds_it(tmp_path: Path) -> None:
    head, memory, arithmetic = shown(tmp_path, BY_MEMORY, BY_ARITHMETIC)
    assert head[-4:] == ["copy", "of copy", "floor", "of floor"]
    assert memory[-4:] == ["8.0", "0.80", "–", "–"]
    assert arithmetic[-4:] == ["–", "–", "6.0", "0.60"]


def test_an_older_run_keeps_its_floors(tmp_path: Path) -> None:
    head, row = shown(tmp_path, OLDER)
    assert head[-2:] == ["floor", "of floor"] and "copy" not in head
    assert row == ["older", "20.0", "10.0", "2.00", "5.0", "0.50"]
