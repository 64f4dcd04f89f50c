"""Modes of a verification, CUDA graphs among them: who has which, what fails alone, and that replays are right."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx

import autokernel
from autokernel.commands.night import verify_winners
from autokernel.engage import verifier
from autokernel.engage.rewrite import Rewriter
from autokernel.engage.verify import QUICK, Failure, NotRecorded, Verifier
from autokernel.engage.won import read
from autokernel.regions import worker
from autokernel.regions.model import LoadedModel, load
from autokernel.run import history
from autokernel.types import AutokernelError

from .conftest import MODEL, write_rows


def test_the_cpu_has_none(torch_run: Path, decoder: LoadedModel) -> None:
    with pytest.raises(AutokernelError, match=r"made on cpu: take rest='inductor'"):
        autokernel.apply(decoder.module, torch_run, rest="graphs")
    with pytest.raises(AutokernelError, match="no kernels applied"):
        autokernel.engagement(decoder.module)
    compiled = torch.compile(decoder.module, backend="autokernel", options={"run": str(torch_run), "rest": "graphs"})
    with torch.no_grad(), pytest.raises(Exception, match="take rest='inductor'"):
        compiled(*decoder.inputs)


def test_what_runs_the_rest_is_a_closed_list(torch_run: Path, decoder: LoadedModel) -> None:
    with pytest.raises(AutokernelError, match="'eager', 'inductor', 'graphs'; got 'cudagraphs'"):
        autokernel.apply(decoder.module, torch_run, rest="cudagraphs")  # type: ignore[arg-type]


def test_a_mode_that_the_device_does_not_have_is_a_mistake(own_run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = load(MODEL, "cpu", "fp32")
    assert Verifier(model, read(own_run)).modes == ("ours", "ours+compile")
    assert verifier.main(["--run", str(own_run), "--mode", "ours+graphs", "--quick"]) == 2
    assert "'ours+graphs' needs a GPU" in "".join(capfd.readouterr())
    assert not (own_run / "verification.json").exists()


def test_parameters_stay_known_as_such(torch_run: Path, decoder: LoadedModel) -> None:
    """A graph copies at each replay what it does not know for a parameter: Inductor must be told as Dynamo told us."""
    seen: list[list[int]] = []
    rewriter = Rewriter(read(torch_run).won, "cpu", {id(b) for b in decoder.module.buffers()})

    def backend(module: fx.GraphModule, examples: list[Any]) -> Callable[..., Any]:
        from torch._guards import TracingContext
        from torch._inductor.compile_fx import compile_fx, compile_fx_inner

        def inner(*arguments: Any, **named: Any) -> Any:
            context = TracingContext.get()
            assert context.fw_metadata is not None
            seen.append(list(context.fw_metadata.static_input_indices))
            return compile_fx_inner(*arguments, **named)

        return compile_fx(rewriter.rewrite(module, examples), examples, inner_compile=inner)  # type: ignore[return-value]

    with torch.no_grad():
        torch.compile(decoder.module, backend=backend, dynamic=False)(*decoder.inputs)
    tensors = len(list(decoder.module.parameters())) + len(list(decoder.module.buffers()))
    assert rewriter.report()["rmsnorm"].calls and len(seen) == 1
    assert len(seen[0]) == tensors


def test_a_mode_that_fails_costs_the_others_nothing(own_run: Path, decoder: LoadedModel) -> None:
    class Refuses(Verifier):
        def _without(self, name: str) -> Callable[..., Any]:
            raise NotRecorded("no graph of this model can be recorded\nsecond line")

    found = Refuses(decoder, read(own_run), effort=QUICK).verify()
    assert set(found.steps) == {"ours"} and set(found.race.times_us) == {"eager", "ours"}
    told = {"error": "NotRecorded", "reason": "no graph of this model can be recorded"}
    assert found.to_json()["failed"] == {"compile": told, "ours+compile": told}


def test_a_kernel_that_cannot_run_in_the_model_is_left_out(own_run: Path, decoder: LoadedModel) -> None:
    file = own_run / "kernels" / "rmsnorm.py"
    judged = next(p for p in own_run.glob("experiments/*/candidate.py") if p.read_bytes() == file.read_bytes())
    file.write_text(f"{file.read_text()}\n\ndef kernel_fn(x, weight, eps=1e-6):\n    raise RuntimeError('no stream')\n")
    judged.write_text(file.read_text())
    steps = Verifier(decoder, read(own_run), effort=QUICK).verify(["ours"]).steps["ours"]
    (step,) = (each for each in steps if each.target == "rmsnorm")
    assert not step.applied and step.reason == "does not run here: RuntimeError: no stream"
    assert all(each.gain is not None for each in steps if each.target != "rmsnorm")


def test_the_error_that_the_compiler_wrapped_is_the_one_that_is_told() -> None:
    def backend(module: fx.GraphModule, examples: list[Any]) -> Callable[..., Any]:
        raise ValueError("an odd graph")

    with pytest.raises(RuntimeError) as caught:
        torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
    assert Failure.of(caught.value) == Failure("ValueError", "an odd graph")


def test_the_last_act_of_a_run_that_won_nothing_times_what_there_is(own_run: Path) -> None:
    shutil.rmtree(own_run / "experiments")
    write_rows(own_run, speedup=0.9)
    verify_winners(own_run, history.read(own_run), quiet=True)
    found = json.loads((own_run / "verification.json").read_text())
    assert set(found["forward_us"]) == {"eager", "compile"} and found["kernels"] == {} and found["steps"] == {}
    with pytest.raises(AutokernelError, match="there is nothing to apply"):
        autokernel.apply(load(MODEL, "cpu", "fp32").module, own_run)


def test_what_pays_is_asked_of_the_mode_that_is_applied(own_run: Path) -> None:
    won = {each.target.name: each.commit for each in read(own_run).won}

    def trials(*pays: str) -> list[dict[str, Any]]:
        return [{"target": name, "commit": commit, "applied": name in pays} for name, commit in won.items()]

    told = {
        "kernels": {name: {"commit": commit, "applied": name != "matmul"} for name, commit in won.items()},
        "steps": {"ours": trials("rmsnorm"), "ours+compile": trials("fused_mlp", "flash_attention")},
    }
    (own_run / "verification.json").write_text(json.dumps(told))

    def applied(rest: str | None) -> set[str]:
        return {each.target.name for each in read(own_run, rest=rest).won}

    assert applied("eager") == {"rmsnorm"} and applied("inductor") == {"fused_mlp", "flash_attention"}
    assert applied("graphs") == applied(None) == set(won) - {"matmul"}  # this mode was not tried: what pays anywhere


# -------------------------------------------------------------------------------------------------- on a GPU


@pytest.fixture(scope="module")
def gpu_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the small decoder on the GPU whose Triton starters all won."""
    folder = tmp_path_factory.mktemp("won") / "small-cuda"
    words = ["--model", str(MODEL), "--device", "cuda", "--backend", "triton", "--out", str(folder)]
    assert worker.main([*words, "--warmup", "1", "--iters", "2"]) == 0
    write_rows(folder)
    return folder


