"""The proof of a run on its model: right outputs, engaged kernels, whole forwards against each other; an honest no."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from autokernel.engage import verifier
from autokernel.engage.outputs import Judge, compare
from autokernel.engage.verify import QUICK, Verifier
from autokernel.engage.won import read
from autokernel.regions.model import LoadedModel

WRONG = "\n\n_right = kernel_fn\n\n\ndef kernel_fn(*inputs, **scalars):\n    return _right(*inputs, **scalars) * 1.01\n"
SLOW = (
    "\n\n_fast = kernel_fn\n\n\ndef kernel_fn(*inputs, **scalars):\n"
    "    for _ in range(50):\n        out = _fast(*inputs, **scalars)\n    return out\n"
)


def edit(run: Path, target: str, more: str) -> None:
    """Another version of a kernel, with a verdict that says it stands."""
    file = run / "kernels" / f"{target}.py"
    judged = next(p for p in run.glob("experiments/*/candidate.py") if p.read_bytes() == file.read_bytes())
    file.write_text(file.read_text() + more)
    judged.write_text(file.read_text())


def test_outputs_engagement_and_times_are_told(own_run: Path) -> None:
    assert verifier.main(["--run", str(own_run), "--mode", "ours", "--quick"]) == 0
    found = json.loads((own_run / "verification.json").read_text())
    assert found["outputs"]["ours"]["passed"] and found["outputs"]["ours"]["error"] < 1e-5
    steps = {step["target"]: step for step in found["steps"]["ours"]}
    assert {name: step["regions"] for name, step in steps.items()} == {
        "rmsnorm": 4, "fused_mlp": 2, "flash_attention": 2, "matmul": 4,
    }  # fmt: skip
    assert all(step["calls_a_forward"] == step["regions"] for step in steps.values())
    assert all(step["applied"] == (step["gain"]["low"] > 1) for step in steps.values())
    assert set(found["forward_us"]) == {"eager", "compile", "ours"}
    assert all(len(samples) >= QUICK.last_blocks and min(samples) > 0 for samples in found["samples_us"].values())
    assert found["speedup"]["ours"]["eager"]["low"] <= found["speedup"]["ours"]["eager"]["high"]


def test_a_kernel_that_is_wrong_or_slow_is_left_out(own_run: Path, decoder: LoadedModel) -> None:
    edit(own_run, "rmsnorm", WRONG)
    edit(own_run, "fused_mlp", SLOW)
    steps = {
        step.target: step for step in Verifier(decoder, read(own_run), effort=QUICK).verify(["ours"]).steps["ours"]
    }
    assert not steps["rmsnorm"].applied and steps["rmsnorm"].reason.startswith("breaks the outputs: output 0")
    assert not steps["fused_mlp"].applied and steps["fused_mlp"].reason == "not shown to pay end to end"
    gain = steps["fused_mlp"].gain
    assert gain is not None and gain.high < 0


def test_diagnosis_names_the_kernel_that_breaks_the_outputs(own_run: Path) -> None:
    edit(own_run, "matmul", WRONG)
    assert verifier.main(["--run", str(own_run), "--diagnose"]) == 0
    alone = json.loads((own_run / "diagnosis.json").read_text())["alone"]
    assert {name for name, agreement in alone.items() if not agreement["passed"]} == {"matmul"}


def test_a_gradient_that_is_cut_is_found(torch_run: Path, decoder: LoadedModel) -> None:
    decoder = dataclasses.replace(decoder, train=True)
    judge = Judge(decoder, [1])
    assert judge.agreement(Verifier(decoder, read(torch_run)).variant(read(torch_run).won, "ours")[0]).passed

    def detached(x: torch.Tensor) -> torch.Tensor:
        blocks, scale = decoder.module.get_submodule("blocks"), decoder.module.get_buffer("scale")
        first, second = blocks.children()
        return second(first(x).detach()) * scale

    found = judge.agreement(detached)
    assert not found.passed and any("blocks.0" in name for name in found.missing)


def test_what_no_region_asks_for_is_said(own_run: Path, decoder: LoadedModel) -> None:
    profile = json.loads((own_run / "profile.json").read_text())
    for target in profile["targets"]:
        for work in target["workloads"]:
            work["dims"] = {name: size + 1 for name, size in work["dims"].items()}
    (own_run / "profile.json").write_text(json.dumps(profile))
    for step in Verifier(decoder, read(own_run), effort=QUICK).verify(["ours"]).steps["ours"]:
        assert not step.applied and step.reason.startswith("not engaged: won for other calls than")


@pytest.mark.parametrize(
    ("found", "passed"),
    [
        (torch.tensor([1.0, 2.0]), True),
        (torch.tensor([1.0, 2.1]), False),
        (torch.tensor([1.0, float("nan")]), False),
        (torch.tensor([1.0, 2.0], dtype=torch.float16), False),
        (torch.tensor([[1.0, 2.0]]), False),
    ],
)
def test_agreement_by_value_dtype_and_shape(found: torch.Tensor, passed: bool) -> None:
    original = {"output 0": torch.tensor([1.0, 2.0])}
    assert compare({"output 0": found}, original, {"output 0": torch.tensor([1.0, 2.0]).double()}).passed is passed
