"""benchmarks/playbook.py without its nights: the files that it starts from, the table, and work spread over GPUs."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

from autokernel import kernelfile
from autokernel.proposers import _tune

FOLDER = Path(__file__).parents[1] / "benchmarks"
KEPT = {"idea": "tier 1: LANES 8 -> 16", "speedup": 1.25, "ci_low": 1.2, "ci_high": 1.3}
MEASURED = {"starter_vs_best": 1.0, "vs_best": 1.5, "latency_us": 10.0, "tried": 4}
ROWS = [
    {"case": "softmax 512x512", "backend": "cpp", **MEASURED, "kept": [KEPT, {**KEPT, "speedup": 1.2}]},
    {"case": "reduce 4096x1024", "backend": "cpp", **MEASURED, "kept": []},
    {"case": "matmul 512x768x768", "backend": "cpp", "failed": "init ended with 1: no compiler"},
]


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def playbook(benchmarks: None) -> ModuleType:
    return importlib.import_module("playbook")


def test_a_night_begins_with_the_starter_and_the_calls_of_its_case(playbook: ModuleType, tmp_path: Path) -> None:
    shipped, untuned = (playbook.nights("cpu", ["cpp"], ["softmax"], flag)[0] for flag in (False, True))
    (tmp_path / "kernel.py").write_text(shipped.source("fp32"))
    kernel = kernelfile.read(tmp_path / "kernel.py")
    assert (kernel.problem, kernel.backend) == ("softmax", "cpp")
    assert [(work.dims, work.dtype) for work in kernel.workloads] == [({"R": 512, "C": 512}, "fp32")]
    before, after = (_tune.constants(each.source("fp32")) for each in (shipped, untuned))
    assert [c.value for c in before] == [c.value for c in _tune.constants(shipped.path.read_text())]
    assert [c.value for c in after] == [c.choices[0] for c in before] != [c.value for c in before]


def test_without_a_choice_there_is_a_night_for_each_problem(playbook: ModuleType) -> None:
    nights = playbook.nights("cpu", ["cpp", "triton"], [], False)
    names = [night.name for night in nights]
    assert len(names) == len(set(names)) and {"softmax 512x512, cpp", "softmax 512x512, triton"} <= set(names)
    assert len({(night.case.problem, night.backend) for night in nights}) == len(nights)


def test_the_table_has_every_kept_change_and_every_run_that_failed(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"rows": ROWS}))
    command = [sys.executable, str(FOLDER / "playbook.py"), "--show", str(path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    improved, same, failed = printed[2:5]
    assert (
        "| 1.00 | 1.50 |" in improved and improved.count("LANES 8 -> 16") == 2 and "1.250x [1.200, 1.300]" in improved
    )
    assert same.endswith("| 10.0 | nothing |")
    assert "no compiler" in failed
    assert printed[-1] == "1 of 2 starters improved, 8 experiments"


def test_each_piece_has_one_gpu_and_its_share_of_the_processors(benchmarks: None) -> None:
    gpus = importlib.import_module("gpus")
    told = "import os; print(os.environ.get('CUDA_VISIBLE_DEVICES', '-'), *sorted(os.sched_getaffinity(0)))"

    def work(piece: int, environment: Mapping[str, str]) -> tuple[int, list[str]]:
        command = [sys.executable, "-c", told]
        done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=True)
        return piece, done.stdout.split()

    found = dict(gpus.spread(range(6), ["3", "5"], work))
    assert sorted(found) == list(range(6)) and {seen[0] for seen in found.values()} == {"3", "5"}
    shares = {frozenset(seen[1:]) for seen in found.values()}
    assert len(shares) == 1 or not frozenset.intersection(*shares)
    alone = dict(gpus.spread([1], [], work))
    assert alone[1][0] == "-" and len(alone[1][1:]) >= max(map(len, shares))


def test_rows_are_in_the_order_of_their_pieces_and_written_as_they_come(benchmarks: None, tmp_path: Path) -> None:
    gpus = importlib.import_module("gpus")
    path, written = tmp_path / "rows.json", []

    def work(piece: int, environment: Mapping[str, str]) -> dict[str, int]:
        time.sleep(0.2 * (piece == 0))
        return {"piece": piece}

    def say(row: dict[str, int]) -> str:
        written.append([each["piece"] for each in json.loads(path.read_text())["rows"]] if path.exists() else [])
        return str(row["piece"])

    found = gpus.rows(range(4), ["0", "1"], work, {"machine": "this"}, path, say)
    assert [row["piece"] for row in found] == [0, 1, 2, 3]
    assert json.loads(path.read_text()) == {"machine": "this", "rows": found}
    assert [len(each) for each in written] == [0, 1, 2, 3] and all(each == sorted(each) for each in written)


def test_a_piece_that_fails_is_told_and_what_waits_does_not_begin(benchmarks: None) -> None:
    gpus = importlib.import_module("gpus")
    begun: list[int] = []

    def work(piece: int, environment: Mapping[str, str]) -> int:
        begun.append(piece)
        time.sleep(0.05 * piece)
        return 1 // piece

    with pytest.raises(ZeroDivisionError):
        list(gpus.spread([0, *range(1, 60)], [], work))
    assert begun[0] == 0 and len(begun) < 50
