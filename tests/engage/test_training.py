"""Won kernels in training: the gradient of every parameter is there and right, and whole steps are timed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import autokernel
from autokernel.assets import models
from autokernel.engage import verifier
from autokernel.engage.outputs import Judge
from autokernel.regions import worker
from autokernel.regions.loss import loss_of
from autokernel.regions.model import LoadedModel, load

from .conftest import MODEL, write_rows

LLAMA = next(path for path in models() if path.stem == "llama")
SETTINGS = {"size": "tiny", "seq": "16"}


@pytest.fixture(scope="module")
def llama_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str | None], Path]:
    """A run of the smallest Llama whose starters, in plain PyTorch, all won; with autocast or without."""
    made: dict[str | None, Path] = {}

    def make(autocast: str | None) -> Path:
        if autocast not in made:
            folder = tmp_path_factory.mktemp("won") / f"llama-{autocast}"
            arguments = [
                "--model",
                str(LLAMA),
                "--backend",
                "torch",
                "--out",
                str(folder),
                "--warmup",
                "0",
                "--iters",
                "1",
            ]
            arguments += [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
            assert worker.main([*arguments, *(["--autocast", autocast] if autocast else [])]) == 0
            write_rows(folder)
            made[autocast] = folder
        return made[autocast]

    return make


def gradients(model: LoadedModel) -> dict[str, torch.Tensor]:
    model.module.zero_grad()
    torch.autograd.backward(loss_of(model.forward()))
    return {name: p.grad.clone() for name, p in model.module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("autocast", [None, "bf16"])
def test_every_gradient_of_a_llama_is_there_and_right(
    llama_run: Callable[[str | None], Path], autocast: str | None
) -> None:
    torch._dynamo.reset()
    model = load(LLAMA, "cpu", "fp32", SETTINGS, train=True, autocast=autocast)  # type: ignore[arg-type]
    judge, expected = Judge(model, [1, 2]), gradients(model)
    assert set(expected) == {name for name, _ in model.module.named_parameters()}
    autokernel.apply(model.module, llama_run(autocast))
    found = gradients(model)
    engaged = autokernel.engagement(model.module)
    for name in ("matmul", "rmsnorm", "fused_mlp", "flash_attention"):
        assert engaged[name].calls == engaged[name].regions > 0 and not engaged[name].refused, name
    assert set(found) == set(expected)
    close = 1e-4 if autocast is None else 5e-2
    for name, gradient in found.items():
        scale = float(expected[name].norm())
        assert scale > 0 and float((gradient - expected[name]).norm()) <= close * scale, name
    agreement = judge.agreement(model.module)  # the same against float64: outputs, and the gradient of each parameter
    assert agreement.passed, agreement


def test_a_kernel_never_runs_under_autocast(llama_run: Callable[[str | None], Path], tmp_path: Path) -> None:
    """No verdict was reached so, and a kernel in plain PyTorch would give other numbers there."""
    run = Path(shutil.copytree(llama_run("bf16"), tmp_path / "run"))
    file = run / "kernels" / "matmul.py"
    judged = next(p for p in run.glob("experiments/*/candidate.py") if p.read_bytes() == file.read_bytes())
    guarded = '    assert not torch.is_autocast_enabled("cpu")\n    return _plain(A, B)\n'
    file.write_text(f"{file.read_text()}\n\n_plain = kernel_fn\n\n\ndef kernel_fn(A, B):\n{guarded}")
    shutil.copyfile(file, judged)
    for train in (False, True):
        torch._dynamo.reset()
        model = load(LLAMA, "cpu", "fp32", SETTINGS, train=train, autocast="bf16")
        autokernel.apply(model.module, run, kernels=["matmul"])
        model.step()
        assert autokernel.engagement(model.module)["matmul"].calls == 9  # q, k, v and o of two layers, and the head
        autokernel.restore(model.module)


def test_a_few_steps_of_an_optimizer_end_where_the_originals_end(llama_run: Callable[[str | None], Path]) -> None:
    def trained(run: Path | None) -> dict[str, torch.Tensor]:
        torch._dynamo.reset()
        model = load(LLAMA, "cpu", "fp32", SETTINGS, train=True)
        if run is not None:
            autokernel.apply(model.module, run)
        optimizer = torch.optim.SGD(model.module.parameters(), lr=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            torch.autograd.backward(loss_of(model.forward()))
            optimizer.step()
        return model.module.state_dict()

    before = load(LLAMA, "cpu", "fp32", SETTINGS).module.state_dict()
    ours, theirs = trained(llama_run(None)), trained(None)
    for name, value in theirs.items():
        moved = (value - before[name]).norm()
        assert moved > 0 and (ours[name] - value).norm() <= 1e-3 * moved, name


def test_verify_for_training_compares_gradients_and_times_steps(own_run: Path) -> None:
    assert verifier.main(["--run", str(own_run), "--train", "--mode", "ours", "--quick"]) == 0
    found = json.loads((own_run / "verification.json").read_text())
    assert found["train"] and found["projection"] == {} and found["outputs"]["ours"]["passed"]
    assert all(step["calls_a_forward"] == step["regions"] for step in found["steps"]["ours"])


def test_a_run_under_autocast_is_verified_under_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["--model", str(MODEL), "--backend", "torch", "--out", str(folder), "--warmup", "0", "--iters", "1"]
    assert worker.main([*arguments, "--autocast", "bf16"]) == 0
    write_rows(folder)
    assert verifier.main(["--run", str(folder), "--diagnose"]) == 0
    found = json.loads((folder / "diagnosis.json").read_text())
    assert found["autocast"] == "bf16" and set(found["alone"]) >= {"rmsnorm", "fused_mlp", "flash_attention", "matmul"}
    for agreement in found["alone"].values():
        assert agreement["passed"] and agreement["original_error"] > 1e-4  # of bfloat16, against float64
