"""Kernels of regions that no built-in problem covers, back in their model: written, judged, and put in place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import autokernel
from autokernel import kernelfile
from autokernel.engage.export import export
from autokernel.evaluate.client import Assignment, JudgeClient
from autokernel.regions.model import LoadedModel, load
from autokernel.types import Status, Target, is_file

MODEL = Path(__file__).parent.parent / "models" / "uncovered.py"


@pytest.fixture(scope="module")
def run(run_of: Callable[..., Path]) -> Path:
    return run_of("cpp", MODEL)


@pytest.fixture
def loaded() -> Iterator[LoadedModel]:
    torch._dynamo.reset()
    yield load(MODEL, "cpu", "fp32")


def own(run: Path) -> dict[str, Target]:
    """The targets that are problems of their own, their files below the run."""
    targets = [Target.from_json(t, run) for t in json.loads((run / "profile.json").read_text())["targets"]]
    return {t.name: t for t in targets if is_file(t.problem)}


def test_targets_name_their_files_relative_to_the_run(run: Path) -> None:
    data = json.loads((run / "profile.json").read_text())
    named = {t["name"]: t["problem"] for t in data["targets"] if is_file(t["problem"])}
    assert named and all(problem == f"context/{name}.py" for name, problem in named.items())
    rows = {row["name"]: row for row in data["rows"]}
    assert all(rows[name]["problem"] == name and rows[name]["kind"] == "region" for name in named)
    assert sum(row["share"] for row in data["rows"]) == pytest.approx(1)


def test_each_region_starts_in_its_language(run: Path) -> None:
    backends = {name: target.backend for name, target in own(run).items()}
    assert backends.pop("flip_cumsum", "torch") == "torch"
    assert len(backends) >= 2 and set(backends.values()) == {"cpp"}


def test_a_generated_starter_passes_the_judge_and_a_wrong_one_does_not(run: Path, tmp_path: Path) -> None:
    target = next(t for t in own(run).values() if "tanh" in t.name)
    source = (run / target.file).read_text()
    with JudgeClient(tmp_path / "scratch") as judge:
        verdict = judge.evaluate(Assignment(target, source, baselines=False)).verdict
        assert verdict.status is Status.PASS, verdict.reason
        assert "1e-05f" in source
        wrong = source.replace("1e-05f", "1e-03f")
        verdict = judge.evaluate(Assignment(target, wrong, baselines=False)).verdict
        assert verdict.status not in (Status.PASS, Status.BUILD, Status.POLICY), verdict.reason


def test_kernels_are_engaged_where_they_were_won(run: Path, loaded: LoadedModel) -> None:
    expected = loaded.forward()
    autokernel.apply(loaded.module, run, kernels=list(own(run)))
    for out, want in zip(loaded.forward(), expected, strict=True):
        assert torch.allclose(out, want, rtol=1e-4, atol=1e-4)
    engaged = autokernel.engagement(loaded.module)
    norm = next(name for name in engaged if "tanh" in name)
    assert engaged[norm].regions == 2  # both widths
    assert all(e.regions >= 1 and e.calls == e.regions and not e.refused for e in engaged.values())


def test_a_package_carries_their_code_as_the_reference(run: Path, tmp_path: Path) -> None:
    package = export(run, tmp_path / "package", "won_regions")
    names = {path.stem for path in (package / "reference").glob("*.py")} - {"__init__"}
    assert set(own(run)) <= names
    scope: dict[str, object] = {}
    norm = next(name for name in names if "tanh" in name)
    exec((package / "reference" / f"{norm}.py").read_text(), scope)
    assert scope["KERNEL_TYPE"] == norm and "autokernel" not in (package / "reference" / f"{norm}.py").read_text()


def test_extracted_files_are_judged_with_their_problem(run: Path, tmp_path: Path) -> None:
    """As `autokernel extract` lays them out, beside a folder context/, and as a run does."""
    name, target = next(iter(own(run).items()))
    assert kernelfile.read(run / target.file).problem == target.problem
    (tmp_path / "context").mkdir()
    shutil.copyfile(run / target.file, tmp_path / f"{name}.py")
    shutil.copyfile(target.problem, tmp_path / "context" / f"{name}.py")
    found = kernelfile.read(tmp_path / f"{name}.py")
    assert found.problem == str(tmp_path / "context" / f"{name}.py") and found.workloads == target.workloads


def test_a_run_is_found_under_another_name(run: Path, tmp_path: Path, loaded: LoadedModel) -> None:
    link = tmp_path / "elsewhere"
    link.symlink_to(run)
    for folder in (run, link, run):  # the same files as two runs: two operators, that must not be one another's
        autokernel.apply(loaded.module, folder, kernels=list(own(run)))
        loaded.module(*loaded.inputs)
        engaged = autokernel.engagement(loaded.module)
        assert all(e.regions and e.calls for e in engaged.values())
        autokernel.restore(loaded.module)


def test_gradients_go_through_such_a_kernel(run: Path, loaded: LoadedModel) -> None:
    def gradients() -> dict[str, torch.Tensor]:
        loaded.module.zero_grad()
        _, shares, _ = loaded.module(*loaded.inputs)
        (shares.square().sum()).backward()
        return {n: p.grad.clone() for n, p in loaded.module.named_parameters() if p.grad is not None}

    expected = gradients()
    autokernel.apply(loaded.module, run, kernels=list(own(run)))
    found = gradients()
    assert set(found) == set(expected) == {"temperature"}
    assert torch.allclose(found["temperature"], expected["temperature"], rtol=1e-4)
    assert any(e.calls for name, e in autokernel.engagement(loaded.module).items() if "softmax" in name)


def test_a_changed_program_runs_the_original_code(run: Path, tmp_path: Path) -> None:
    """The same model with another eps: its graph no longer holds what the kernels were won for."""
    other = tmp_path / "uncovered.py"
    other.write_text(MODEL.read_text().replace("1e-5)", "1e-3)"))
    torch._dynamo.reset()
    loaded = load(other, "cpu", "fp32")
    norm = next(name for name in own(run) if "tanh" in name)
    expected = loaded.forward()
    autokernel.apply(loaded.module, run, kernels=[norm])
    assert all(torch.equal(out, want) for out, want in zip(loaded.forward(), expected, strict=True))
    assert autokernel.engagement(loaded.module)[norm].regions == 0