@pytest.mark.gpu
def test_replays_are_right_and_call_no_python(gpu_run: Path) -> None:
    torch._dynamo.reset()
    model = load(MODEL, "cuda", "fp32")
    inputs = [model.make_inputs(seed) for seed in range(5)]
    with torch.no_grad():
        expected = [model.module(*each) for each in inputs]
        autokernel.apply(model.module, gpu_run, kernels=["rmsnorm"], rest="graphs")
        calls = []
        for each, right in zip(inputs, expected, strict=True):
            found = model.module(*each).clone()
            calls.append(autokernel.engagement(model.module)["rmsnorm"].calls)
            assert torch.allclose(found, right, rtol=1e-4, atol=1e-4)
    assert calls[0] == 4 and calls[2] == calls[4], "the first call warms up, the second is recorded, others are replays"


@pytest.mark.gpu
def test_where_gradients_are_needed_graphs_are_left_aside(gpu_run: Path) -> None:
    torch._dynamo.reset()
    model = load(MODEL, "cuda", "fp32")
    autokernel.apply(model.module, gpu_run, kernels=["rmsnorm"], rest="graphs")
    outputs = [model.module(*model.inputs) for _ in range(3)]
    torch.autograd.backward([output.square().sum() for output in outputs])  # none was written over
    assert all(p.grad is not None for p in model.module.parameters())
    refused = autokernel.engagement(model.module)["rmsnorm"].refused
    assert any("call the model under torch.no_grad()" in reason for reason in refused)


@pytest.mark.gpu
def test_the_proof_has_the_mode_and_holds_it_against_graphs_without_kernels(gpu_run: Path) -> None:
    torch._dynamo.reset()
    model = load(MODEL, "cuda", "fp32")
    found = Verifier(model, read(gpu_run, ["rmsnorm"], everything=True), effort=QUICK).verify()
    assert not found.failed and all(each.passed for each in found.agreement.values())
    assert set(found.race.times_us) == {"eager", "compile", "compile+graphs", "ours", "ours+compile", "ours+graphs"}
    assert all(step.calls_a_forward == step.regions == 4 for steps in found.steps.values() for step in steps)
    trained = load(MODEL, "cuda", "fp32", train=True)
    assert "ours+graphs" not in Verifier(trained, read(gpu_run)).modes
