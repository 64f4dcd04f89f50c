"""A model file loads, or one message says what was expected, what came, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autokernel.assets import models
from autokernel.regions.model import load
from autokernel.types import AutokernelError

FILES = Path(__file__).parent.parent / "models"
GOOD = "import torch\nclass Model(torch.nn.Linear): pass\n"


def refused(tmp_path: Path, source: str | None, **settings: str) -> str:
    path = tmp_path / "mine.py"
    if source is not None:
        path.write_text(source)
    with pytest.raises(AutokernelError) as caught:
        load(path, "cpu", "fp32", settings)
    return str(caught.value)


@pytest.mark.parametrize("path", [FILES / "softmax_only.py", FILES / "graph_break.py"], ids=lambda p: p.stem)
def test_kernelbench_files_load_in_each_dtype(path: Path) -> None:
    loaded = load(path, "cpu", "bf16")
    assert loaded.inputs[0].dtype == torch.bfloat16
    assert not loaded.module.training
    assert loaded.forward().dtype == torch.bfloat16


def test_weights_and_inputs_are_the_same_each_time() -> None:
    first, second = (load(FILES / "graph_break.py", "cpu", "fp32") for _ in range(2))
    assert torch.equal(first.forward(), second.forward())


def test_missing_file(tmp_path: Path) -> None:
    assert "mine.py; there is none" in refused(tmp_path, None)


def test_syntax_error_names_its_line(tmp_path: Path) -> None:
    assert "mine.py:2: syntax error" in refused(tmp_path, "import torch\nclass Model(:\n")


@pytest.mark.parametrize("part", ["Model", "get_inputs"])
def test_missing_part(tmp_path: Path, part: str) -> None:
    source = GOOD if part == "get_inputs" else "def get_inputs():\n    return []\n"
    assert f"it has no {part}" in refused(tmp_path, source)


def test_constructor_that_raises_shows_the_users_line(tmp_path: Path) -> None:
    source = "import torch\nclass Model(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    message = refused(tmp_path, source + "        self.n = 1 / 0\ndef get_inputs():\n    return []\n")
    assert "constructor of Model raised ZeroDivisionError" in message
    assert "mine.py:5 in __init__: self.n = 1 / 0" in message


def test_forward_that_raises_shows_only_the_users_frames() -> None:
    with pytest.raises(AutokernelError) as caught:
        load(FILES / "broken_forward.py", "cpu", "fp32")
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("Model.forward raised RuntimeError")
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["broken_forward.py"] * 2
    assert lines[-1].endswith("return x @ torch.ones(3, 3)")


def test_settings_are_converted_and_unknown_ones_are_named() -> None:
    template = next(p for p in models() if p.stem == "template")
    assert load(template, "cpu", "fp32", {"batch": "3"}).inputs[0].shape[0] == 3
    with pytest.raises(AutokernelError, match="no setting 'sise': it has: batch, features"):
        load(template, "cpu", "fp32", {"sise": "7b"})
    with pytest.raises(AutokernelError, match="batch was expected to be a whole number; got 'many'"):
        load(template, "cpu", "fp32", {"batch": "many"})
    with pytest.raises(AutokernelError, match="it takes none"):
        load(FILES / "softmax_only.py", "cpu", "fp32", {"size": "7b"})


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_a_models_unknown_size_lists_those_it_has(name: str) -> None:
    path = next(p for p in models() if p.stem == name)
    with pytest.raises(AutokernelError, match=r"size was expected to be one of .*; got 9b"):
        load(path, "cpu", "fp32", {"size": "9b"})


def test_unknown_device() -> None:
    with pytest.raises(AutokernelError, match="got 'gpu'"):
        load(FILES / "softmax_only.py", "gpu", "fp32")
