"""Several input sets, models that cannot be captured, levers, and the files for a closer look: through the worker."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from autokernel.commands.model import lever_lines
from autokernel.regions import levers, rank, recorded, sets, worker
from autokernel.regions.levers import Lever
from autokernel.regions.model import load
from autokernel.types import AutokernelError

FILES = Path(__file__).parent.parent / "models"


def profiled(name: str, out: Path, *arguments: str) -> dict[str, Any]:
    common = ["--model", str(FILES / name), "--out", str(out), "--warmup", "0", "--iters", "2", "--backend", "torch"]
    assert worker.main([*common, *arguments]) == 0
    found: dict[str, Any] = json.loads((out / "profile.json").read_text())
    return found


@pytest.mark.parametrize(
    ("weights", "forwards"),
    [
        ((1,), (1,)),
        ((0.7, 0.3), (7, 3)),
        ((2, 2), (1, 1)),
        ((3, 1), (3, 1)),
        ((1, 0.333), (3, 1)),
        ((1, 1e-6), (100, 1)),
    ],
)
def test_weights_become_whole_forwards(weights: tuple[float, ...], forwards: tuple[int, ...]) -> None:
    assert sets.rounds(weights) == forwards


def test_each_set_is_captured_and_counted_by_its_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank, "LEAST_SHARE", 0.0)  # on a busy machine one stall makes the others' share small
    profile = profiled("two_sets.py", tmp_path)
    assert profile["round"] == [3, 1]
    for target in profile["targets"]:
        counts = {w["dims"]["R"]: w["count"] for w in target["workloads"]}
        assert counts == {128: 3, 8: 1}, target["name"]
    assert {row["calls"] for row in profile["rows"] if row["problem"]} == {4}
    assert sum(row["time_us"] for row in profile["rows"]) == pytest.approx(profile["attributed_us"])
    assert sum(row["share"] for row in profile["rows"]) == pytest.approx(1)


def test_seeds_draw_from_all_sets_the_most_frequent_first() -> None:
    model = load(FILES / "two_sets.py", "cpu", "fp32")
    assert model.inputs[0].shape == (128, 64)
    assert [model.make_inputs(seed)[0].shape[0] for seed in (0, 1, 2)] == [128, 8, 128]
    assert not torch.equal(model.make_inputs(0)[0], model.make_inputs(2)[0])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("[]", "it returned an empty one"),
        ("3", "it returned int"),
        ("[torch.ones(2)]", "entry 1 is no pair"),
        ("[(1, [torch.ones(2)]), (0, [torch.ones(3)])]", "that of entry 2 is 0"),
        ("[(1, torch.ones(2))]", "entry 1 of get_input_sets.. was expected to return a list; it returned Tensor"),
    ],
)
def test_sets_that_are_none(tmp_path: Path, returned: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        f"import torch\nclass Model(torch.nn.Identity): pass\ndef get_input_sets():\n    return {returned}\n"
    )
    with pytest.raises(AutokernelError, match=message):
        load(path, "cpu", "fp32")


def test_a_model_that_cannot_be_traced_has_a_profile_of_its_operations(tmp_path: Path) -> None:
    profile = profiled("untraceable.py", tmp_path, "--trace", str(tmp_path / "trace.json"))
    assert profile["targets"] == []
    assert {"aten::linear", "aten::softmax", "autokernel_tests::doubled"} <= {row["name"] for row in profile["rows"]}
    assert sum(row["share"] for row in profile["rows"]) == pytest.approx(1)
    (note,) = profile["notes"]
    assert "torch.compile cannot trace it" in note
    assert note.endswith("operations only, no region was looked for")
    assert (tmp_path / "trace.json").is_file()


def test_levers_are_measured_and_kept(tmp_path: Path) -> None:
    profile = profiled("softmax_only.py", tmp_path, "--levers-s", "60")
    found = {lever["name"]: lever for lever in profile["levers"]}
    assert list(found) == ["torch.compile", "bf16 autocast"]
    for lever in found.values():
        assert lever["low"] <= lever["speedup"] <= lever["high"], lever


def test_attention_backends_are_tried_where_there_is_attention() -> None:
    model = load(FILES / "small_decoder.py", "cpu", "bf16")
    measured = sets.measure(model, 0, 1, None, lambda *_: None)
    assert measured.attention
    named = [(name, kind) for name, kind, _ in levers._levers(model, measured.attention)]
    assert named == [("torch.compile", "compile"), ("flash", "attention"), ("math", "attention")]


def test_a_lever_that_takes_too_long_or_fails_is_skipped_with_a_word() -> None:
    model = load(FILES / "untraceable.py", "cpu", "fp32")
    steps: list[str] = []

    def slow() -> Any:
        time.sleep(30)

    late = levers._try(model, "slow", "compile", slow, 0.05, steps.append)
    assert (late.speedup, late.skipped) == (None, "not done after 0.05 s")
    failed = levers._try(model, "torch.compile", "compile", lambda: torch.compile(model.module), 60, steps.append)
    assert failed.speedup is None
    assert "TorchRuntimeError" in failed.skipped
    assert steps == ["slow", "torch.compile"]


def test_what_is_said_of_levers() -> None:
    found = [
        Lever("torch.compile", "compile", 1.34, 1.30, 1.38),
        Lever("flash", "attention", skipped="RuntimeError: none"),
        Lever("math", "attention", 0.8, 0.7, 0.9),
    ]
    assert lever_lines([vars(lever) for lever in found]) == [
        "before any kernel: torch.compile alone: 1.34x [1.30, 1.38]",
        "attention backends: flash skipped (RuntimeError: none); math: 0.80x [0.70, 0.90]",
    ]
    assert lever_lines([]) == []


def test_the_compile_log_has_breaks_with_their_lines_and_recompilations(tmp_path: Path) -> None:
    recorded.compile_log(load(FILES / "graph_break.py", "cpu", "fp32"), tmp_path / "breaks.log")
    text = (tmp_path / "breaks.log").read_text()
    assert "--- graph break 1" in text
    assert "graph_break.py" in text
    recorded.compile_log(load(FILES / "two_sets.py", "cpu", "fp32"), tmp_path / "sets.log")
    text = (tmp_path / "sets.log").read_text()
    assert "0 graph break(s), 1 recompilation(s)" in text
    assert "--- recompilation 1" in text
    assert "128" in text


def test_a_memory_snapshot_needs_a_gpu(tmp_path: Path) -> None:
    options = [
        "--model",
        str(FILES / "softmax_only.py"),
        "--out",
        str(tmp_path),
        "--memory",
        str(tmp_path / "m.pickle"),
    ]
    with pytest.raises(AutokernelError, match="--memory was expected with --device cuda"):
        worker.run(worker._parse(options), lambda *_: None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_waiting_is_part_of_the_forward(tmp_path: Path) -> None:
    profile = profiled(
        "small_decoder.py", tmp_path, "--device", "cuda", "--memory", str(tmp_path / "m.pickle"), "--levers-s", "120"
    )
    assert profile["waiting"]["launches"] > 0
    assert {"(launch overhead)", "(idle GPU)"} <= {row["name"] for row in profile["rows"]}
    assert sum(row["share"] for row in profile["rows"]) == pytest.approx(1)
    assert (tmp_path / "m.pickle").stat().st_size > 0
    assert 'torch.compile(mode="reduce-overhead")' in {lever["name"] for lever in profile["levers"]}
