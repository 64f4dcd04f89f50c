"""The worker on real models: all time is attributed once, and each target's file stands alone."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._C._autograd import DeviceType

from autokernel import registry
from autokernel.assets import models
from autokernel.hardware import Hardware
from autokernel.regions import extractor, profiler
from autokernel.regions.model import load
from autokernel.regions.rank import Row
from autokernel.types import Target, Workload

FILES = Path(__file__).parent.parent / "models"
TEMPLATE = next(p for p in models() if p.stem == "template")


def worker(out: Path, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    command = [sys.executable, "-m", "autokernel.regions.worker", "--out", str(out), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return result.returncode, [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("profile")
    arguments = ["--model", str(TEMPLATE), "--warmup", "1", "--iters", "3", "--trace", str(out / "trace.json")]
    status, events = worker(out, *arguments, "--set", "batch=64")
    assert status == 0, events
    return out, json.loads((out / "profile.json").read_text()), events


def test_shares_add_up_and_targets_are_in_order(profiled: tuple[Path, dict[str, Any], Any]) -> None:
    _, profile, _ = profiled
    rows = profile["rows"]
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert sum(row["time_us"] for row in rows) == pytest.approx(profile["attributed_us"])
    targets = [Target.from_json(t) for t in profile["targets"]]
    assert {t.problem for t in targets} == {"layernorm", "matmul", "softmax"}
    winnable = [t.eager_us - t.floor_us for t in targets]
    assert winnable == sorted(winnable, reverse=True)
    assert [row["name"] for row in rows[: len(targets)]] == [t.name for t in targets]
    assert any(row["name"] == "aten::add" and row["kind"] == "op" for row in rows)  # the bias of the linear
    assert profile["settings"] == {"batch": "64"}
    matmul = next(t for t in targets if t.problem == "matmul")
    assert matmul.workloads == (Workload({"M": 64, "K": 1024, "N": 4096}, "fp32", 1, {"B": (1, 1024)}),)


def test_events_and_trace(profiled: tuple[Path, Any, list[dict[str, Any]]]) -> None:
    out, _, events = profiled
    kinds = [e["event"] for e in events]
    assert list(dict.fromkeys(kinds)) == ["capture", "match", "time", "extract"]
    last = [e for e in events if e["event"] == "time"][-1]
    assert last["done"] == last["of"] == 1 + 3 + 3
    assert "autokernel::" in (out / "trace.json").read_text()


def test_each_target_has_a_file_that_parses_and_names_its_workloads(profiled: tuple[Path, dict[str, Any], Any]) -> None:
    out, profile, _ = profiled
    for target in map(Target.from_json, profile["targets"]):
        tree = ast.parse((out / target.file).read_text())
        values = {
            n.targets[0].id: n.value for n in tree.body if isinstance(n, ast.Assign) and hasattr(n.targets[0], "id")
        }
        assert ast.literal_eval(values["KERNEL_TYPE"]) == target.problem
        assert ast.literal_eval(values["BACKEND"]) == target.backend
        assert tuple(map(Workload.from_json, ast.literal_eval(values["WORKLOADS"]))) == target.workloads
        header = ast.get_docstring(tree) or ""
        assert "From template.py batch=64: 1 call in one forward" in header
        assert "half scale" in header and "double scale" in header and "Tolerances: fp32" in header


def test_a_mistake_ends_with_its_line_and_status_2(tmp_path: Path) -> None:
    status, events = worker(tmp_path, "--model", str(FILES / "broken_forward.py"))
    assert status == 2
    assert events[-1]["event"] == "error"
    assert "Model.forward raised RuntimeError" in events[-1]["message"]
    assert not (tmp_path / "profile.json").exists()


def test_a_models_prints_and_code_between_graphs_do_not_break_the_events(tmp_path: Path) -> None:
    status, events = worker(tmp_path, "--model", str(FILES / "graph_break.py"), "--warmup", "0", "--iters", "2")
    assert status == 0, events
    profile = json.loads((tmp_path / "profile.json").read_text())
    assert profile["graph_breaks"] >= 2
    assert sum(row["share"] for row in profile["rows"]) == pytest.approx(1)
    assert sum(row["calls"] for row in profile["rows"] if row["problem"] == "matmul") == 2


def event(
    name: str, parent: Any = None, cpu: float = 0.0, device: float = 0.0, kernels: tuple[Any, ...] = (),
    scope: int = 0, number: int = -1,
) -> Any:  # fmt: skip
    return SimpleNamespace(
        name=name,
        device_type=DeviceType.CPU,
        cpu_parent=parent,
        cpu_time_total=cpu,
        device_time_total=device,
        kernels=[SimpleNamespace(name=n, duration=d) for n, d in kernels],
        scope=scope,
        sequence_nr=number,
    )


def nested() -> list[Any]:
    """A linear in a node (with its inner product), a kernel launched by hand in another, an op outside all."""
    first = event("autokernel::0::linear", kernels=(("autokernel::0::linear", 99.0),))
    linear = event("aten::linear", first, 20.0, 8.0)
    inner = event("aten::mm", linear, 15.0, 8.0, (("gemm", 8.0),))
    second = event("autokernel::0::mine", kernels=(("my_triton_kernel", 4.0),))
    region = event("Torch-Compiled Region: 0/0", cpu=50.0)
    outside = event("aten::item", region, 3.0, 1.0)
    launch = event("cudaLaunchKernel", inner, 2.0, 8.0)
    return [first, linear, inner, second, region, outside, launch]


@pytest.mark.parametrize(
    ("enough_s", "steps"),
    [(3600.0, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]), (0.0, [1, 2, 3, 5, 6, 7, 10, 11, 12])],
)
def test_a_slow_model_has_fewer_steps(monkeypatch: pytest.MonkeyPatch, enough_s: float, steps: list[int]) -> None:
    """Of 4 that warm up, 5 plain ones and 5 that are profiled; and times are per step, however many there were."""
    monkeypatch.setattr(profiler, "ENOUGH_S", enough_s)
    seen: list[int] = []
    softmax = load(FILES / "softmax_only.py", "cpu", "fp32", {})
    timing = profiler.time_operations(softmax, 4, 5, on_progress=lambda done, of: seen.append(done))
    assert seen == steps
    (op,) = (each for each in timing.outside if each.op == "aten::softmax")
    assert op.calls == 1


def test_each_op_and_kernel_counts_once() -> None:
    (nodes, outside), backward = profiler._attribute(nested(), "cpu", 2, profiler.Spans())
    assert backward == ({}, ())
    assert {key: [(o.op, o.time_us) for o in ops] for key, ops in nodes.items()} == {
        (0, "linear"): [("aten::linear", 10)]
    }
    assert [(o.op, o.time_us, o.calls) for o in outside] == [("aten::item", 1.5, 0.5)]
    (nodes, outside), _ = profiler._attribute(nested(), "cuda", 1, profiler.Spans())
    assert {key: [(o.op, o.time_us) for o in ops] for key, ops in nodes.items()} == {
        (0, "linear"): [("aten::linear", 8)],
        (0, "mine"): [("my_triton_kernel", 4)],
    }
    assert [(o.op, o.time_us) for o in outside] == [("aten::item", 1)]


def test_a_gradients_time_belongs_to_the_node_that_it_is_of() -> None:
    spans = profiler.Spans()
    spans.add(4, 6, (0, "linear"))
    spans.add(6, 6, (0, "view"))  # made nothing that runs back
    spans.add(6, 7, (1, "mine"))
    assert [spans.node_of(number) for number in (3, 4, 5, 6, 7)] == [
        None, (0, "linear"), (0, "linear"), (1, "mine"), None,
    ]  # fmt: skip
    engine = event("autograd::engine::evaluate_function: MmBackward0", number=5)
    node = event("MmBackward0", engine, scope=1, number=5)
    product = event("aten::mm", node, 6.0, 2.0)
    inner = event("aten::add", product, 1.0, 1.0)
    total = event("aten::sum", engine, 3.0, 1.0)
    hand = event("MineBackward", scope=1, number=6, kernels=(("my_triton_kernel", 4.0),))
    leaf = event("autograd::engine::evaluate_function: torch::autograd::AccumulateGrad")
    added = event("aten::add_", leaf, 2.0, 1.0)
    events = [engine, node, product, inner, total, hand, leaf, added]
    forward, (nodes, outside) = profiler._attribute(events, "cpu", 1, spans)
    assert forward == ({}, ())
    assert {key: [(o.op, o.time_us) for o in ops] for key, ops in nodes.items()} == {
        (0, "linear"): [("aten::mm", 6), ("aten::sum", 3)]
    }
    assert [(o.op, o.time_us) for o in outside] == [("aten::add_", 2)]
    _, (nodes, _) = profiler._attribute(events, "cuda", 1, spans)
    assert [(o.op, o.time_us) for o in nodes[1, "mine"]] == [("my_triton_kernel", 4)]


def test_what_if_is_amdahls_law() -> None:
    row = Row("x", "softmax", (), 1, 50.0, 0.5, floor_us=10.0, compute_floor_us=1.0, memory_floor_us=10.0)
    assert row.what_if() == pytest.approx({"1.5": 1.2, "2": 4 / 3, "3": 1.5, "5": 1 / 0.6, "floor": 1 / 0.6})
    assert (row.bound, row.headroom, row.winnable_us) == ("memory", 5.0, 40.0)
    assert "floor" not in Row("aten::add", None, (), 1, 50.0, 0.5).what_if()
    assert Row("aten::mm", None, (), 1, 50.0, 0.5, direction="backward").what_if() == {}


@pytest.mark.parametrize("name", registry.names("problems"))
def test_without_a_starter_the_file_is_the_reference_and_stands_alone(name: str) -> None:
    problem = registry.load("problems", name)
    dims = problem.shapes["cpu"][1]
    workload = Workload(dims, "fp32", 3, scalars=problem.scalars)
    row = Row(name, name, ("body",), 3, 9.0, 0.3, (workload,), 1.0, 2.0, 2.0)
    source = extractor.extract(row, "no_such_backend", "a_model.py")
    assert "autokernel" not in {alias.split(".")[0] for alias in _imports(ast.parse(source))}
    scope: dict[str, Any] = {}
    exec(compile(source, name, "exec"), scope)
    assert (scope["KERNEL_TYPE"], scope["BACKEND"]) == (name, "torch")
    assert [Workload.from_json(w) for w in scope["WORKLOADS"]] == [workload]
    inputs = problem.make_inputs(dims, "fp32", torch.Generator().manual_seed(1))
    assert torch.equal(scope["kernel_fn"](*inputs), problem.reference(*inputs))


def _imports(tree: ast.Module) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    return names


def test_extracted_source_keeps_every_line_of_its_starter() -> None:
    source = '"""One line."""\n\nBACKEND = "cpp"\nGRAIN = 1  # tune: 1, 2\n'
    text = extractor.annotate(source, 'With \\ and """ inside.', [Workload({"R": 2}, "fp32")], "x")
    scope: dict[str, Any] = {}
    exec(compile(text, "x", "exec"), scope)
    assert scope["__doc__"].startswith("One line.\n\nWith \\ and ''' inside.")
    assert scope["WORKLOADS"] == [{"dims": {"R": 2}, "dtype": "fp32", "count": 1, "strides": {}, "scalars": {}}]
    assert "GRAIN = 1  # tune: 1, 2" in text.splitlines()


def test_floor_is_the_larger_of_both_bounds_summed_over_calls() -> None:
    from autokernel.regions.rank import floor

    hardware = Hardware("cpu", "x", 1, 1, 0, {"1000": 1.0}, {"fp32": 1.0, "fp16": 1.0, "bf16": 1.0})
    workload = Workload({"M": 100, "K": 100, "N": 100}, "fp32", 5)
    compute, memory, roof = floor(workload, "matmul", hardware)
    assert compute == pytest.approx(5 * 2e6 / 1e6)
    assert memory == pytest.approx(5 * 3 * 4e4 / 1e3)
    assert roof == memory
