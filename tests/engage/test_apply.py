"""Kernels back in the model: the same answers, every kernel engaged, nothing left behind, and clear refusals."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import autokernel
from autokernel.regions.model import LoadedModel
from autokernel.types import AutokernelError

PLACES = {"rmsnorm": 4, "fused_mlp": 2, "flash_attention": 2, "matmul": 4}  # of each problem in the two blocks


def places(model: torch.nn.Module) -> dict[str, int]:
    return {name: e.regions for name, e in autokernel.engagement(model).items()}


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(torch.allclose(a, b, rtol=1e-5, atol=1e-5))


@pytest.mark.parametrize("rest", ["eager", "inductor"])
def test_every_kernel_is_engaged_and_the_answer_stays(torch_run: Path, decoder: LoadedModel, rest: str) -> None:
    expected = decoder.forward()
    assert autokernel.apply(decoder.module, torch_run, rest=rest) is decoder.module
    assert close(decoder.forward(), expected)
    assert close(decoder.forward(), expected)
    engaged = autokernel.engagement(decoder.module)
    assert {name: e.regions for name, e in engaged.items()} == PLACES
    assert all(e.calls == 2 * e.regions and not e.refused for e in engaged.values())


def test_restore_leaves_the_model_as_it_was(torch_run: Path, decoder: LoadedModel) -> None:
    expected, before = decoder.forward(), {k: v.clone() for k, v in decoder.module.state_dict().items()}
    keys = set(vars(decoder.module))
    autokernel.apply(decoder.module, torch_run)
    decoder.forward()
    assert list(decoder.module.state_dict()) == list(before)
    copied = io.BytesIO()
    torch.save(decoder.module, copied)  # what is saved is the owner's model
    copied.seek(0)
    assert torch.equal(torch.load(copied, weights_only=False)(*decoder.inputs), expected)
    autokernel.restore(decoder.module)
    assert torch.equal(decoder.forward(), expected)
    assert set(vars(decoder.module)) <= keys | {"_compiled_call_impl"}
    assert all(torch.equal(v, before[k]) for k, v in decoder.module.state_dict().items())
    with pytest.raises(AutokernelError, match="no kernels applied"):
        autokernel.engagement(decoder.module)


def test_gradients_of_every_parameter_are_there_and_right(torch_run: Path, decoder: LoadedModel) -> None:
    def gradients() -> dict[str, torch.Tensor]:
        decoder.module.zero_grad()
        x = decoder.inputs[0].clone().requires_grad_()
        decoder.module(x).square().sum().backward()
        assert x.grad is not None
        return {"x": x.grad, **{n: p.grad.clone() for n, p in decoder.module.named_parameters() if p.grad is not None}}

    expected = gradients()
    autokernel.apply(decoder.module, torch_run)
    found = gradients()
    assert places(decoder.module) == PLACES
    assert set(found) == set(expected) == {"x", *(n for n, _ in decoder.module.named_parameters())}
    for name, gradient in found.items():
        assert torch.allclose(gradient, expected[name], rtol=1e-4, atol=1e-4 * float(expected[name].abs().max())), name


def test_other_shapes_run_the_original_code_and_are_counted(torch_run: Path, decoder: LoadedModel) -> None:
    longer = torch.randn(1, 24, 64)
    with torch.no_grad():
        expected = decoder.module(longer)
        autokernel.apply(decoder.module, torch_run)
        assert torch.equal(decoder.module(longer), expected)
    for engaged in autokernel.engagement(decoder.module).values():
        assert engaged.regions == engaged.calls == 0
        assert all("won for other calls" in reason for reason in engaged.refused) and engaged.refused


def test_autocast_is_another_call(torch_run: Path, decoder: LoadedModel) -> None:
    """Under autocast the products are not the ones that were judged; the answer is autocast's own."""
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = decoder.module(*decoder.inputs)
    autokernel.apply(decoder.module, torch_run)
    decoder.forward()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = decoder.module(*decoder.inputs)
    assert found.dtype == expected.dtype and torch.allclose(found.float(), expected.float(), rtol=2e-2, atol=2e-2)


