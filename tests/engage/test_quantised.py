"""Kernels of regions that round on the way, back in their model: a flip at a tie is no fault, a coarser rounding is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import autokernel
from autokernel.engage.outputs import Judge, compare
from autokernel.engage.verify import Verifier
from autokernel.engage.won import read
from autokernel.regions.model import LoadedModel, load
from autokernel.types import is_file

MODEL = Path(__file__).parent.parent / "models" / "quantised.py"


@pytest.fixture(scope="module")
def run(run_of: Callable[..., Path]) -> Path:
    return run_of("cpp", MODEL)


@pytest.fixture
def loaded() -> Iterator[LoadedModel]:
    torch._dynamo.reset()
    yield load(MODEL, "cpu", "fp32")


def own(run: Path) -> list[str]:
    targets = json.loads((run / "profile.json").read_text())["targets"]
    return [t["name"] for t in targets if is_file(t["problem"])]


def test_the_verification_engages_both_and_finds_their_outputs_right(run: Path, loaded: LoadedModel) -> None:
    assert len(own(run)) == 2
    verifier = Verifier(loaded, read(run, own(run)))
    for won in verifier.run.won:
        call, rewriter = verifier.variant([won], "ours")
        call(*loaded.inputs)
        assert rewriter.report()[won.target.name].calls == 1
    found = verifier.diagnose()
    assert set(found) == set(own(run)) and all(each.passed for each in found.values())
    assert verifier._judge.agreement(flipped(loaded, 1.0)).passed  # as a right kernel may give on another day


def test_what_they_give_is_what_the_model_gave(run: Path, loaded: LoadedModel) -> None:
    expected = loaded.forward()
    autokernel.apply(loaded.module, run, kernels=own(run))
    apart = (loaded.forward() - expected).abs()
    assert int((apart > 1e-4).sum()) < 5  # at ties
    assert all(e.calls == 1 and not e.refused for e in autokernel.engagement(loaded.module).values())


def flipped(model: LoadedModel, level: float) -> Callable[..., torch.Tensor]:
    """The model, its second rounding at a tie of its own: where the value read lies nearest to one, it falls otherwise;
    or, with a level, everything is rounded that much coarser.
    """

    def call(x: torch.Tensor) -> torch.Tensor:
        module = model.module
        y = module.down(torch.clamp(torch.round(module.up(x) / 0.05), -128, 127) * 0.05)
        step = y.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127 * level
        value = y / step
        nearest = torch.round(value)
        if level == 1:
            at = int((value - torch.floor(value) - 0.5).abs().argmin())
            other = torch.floor(value).flatten()[at] + torch.ceil(value).flatten()[at] - nearest.flatten()[at]
            nearest.flatten()[at] = other
        return nearest.clamp(-128, 127) * step + x

    return call


def test_a_flip_at_a_tie_passes_and_a_coarser_rounding_does_not(loaded: LoadedModel) -> None:
    strict, judge = Judge(loaded, [1, 2]), Judge(loaded, [1, 2], jumps=True)
    one_flip, coarser = flipped(loaded, 1.0), flipped(loaded, 1.1)
    assert not strict.agreement(one_flip).passed  # what the rule without jumps would say
    assert judge.agreement(one_flip).passed
    assert judge.agreement(loaded.module).passed
    assert not judge.agreement(coarser).passed
    assert not judge.agreement(lambda x: one_flip(x) + 1e-2 * x).passed


def test_nudged_runs_add_to_what_is_allowed_and_no_more() -> None:
    wide = {"output 0": torch.ones(100, dtype=torch.float64)}
    narrow = {"output 0": torch.ones(100)}
    nudged = {"output 0": wide["output 0"] + 1e-3}
    assert compare({"output 0": torch.ones(100) + 9e-4}, narrow, wide, [nudged]).passed
    assert not compare({"output 0": torch.ones(100) + 1.1e-3}, narrow, wide, [nudged]).passed
    assert not compare({"output 0": torch.ones(100) + 9e-4}, narrow, wide).passed
