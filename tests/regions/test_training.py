"""A training step: forward, loss and backward, each gradient's time with the node that it is of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from autokernel.cli import main
from autokernel.commands.model import _next
from autokernel.regions import capture, profiler, worker
from autokernel.regions.loss import loss_of, own_loss
from autokernel.regions.model import load
from autokernel.types import AutokernelError

FILES = Path(__file__).parent.parent / "models"
DECODER = FILES / "small_decoder.py"


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("profile")
    arguments = ["--model", str(DECODER), "--out", str(out), "--warmup", "1", "--iters", "2", "--backend", "torch"]
    assert worker.main([*arguments, "--train", "--trace", str(out / "trace.json")]) == 0
    assert "MmBackward0" in (out / "trace.json").read_text()
    found: dict[str, Any] = json.loads((out / "profile.json").read_text())
    return found


def test_both_directions_add_up(profile: dict[str, Any]) -> None:
    rows = profile["rows"]
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert sum(row["time_us"] for row in rows) == pytest.approx(profile["attributed_us"])
    assert {row["direction"] for row in rows} == {"forward", "backward"}
    assert profile["train"] and "the model gives no loss" in profile["notes"][0]


def test_the_backward_of_a_region_stands_beside_it_and_promises_nothing(profile: dict[str, Any]) -> None:
    regions = {row["name"]: row for row in profile["rows"] if row["kind"] == "region"}
    gradients = {row["name"]: row for row in profile["rows"] if row["kind"] == "gradient"}
    assert set(regions) == set(gradients) >= {"rmsnorm", "fused_mlp", "flash_attention", "matmul"}
    for name, row in regions.items():
        assert row["backward_us"] == gradients[name]["time_us"] > 0
        assert row["what_if"]["2"] == pytest.approx(1 / (1 - row["share"] / 2))
    assert not any(row["what_if"] for row in profile["rows"] if row["direction"] == "backward")
    assert all(target["share"] == regions[target["name"]]["share"] for target in profile["targets"])


def test_each_gradient_is_with_the_node_that_it_is_of() -> None:
    model = load(DECODER, "cpu", "fp32", train=True)
    captured = capture.capture(model)
    timing = profiler.time_nodes(captured, warmup=0, iterations=1)
    ops = {name: {op.op for op in found} for (_, name), found in timing.backward.items()}
    kinds = {n.name: getattr(n.target, "__name__", str(n.target)) for n in captured.graphs[0].nodes}
    products = [name for name, kind in kinds.items() if kind == "linear"]
    assert len(products) == 10 and all({"aten::mm", "aten::t"} & ops[name] for name in products)
    (silu, _) = [name for name, kind in kinds.items() if kind == "silu"]
    assert ops[silu] == {"aten::silu_backward"}
    assert "aten::mm" not in {op.op for op in timing.outside_backward}
    assert not [p for p in model.module.parameters() if p.grad is not None]


def test_the_loss_is_the_models_own_where_it_gives_one() -> None:
    x = torch.ones(4, requires_grad=True)
    own, outputs = x.sum(), x * 2
    for given in (own, (own, outputs), {"loss": own, "logits": outputs}):
        assert own_loss(given) is own and loss_of(given) is own
    assert own_loss((outputs, own)) is None
    assert float(loss_of((outputs, torch.ones(2, dtype=torch.long))).detach()) == pytest.approx(
        16 / 2
    )  # 4 squares, by root of 4
    half = (torch.full((1 << 20,), 1e-2, dtype=torch.float16)).requires_grad_()
    loss_of(half).backward()
    assert half.grad is not None and half.grad.count_nonzero() == half.numel()


def test_what_has_nothing_to_train_is_refused() -> None:
    with pytest.raises(AutokernelError, match="a model whose output depends on parameters; none does"):
        load(FILES / "softmax_only.py", "cpu", "fp32", train=True)


def test_transformers_own_loss_is_taken(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    small = {"vocab_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 64}
    for kind, head, labels in (
        ("llama", "LlamaForCausalLM", (1, 8)),
        ("bert", "BertForSequenceClassification", (1,)),
    ):
        config = transformers.AutoConfig.for_model(kind, **small, intermediate_size=128, architectures=[head])
        config.save_pretrained(tmp_path / kind)
        settings = {"random_weights": "true", "seq": "8"}
        model = load(Path(f"hf:{tmp_path / kind}"), "cpu", "fp32", settings, train=True)
        assert model.inputs[-1].shape == labels and model.module.training and not model.notes
        output = model.forward()
        assert loss_of(output) is output.loss
        assert load(Path(f"hf:{tmp_path / kind}"), "cpu", "fp32", settings).forward().get("loss") is None


@pytest.mark.gpu
def test_on_a_gpu_both_directions_add_up(tmp_path: Path) -> None:
    """Its backward runs on a thread of its own, and waiting is part of the step."""
    arguments = ["--model", str(DECODER), "--out", str(tmp_path), "--warmup", "2", "--iters", "3", "--backend", "torch"]
    for more in ([], ["--autocast", "bf16"]):
        assert worker.main([*arguments, "--train", "--device", "cuda", *more]) == 0
        rows = json.loads((tmp_path / "profile.json").read_text())["rows"]
        assert sum(row["share"] for row in rows) == pytest.approx(1)
        regions = {row["name"]: row for row in rows if row["kind"] == "region"}
        assert {"rmsnorm", "fused_mlp", "flash_attention", "matmul"} <= set(regions)
        assert all(row["backward_us"] > 0 for row in regions.values())
        assert "aten::mm" not in {r["name"] for r in rows if r["kind"] == "op" and r["direction"] == "backward"}


def test_a_person_reads_both_directions() -> None:
    command = ["profile", str(DECODER), "--train", "--no-levers", "--iters", "1", "--warmup", "0", "--backend", "torch"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert "forward" in done.stdout and "backward" in done.stdout and "training step" in done.stdout
    assert "no kernel replaces a backward" in done.stdout
    (total,) = (line for line in done.stdout.splitlines() if line.strip().startswith("total"))
    shares = [float(word[:-1]) for word in total.split() if word.endswith("%")]
    assert len(shares) == 2 and sum(shares) == pytest.approx(100, abs=0.2)
    found = {"model": "x.py", "settings": {}, "device": "cpu", "dtype": "fp32", "autocast": "bf16", "train": True}
    assert _next(found) == "autokernel run x.py --autocast bf16 --train"