def test_the_compile_backend_takes_the_run_by_name(torch_run: Path, decoder: LoadedModel) -> None:
    from autokernel.engage.kernel import Kernel
    from autokernel.engage.won import read

    expected = decoder.forward()
    kernels = [Kernel.of(won) for won in read(torch_run).won]
    before = sum(kernel.calls for kernel in kernels)
    compiled = torch.compile(decoder.module, backend="autokernel", dynamic=False, options={"run": str(torch_run)})
    with torch.no_grad():
        assert close(compiled(*decoder.inputs), expected)
    assert sum(kernel.calls for kernel in kernels) - before == sum(PLACES.values())


def test_only_the_named_kernels(torch_run: Path, decoder: LoadedModel) -> None:
    autokernel.apply(decoder.module, torch_run, kernels=["rmsnorm"])
    decoder.forward()
    assert places(decoder.module) == {"rmsnorm": 4}


def test_a_built_kernel_of_another_language(run_of: Callable[[str], Path], decoder: LoadedModel) -> None:
    expected = decoder.forward()
    autokernel.apply(decoder.module, run_of("cpp"), kernels=["rmsnorm"])
    assert close(decoder.forward(), expected)
    assert autokernel.engagement(decoder.module)["rmsnorm"].calls == 4


# ------------------------------------------------------------------------------------------------- refusals


def test_a_kernel_file_that_was_edited_is_refused(own_run: Path, decoder: LoadedModel) -> None:
    (own_run / "kernels" / "rmsnorm.py").open("a").write("# faster, I swear\n")
    with pytest.raises(AutokernelError, match=r"rmsnorm.py was edited since experiment \d+"):
        autokernel.apply(decoder.module, own_run)


def test_a_run_of_another_model_is_refused(torch_run: Path, decoder_of: Callable[..., LoadedModel]) -> None:
    with pytest.raises(AutokernelError, match="other names or shapes"):
        autokernel.apply(decoder_of(hidden=32).module, torch_run)


def test_weights_elsewhere_are_refused(torch_run: Path, decoder: LoadedModel) -> None:
    with pytest.raises(AutokernelError, match="weights lie on meta"):
        autokernel.apply(decoder.module.to("meta"), torch_run)


def test_what_is_no_run_is_refused(tmp_path: Path, decoder: LoadedModel) -> None:
    with pytest.raises(AutokernelError, match=r"has no profile\.json"):
        autokernel.apply(decoder.module, tmp_path)


def test_an_unknown_kernel_is_refused(torch_run: Path, decoder: LoadedModel) -> None:
    with pytest.raises(AutokernelError, match="a kernel 'softmax' that beats eager was expected"):
        autokernel.apply(decoder.module, torch_run, kernels=["softmax"])


def test_twice_is_refused(torch_run: Path, decoder: LoadedModel) -> None:
    autokernel.apply(decoder.module, torch_run)
    with pytest.raises(AutokernelError, match="restore"):
        autokernel.apply(decoder.module, torch_run)


def test_a_kernel_that_verification_left_out_stays_out(own_run: Path, decoder: LoadedModel) -> None:
    commit = "0" * 39 + "1"
    rows = (own_run / "results.tsv").read_text().splitlines()[1:]
    name = next(row.split("\t")[2] for row in rows if commit in row)
    (own_run / "verification.json").write_text(json.dumps({"kernels": {name: {"applied": False, "commit": commit}}}))
    autokernel.apply(decoder.module, own_run)
    decoder.forward()
    assert name not in places(decoder.module) and len(places(decoder.module)) == len(PLACES) - 1


def test_the_users_environment_stays_what_it_was(
    run_of: Callable[..., Path], decoder: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("AUTOKERNEL_CACHE", str(tmp_path))
    before = dict(os.environ)
    autokernel.apply(decoder.module, run_of("cpp"), kernels=["rmsnorm"])
    decoder.forward()
    assert autokernel.engagement(decoder.module)["rmsnorm"].calls
    assert dict(os.environ) == before
