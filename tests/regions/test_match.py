"""Regions are found in any spelling, with their real layouts, and what is nearly a problem is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autokernel import registry
from autokernel.regions.capture import Capture, capture
from autokernel.regions.match import Match, match
from autokernel.regions.model import load
from autokernel.regions.window import dense_strides, windows

FILES = Path(__file__).parent.parent / "models"
FOUND = {  # spelling -> problem of its one region, and what its workload says
    "rmsnorm_division": ("rmsnorm", {"R": 16, "C": 32}, {"eps": 1e-5}),
    "rmsnorm_functional": ("rmsnorm", {"R": 16, "C": 32}, {"eps": torch.finfo(torch.float32).eps}),
    "layernorm_spelled": ("layernorm", {"R": 16, "C": 32}, {"eps": 1e-5}),
    "softmax_spelled": ("softmax", {"R": 16, "C": 32}, {}),
    "linear_bias": ("matmul", {"M": 16, "K": 32, "N": 32}, {}),
    "addmm": ("matmul", {"M": 16, "K": 32, "N": 32}, {}),
    "swiglu": ("fused_mlp", {"M": 16, "D": 32, "F": 64}, {}),
    "attention_masked": ("flash_attention", {"B": 2, "H": 4, "S": 16, "D": 32}, {"causal": True}),
    "attention_full": ("flash_attention", {"B": 2, "H": 4, "S": 16, "D": 32}, {"causal": False, "sm_scale": 0.2}),
    "attention_sdpa": ("flash_attention", {"B": 2, "H": 4, "S": 16, "D": 32}, {"causal": True}),
    "rotary_half": ("rotary_embedding", {"B": 2, "H": 4, "S": 16, "D": 32}, {"interleaved": False}),
    "rotary_interleaved": ("rotary_embedding", {"B": 2, "H": 4, "S": 16, "D": 32}, {"interleaved": True}),
    "rotary_complex": ("rotary_embedding", {"B": 2, "H": 4, "S": 16, "D": 32}, {"interleaved": True}),
    "cross_entropy": ("cross_entropy", {"R": 16, "V": 32}, {}),
    "sum": ("reduce", {"R": 16, "C": 32}, {"dim": -1}),
}
DECOYS = {  # spelling -> the problem it only resembles
    "rmsnorm_eps_outside": "rmsnorm",
    "rmsnorm_shifted": "rmsnorm",
    "layernorm_unbiased": "layernorm",
    "geglu": "fused_mlp",
    "attention_any_mask": "flash_attention",
    "escaping": "rmsnorm",
    "mutating": "rmsnorm",
}


def regions(spelling: str) -> tuple[Capture, list[Match]]:
    captured = capture(load(FILES / "spellings.py", "cpu", "fp32", {"spelling": spelling}))
    return captured, match(captured)


@pytest.mark.parametrize("spelling", FOUND)
def test_spelling_is_recognised(spelling: str) -> None:
    problem, dims, scalars = FOUND[spelling]
    _, (found,) = regions(spelling)
    assert found.problem == problem
    assert found.workload.dims.items() >= dims.items()
    assert found.workload.scalars.items() >= scalars.items()


@pytest.mark.parametrize("spelling", DECOYS)
def test_decoy_is_left_alone(spelling: str) -> None:
    assert DECOYS[spelling] not in {m.problem for m in regions(spelling)[1]}


@pytest.mark.parametrize("spelling", FOUND)
def test_binding_gives_the_regions_values_in_the_models_dtype(spelling: str) -> None:
    """What the recognition is for: the problem's kernel can stand where the region stood."""
    captured, (found,) = regions(spelling)
    values: dict[str, torch.Tensor] = {}

    class Keep(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            values[n.name] = super().run_node(n)
            return values[n.name]

    captured.forward(lambda graph, args: Keep(graph.module).run(*args))
    inputs = [values[n.name] for n in found.inputs]
    reference = registry.load("problems", found.problem).reference
    out = found.binding.restore(reference(*found.binding.adapt(*inputs), **found.binding.scalars), *inputs)
    torch.testing.assert_close(out, values[found.output.name], rtol=1e-4, atol=1e-4)


def test_real_strides_are_kept() -> None:
    assert regions("linear_bias")[1][0].workload.strides == {"B": (1, 32)}
    assert regions("addmm")[1][0].workload.strides == {}
    heads_behind_positions = (16 * 4 * 32, 32, 4 * 32, 1)
    strides = regions("attention_sdpa")[1][0].workload.strides
    assert strides == dict.fromkeys("QKV", heads_behind_positions)


def test_the_whole_of_a_softmax_is_one_region() -> None:
    captured, (found,) = regions("softmax_spelled")
    assert {n.name for n in found.nodes} == {
        n.name for g in captured.graphs for n in g.nodes if n.op not in ("placeholder", "output")
    }


def test_equal_windows_have_equal_keys_and_an_eps_tells_them_apart() -> None:
    captured, _ = regions("swiglu")
    keys = [w.key for w in windows(captured.graphs[0]) if len(w.nodes) == 1]
    assert len(keys) == 6
    assert len(set(keys)) == 4  # gate and up are the same product, and both elementwise ones the same

    def whole(spelling: str) -> str:
        return windows(regions(spelling)[0].graphs[0])[0].key

    assert whole("rmsnorm_division") == whole("rmsnorm_division")
    assert whole("rmsnorm_division") != whole("rmsnorm_eps_outside")


def test_graph_breaks_are_counted_and_regions_found_on_both_sides(capfd: pytest.CaptureFixture[str]) -> None:
    captured = capture(load(FILES / "graph_break.py", "cpu", "fp32"))
    assert captured.graph_breaks >= 2
    assert sorted(m.problem for m in match(captured)) == ["matmul", "matmul", "softmax"]
    assert "between the layers" in capfd.readouterr().out


def test_dense_strides_keep_the_order_of_dimensions_and_expanded_ones() -> None:
    assert dense_strides((2, 3, 4), (12, 4, 1)) == (12, 4, 1)
    assert dense_strides((2, 3, 4), (1, 2, 6)) == (1, 2, 6)
    assert dense_strides((2, 3), (9, 1)) == (3, 1)
    assert dense_strides((5, 3), (0, 1)) == (0, 1)
