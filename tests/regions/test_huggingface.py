"""hf: in place of a model file: built from a config alone, profiled like any other, and one line for what cannot be."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import autokernel
from autokernel import modelref
from autokernel.commands.model import _next
from autokernel.regions import rank, uncovered, worker
from autokernel.regions.model import load
from autokernel.run import history
from autokernel.run.history import Row
from autokernel.types import AutokernelError

transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}
RANDOM = {"random_weights": "true"}


@pytest.fixture(scope="module", autouse=True)
def offline() -> Any:
    """No test asks the hub."""
    patch = pytest.MonkeyPatch()
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "small-llama"
    config = transformers.LlamaConfig(
        **SMALL,
        intermediate_size=128,
        num_key_value_heads=2,
        max_position_embeddings=64,
        architectures=["LlamaForCausalLM"],
    )
    config.save_pretrained(folder)
    return folder


def profiled(reference: str, out: Path, *arguments: str) -> dict[str, Any]:
    common = ["--model", reference, "--out", str(out), "--warmup", "1", "--iters", "1", "--backend", "torch"]
    with pytest.MonkeyPatch.context() as patch:  # which rows are worth it must not depend on this machine's noise
        patch.setattr(rank, "LEAST_SHARE", 0.0)
        patch.setattr(uncovered, "LEAST_SHARE", 2.0)
        assert worker.main([*common, "--set", "random_weights=true", *arguments]) == 0
    found: dict[str, Any] = json.loads((out / "profile.json").read_text())
    return found


@pytest.fixture(scope="module")
def llama_run(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the small Llama whose starters all won."""
    folder = tmp_path_factory.mktemp("runs") / "llama"
    profiled(f"hf:{llama}", folder, "--set", "seq=16", "--set", "batch=2")
    targets = json.loads((folder / "profile.json").read_text())["targets"]
    (folder / history.FILE).write_text(history.render([]))
    for number, target in enumerate(targets, start=1):
        row = Row(
            experiment=number, time="2026-01-01T00:00:00Z", target=target["name"], problem=target["problem"],
            backend=target["backend"], proposer="starter", idea="baseline", status="PASS", stage="done",
            decision="baseline", latency_us=10.0, incumbent_us=None, speedup=None, ci_low=None, ci_high=None,
            speedup_vs_eager=2.0, speedup_vs_best=2.0, pct_peak=50.0, seconds=1.0, tokens_in=0, tokens_out=0,
            cost_usd=0.0, commit=f"{number:040x}", parent=f"{0:040x}",
        )  # fmt: skip
        history.append(folder / history.FILE, row)
        place = folder / "experiments" / str(number)
        place.mkdir(parents=True)
        shutil.copyfile(folder / "kernels" / f"{target['name']}.py", place / "candidate.py")
    return folder


def test_a_decoder_from_its_config_alone(llama_run: Path) -> None:
    profile = json.loads((llama_run / "profile.json").read_text())
    assert profile["model_name"] == "small-llama"
    calls = {row["problem"]: row["calls"] for row in profile["rows"] if row["problem"]}
    assert calls["rmsnorm"] == 5
    assert calls["rotary_embedding"] == 4
    assert calls["fused_mlp"] == 2
    assert calls["flash_attention"] == 2
    assert calls["matmul"] == 9  # q, k, v and o of two layers, and the head
    assert sum(row["share"] for row in profile["rows"]) == pytest.approx(1)
    rmsnorm = next(t for t in profile["targets"] if t["problem"] == "rmsnorm")
    assert rmsnorm["workloads"][0]["dims"] == {"R": 32, "C": 64}


def test_kernels_of_a_run_engage_in_the_users_own_instance(llama: Path, llama_run: Path) -> None:
    torch._dynamo.reset()
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_pretrained(llama)).eval()
    ids = torch.randint(0, 96, (2, 16))
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        autokernel.apply(model, llama_run)
        found = model(ids, use_cache=False)
    assert isinstance(found, transformers.utils.ModelOutput)
    assert torch.allclose(found.logits, expected, rtol=1e-4, atol=1e-5)
    regions = {name: each.regions for name, each in autokernel.engagement(model).items()}
    assert regions["rmsnorm"] == 5
    assert regions["matmul"] == 9
    assert all(each.calls == each.regions for each in autokernel.engagement(model).values())


