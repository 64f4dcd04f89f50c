"""Opening a workspace: what is refused before anything is written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from scripted_night import TARGETS, Watcher, starters

from autokernel import modelref
from autokernel.run import session, workspace
from autokernel.run.events import ProfileProgress
from autokernel.run.session import RunOptions
from autokernel.types import AutokernelError

MODEL = """
import torch
from torch import nn


class Model(nn.Module):
    def forward(self, x):
        return torch.softmax(x, dim=-1)


def get_inputs():
    return [torch.randn(512, 1024)]


def get_init_inputs():
    return []
"""


@pytest.fixture
def model(tmp_path) -> Path:
    path = tmp_path / "tiny.py"
    path.write_text(MODEL)
    return path


def start(model: Path, watcher: Watcher | None = None, **options):
    return session.start(RunOptions(model, results_dir=model.parent / "results", **options), watcher or Watcher())


def old_run(folder: Path, model: Path, /, **changes) -> None:
    """A workspace as an earlier invocation left it, before its first experiment."""
    facts = {"model": str(model), "model_sha256": modelref.digest(model), "device": "cpu", "dtype": "fp32"}
    facts |= {"backend": "cpp", "settings": {}} | changes
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"version": 1, **facts}))
    (folder / "profile.json").write_text(json.dumps({"targets": [t.to_json() for t in TARGETS]}))
    (folder / "kernels").mkdir()
    for path, source in starters().items():
        (folder / path).write_text(source)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"proposer": "playbok"}, "did you mean 'playbook'"),
        ({"strategy": "gredy"}, "did you mean 'greedy'"),
        ({"backend": "cp"}, "did you mean 'cpp'"),
        ({"name": "../elsewhere"}, "the name of one folder"),
        ({"name": ".."}, "the name of one folder"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(model, options, told):
    with pytest.raises(AutokernelError, match=told):
        start(model, **options)
    assert not (model.parent / "results").exists()


def test_a_machine_without_a_compiler_is_told_what_to_install(model, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(AutokernelError, match=r"compiler .* is missing: apt-get install"):
        start(model)
    assert not (model.parent / "results").exists()


def test_a_missing_model_is_told(tmp_path):
    with pytest.raises(AutokernelError, match="a model file was expected"):
        start(tmp_path / "absent.py")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"device": "cuda"}, "is a run of device cuda"),
        ({"dtype": "bf16"}, "is a run of dtype bf16"),
        ({"settings": {"size": "7b"}}, "is a run of settings"),
        ({"autocast": "bf16"}, "is a run of autocast bf16; this command is for none"),
        ({"model_sha256": "0", "model": "other.py"}, "is a run of model other.py"),
        ({"model_sha256": "0"}, "as it is now"),
        ({"version": 99}, "version 1 was expected"),
    ],
)
def test_the_workspace_of_another_run_is_refused(model, changes, told):
    folder = model.parent / "results" / "tiny-cpu"
    old_run(folder, model, **changes)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(AutokernelError, match=told) as refusal:
        start(model)
    assert "--fresh" in str(refusal.value)
    after = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert {p: data for p, data in after.items() if p.name != "lock"} == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 1'])
def test_a_broken_settings_file_is_one_line(model, content):
    folder = model.parent / "results" / "tiny-cpu"
    old_run(folder, model)
    (folder / "run.json").write_text(content)
    with pytest.raises(AutokernelError, match=r"run\.json") as refusal:
        start(model)
    assert "\n" not in str(refusal.value)


def test_a_folder_that_is_no_workspace_is_left_alone(model):
    folder = model.parent / "results" / "tiny-cpu"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(AutokernelError, match="is not a workspace"):
        start(model)
    assert (folder / "thesis.tex").read_text() == "precious" and not (folder / "run.json").exists()


def test_a_kernel_file_that_is_missing_is_told(model):
    folder = model.parent / "results" / "tiny-cpu"
    old_run(folder, model)
    (folder / TARGETS[0].file).unlink()
    with pytest.raises(AutokernelError, match="a kernel file for each target"):
        start(model)


def test_names_of_runs(tmp_path):
    folder_of = workspace.folder_of
    assert folder_of(tmp_path, Path("a/llama.py"), "cuda:1", None, False) == tmp_path / "llama-cuda1"
    assert folder_of(tmp_path, Path("llama.py"), "cpu", "mine", True) == tmp_path / "mine"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine-2").mkdir()
    assert folder_of(tmp_path, Path("llama.py"), "cpu", "mine", True) == tmp_path / "mine-3"
    assert folder_of(tmp_path, Path("llama.py"), "cpu", "mine", False) == tmp_path / "mine"


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ('import sys; print(\'{"event": "error", "message": "no class Model"}\'); sys.exit(2)', "no class Model"),
        ("import sys; sys.stderr.write('boom'); sys.exit(3)", "status 3: boom"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "status -11"),
    ],
)
def test_a_profiler_that_fails_says_why(tmp_path, script, told):
    with pytest.raises(AutokernelError, match=told):
        workspace.work([sys.executable, "-c", script], tmp_path, lambda event: None)


def test_what_a_model_prints_is_not_taken_for_progress(tmp_path):
    script = 'print(\'hello\'); print(\'[1]\'); print(\'{"event": "time", "message": "m", "done": 1, "of": 2}\')'
    events: list[ProfileProgress] = []
    workspace.work([sys.executable, "-c", script], tmp_path, events.append)
    assert events == [ProfileProgress("time", "m", 1, 2)]
