"""What init refuses, with one line and no folder left behind; and what it makes of a model and of a rate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from owner_folder import one_line

from autokernel.run import history

MODELS = Path(__file__).resolve().parent.parent / "models"
BENCH = ("--bench", "sh bench.sh")
SOFTMAX = """import torch
KERNEL_TYPE = "softmax"
BACKEND = "torch"
def kernel_fn(x):
    return x
"""


@pytest.mark.parametrize(
    ("files", "arguments", "line"),
    [
        ({}, (), "either --model MODEL.py or --kernel FILE"),
        ({}, ("--kernel", "fast.c", "--model", "m.py"), "found no file m.py"),
        ({"m.py": ""}, ("--kernel", "fast.c", "--model", "m.py"), "either --model MODEL.py or --kernel FILE"),
        ({"m.py": ""}, ("--model", "m.py", *BENCH), "go with --kernel FILE"),
        ({}, ("--kernel", "fast.c", "--target", "x", *BENCH), "--target goes with --model"),
        ({}, ("--kernel", "fats.c", *BENCH), "found no file fats.c"),
        ({}, ("--model", "hf:"), "the id of a Hugging Face model or a folder behind hf:"),
        ({}, ("--model", "hf:./nowhere"), "a config.json was expected"),
        ({}, ("--kernel", "fast.c", "--bench", "echo fine"), "'metric: NUMBER [ns, us, ms or s]'"),
        ({}, ("--kernel", "fast.c", "--bench", "echo metric: fast"), "it printed none"),
        ({}, ("--kernel", "fast.c", "--bench", "echo metric: 1 GB/s"), "for a rate, where more is better"),
        ({}, ("--kernel", "fast.c", "--bench", "echo metric: -1 ms"), "a metric above zero was expected"),
        ({}, ("--kernel", "fast.c", "--bench", "echo metric: 1; exit 4"), "exit status 4: not correct"),
        ({}, ("--kernel", "fast.c", "--bench", "no-such-program"), "exit status 127"),
        ({}, ("--kernel", "fast.c", "--bench", "sleep 9", "--bench-limit", "1"), "longer than 1 s: killed"),
        ({}, ("--kernel", "fast.c", "--bench", "'"), "a shell command line"),
        ({"k.py": "x = 1\n"}, ("--kernel", "k.py"), "a top-level function kernel_fn"),
        ({"k.py": "def kernel_fn(x): return x\n"}, ("--kernel", "k.py"), 'KERNEL_TYPE = "rmsnorm" (say)'),
        ({"k.py": SOFTMAX.replace("softmax", "mine")}, ("--kernel", "k.py"), "unknown problem 'mine'"),
        ({"k.py": SOFTMAX, "r.py": "x = 1\n"}, ("--kernel", "k.py", "--reference", "r.py"), "make_inputs(n=1024"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_one_line_and_leaves_nothing(project, quick, files, arguments, line):
    for name, text in files.items():
        (project / name).write_text(text)
    before = sorted(project.rglob("*"))
    one_line(quick("init", "agent", *arguments, cwd=project), line)
    assert sorted(project.rglob("*")) == before


def test_a_folder_that_is_there_is_refused_and_left_alone(project, quick):
    (project / "agent").mkdir()
    (project / "agent" / "mine.txt").write_text("mine")
    one_line(quick("init", "agent", "--kernel", "fast.c", *BENCH, cwd=project), "expected to be new or empty")
    assert (project / "agent" / "mine.txt").read_text() == "mine"


def test_a_rate_counts_upwards(project, autokernel):
    rate = ("--bench", "sh bench.sh | sed s/ms/GB/", "--higher-is-better")
    made = autokernel("init", "agent", "--kernel", "fast.c", *rate, cwd=project)
    assert made.returncode == 0, made.stderr
    place = project / "agent"
    assert "the higher the better" in (place / "TASK.md").read_text()
    (place / "kernels" / "fast.c").write_text("// cost: 8\n")
    assert autokernel("try", "-m", "twice the rate", cwd=place).returncode == 0
    row = history.read(place)[-1]
    assert row.decision == "keep" and row.speedup == pytest.approx(2.0)


def test_a_model_gives_its_most_promising_target_and_its_context(project, autokernel):
    model = MODELS / "softmax_only.py"
    made = autokernel("init", "agent", "--model", str(model), "--backend", "torch", cwd=project)
    assert made.returncode == 0, made.stderr
    place = project / "agent"
    (target,) = json.loads((place / "profile.json").read_text())["targets"]
    assert (target["problem"], target["backend"]) == ("softmax", "torch") and target["share"] > 0.5
    assert [path.name for path in (place / "kernels").iterdir()] == ["softmax.py"]
    assert (place / "context" / "model.py").read_text() == model.read_text()
    assert "def reference(x" in (place / "context" / "oracle.py").read_text()
    assert json.loads((place / "context" / "profile.json").read_text())["rows"]
    brief = (place / "BRIEF.md").read_text()
    assert "softmax" in brief and "of the roofline ceiling" in brief


def test_a_transformers_model_from_its_config_alone(project, autokernel):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=96, num_hidden_layers=1, num_attention_heads=4, hidden_size=64, intermediate_size=128,
        max_position_embeddings=64, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(project / "small-llama")
    made = autokernel(
        "init", "agent", "--model", "hf:./small-llama", "--random-weights", "--set", "seq=8", "--backend", "torch",
        "--target", "rmsnorm", cwd=project,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    place = project / "agent"
    (target,) = json.loads((place / "profile.json").read_text())["targets"]
    assert target["problem"] == "rmsnorm" and target["workloads"][0]["dims"] == {"R": 8, "C": 64}
    run = json.loads((place / "run.json").read_text())
    assert run["model"] == "hf:./small-llama" and run["settings"] == {"seq": "8", "random_weights": "true"}
    assert json.loads((place / "context" / "config.json").read_text())["hidden_size"] == 64
    assert "rmsnorm" in (place / "BRIEF.md").read_text()