def test_an_encoder(tmp_path: Path) -> None:
    config = transformers.BertConfig(**SMALL, intermediate_size=128, max_position_embeddings=64)
    config.save_pretrained(tmp_path / "bert")
    profile = profiled(f"hf:{tmp_path / 'bert'}", tmp_path / "out", "--set", "seq=16", "--set", "mask=true")
    calls = {row["problem"]: row["calls"] for row in profile["rows"] if row["problem"]}
    assert calls["layernorm"] == 6  # embeddings, two a layer, and the head's
    assert calls["matmul"] == 14


def test_images_and_their_settings(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, image_size=32, patch_size=8
    )
    config.save_pretrained(tmp_path / "vit")
    loaded = load(Path(f"hf:{tmp_path / 'vit'}"), "cpu", "bf16", {**RANDOM, "batch": "3"})
    assert loaded.inputs[0].shape == (3, 3, 32, 32)
    assert loaded.forward()[0].dtype == torch.bfloat16


def test_saved_weights_are_those_of_the_folder(llama: Path, tmp_path: Path) -> None:
    saved = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_pretrained(llama))
    saved.save_pretrained(tmp_path / "saved")
    loaded = load(Path(f"hf:{tmp_path / 'saved'}"), "cpu", "fp32", {"seq": "8"})
    assert torch.equal(loaded.module.lm_head.weight, saved.lm_head.weight)
    assert loaded.forward().logits.shape == (1, 8, 96)
    assert loaded.forward().past_key_values is None
    assert not torch.equal(loaded.make_inputs(1)[0], loaded.make_inputs(2)[0])


@pytest.mark.parametrize(
    ("reference", "settings", "message"),
    [
        ("hf:./no/such/folder", RANDOM, "folder with a config.json; there is no such folder"),
        ("hf:{empty}", RANDOM, "folder with a config.json; it has none"),
        ("hf:{llama}", {}, "its weights were expected beside its config.json"),
        ("hf:{llama}", {**RANDOM, "seq": "65"}, "seq was expected to be at most 64"),
        ("hf:{llama}", {**RANDOM, "batch": "0"}, "batch was expected to be at least 1"),
        ("hf:{llama}", {**RANDOM, "size": "7b"}, "no setting 'size': it has: batch, seq, mask, random_weights"),
        ("hf:no-one/has-this", RANDOM, "not in the cache, and the hub cannot be reached"),
        ("hf:llama", {}, "--random-weights builds its type's default configuration"),
    ],
)
def test_what_cannot_be_is_one_line(
    llama: Path, tmp_path: Path, reference: str, settings: dict[str, str], message: str
) -> None:
    path = Path(reference.format(llama=llama, empty=tmp_path))
    with pytest.raises(AutokernelError, match=message) as caught:
        load(path, "cpu", "fp32", settings)
    assert "\n" not in str(caught.value)


def test_a_known_type_without_a_network_is_its_default_config_and_says_so() -> None:
    loaded = load(Path("hf:squeezebert"), "cpu", "fp32", {**RANDOM, "seq": "4"})
    assert loaded.module.config.model_type == "squeezebert"
    assert "default configuration of the type 'squeezebert'" in loaded.notes[0]


def test_on_the_command_line(llama: Path, tmp_path: Path) -> None:
    """--random-weights is a setting like any other, and the folder's name is the model's."""
    command = [sys.executable, "-m", "autokernel", "extract", f"hf:{llama}", "--random-weights", "--set", "seq=8"]
    done = subprocess.run(
        [*command, "--backend", "torch", "--iters", "1", "--warmup", "0"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    header = (tmp_path / "small-llama-cpu-kernels" / "rmsnorm.py").read_text()
    assert f"hf:{llama} seq=8 random_weights=true" in header.replace("\n", " ")
    assert modelref.title("hf:org/Some-Model-3.1") == "Some-Model-3.1"
    assert modelref.title("hf:.") == Path.cwd().name
    assert modelref.digest(Path(f"hf:{llama}")) != modelref.digest(Path("hf:org/small-llama"))


def test_the_next_command_is_for_this_very_model() -> None:
    found = {"model": "hf:gpt2", "settings": {"seq": "64", "random_weights": "true"}, "device": "cpu", "dtype": "bf16"}
    assert _next(found) == "autokernel run hf:gpt2 --set seq=64 --random-weights --dtype bf16"


def test_without_transformers_the_extra_is_named(llama: Path) -> None:
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from autokernel.regions import worker; sys.exit(worker.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "--model", f"hf:{llama}", "--out", "unused"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'autokernel[hf]'" in json.loads(done.stdout.splitlines()[-1])["message"]
