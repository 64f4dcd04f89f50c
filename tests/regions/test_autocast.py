"""Autocast's casts as nodes: regions have the dtypes that kernels get, and the numbers stay autocast's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from autokernel.regions import capture, worker
from autokernel.regions.autocast import explicit
from autokernel.regions.model import load
from autokernel.types import AutokernelError

DECODER = Path(__file__).parent.parent / "models" / "small_decoder.py"


def traced(function: Any, *inputs: torch.Tensor) -> tuple[fx.GraphModule, Any]:
    """The graph under autocast, its casts made explicit; and what the function gives there."""
    graphs: list[fx.GraphModule] = []

    def backend(module: fx.GraphModule, _: Any) -> Any:
        explicit(module)
        graphs.append(module)
        return module.forward

    torch._dynamo.reset()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = torch.compile(function, backend=backend, dynamic=False)(*inputs)
        expected = function(*inputs)
    assert torch.equal(found, expected) and found.dtype == expected.dtype
    return graphs[0], found


def casts(module: fx.GraphModule) -> list[tuple[str, torch.dtype]]:
    return [(n.args[0].name, n.args[1]) for n in module.graph.nodes if n.target == "to"]  # type: ignore[union-attr]


def test_workloads_have_the_dtypes_that_regions_see(tmp_path: Path) -> None:
    arguments = ["--model", str(DECODER), "--out", str(tmp_path), "--warmup", "0", "--iters", "1", "--backend", "torch"]
    assert worker.main([*arguments, "--autocast", "bf16"]) == 0
    profile = json.loads((tmp_path / "profile.json").read_text())
    seen = {row["problem"]: {w["dtype"] for w in row["workloads"]} for row in profile["rows"] if row["problem"]}
    known = {"rmsnorm": {"fp32"}, "fused_mlp": {"bf16"}, "flash_attention": {"bf16"}, "matmul": {"bf16"}}
    assert {problem: seen[problem] for problem in known} == known
    assert (profile["dtype"], profile["autocast"]) == ("fp32", "bf16")
    assert sum(row["share"] for row in profile["rows"]) == pytest.approx(1)


def test_the_captured_model_gives_what_autocast_gives() -> None:
    model = load(DECODER, "cpu", "fp32", autocast="bf16")
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    found = capture.capture(model).forward(lambda graph, args: graph.module(*args))
    expected = model.forward()  # its product with a bias is one call, with one rounding less
    assert found.dtype == expected.dtype and torch.allclose(found, expected, rtol=2e-2, atol=2e-2)


def test_products_are_cast_down_and_a_tensor_once() -> None:
    x, w = torch.randn(4, 8), torch.randn(8, 8)
    module, _ = traced(lambda x, w: F.linear(x, w) + F.linear(x + 1, w) @ F.linear(x, w).T @ x, x, w)
    names = [name for name, _ in casts(module)]
    assert len(names) == len(set(names)) == 3  # x, w, x + 1
    assert {dtype for _, dtype in casts(module)} == {torch.bfloat16}


def test_what_needs_range_is_cast_up_and_a_promotion_is_none() -> None:
    x, y = torch.randn(4, 8).bfloat16(), torch.randn(4, 8)
    assert casts(traced(lambda x, y: x + y, x, y)[0]) == []
    assert casts(traced(lambda x, w: F.layer_norm(x, (8,), w, w), x, torch.randn(8))[0]) == []  # the CPU's own mixture
    module, _ = traced(lambda x: F.mse_loss(x, x + 1), x)
    assert [dtype for _, dtype in casts(module)] == [torch.float32] * 2


def test_a_graph_that_writes_casts_before_each_reader() -> None:
    def function(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        y = x * 2
        first = F.linear(y, w)
        y.add_(1)
        return first + F.linear(y, w)

    module, _ = traced(function, torch.randn(4, 8), torch.randn(8, 8))
    assert len(casts(module)) == 4


@pytest.mark.parametrize(("dtype", "autocast"), [("bf16", "bf16"), ("fp32", "fp32")])
def test_autocast_is_of_float32_parameters(dtype: Any, autocast: Any) -> None:
    with pytest.raises(AutokernelError, match="--autocast was expected to be bf16 or fp16, with --dtype fp32"):
        load(DECODER, "cpu", dtype, autocast=autocast)
