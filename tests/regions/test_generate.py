"""Starters that are written from a region's loops, held to the judge's own five stages in a confined runner."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from autokernel import registry
from autokernel.evaluate.stages import Examination, Failed
from autokernel.evaluate.workshop import Workshop
from autokernel.proposers import _tune
from autokernel.regions import generate, sizes
from autokernel.regions.loops import NotLoops
from autokernel.regions.lower import lower
from autokernel.types import Problem

from ..backends.extent import ALL

HEAD = "import torch\nimport torch.nn.functional as F\n\n\n"
CASES = {
    "norm": """
def reference(x, r, weight):
    h = x + 0.5 * r
    return torch.tanh(h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5)) * weight + h

def make_inputs(B=2, R=5, C=70):
    return [torch.randn(B, R, C), torch.randn(B, R, C), torch.rand(C) + 0.5]
""",
    "norm_half": """
def reference(x, weight):
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
    return weight * scaled.to(x.dtype) + F.silu(x)

def make_inputs(R=9, C=67):
    return [torch.randn(R, C, dtype=torch.bfloat16), torch.rand(C, dtype=torch.bfloat16) + 0.5]
""",
    "masked_softmax": """
def reference(x, temperature, mask):
    return torch.softmax((x * temperature).masked_fill(mask, float("-inf")), -1)

def make_inputs(A=2, B=3, R=8, C=40):
    return [torch.randn(A, B, R, C), torch.rand(()) + 0.5, torch.rand(R, C) < 0.3]
""",
    "epilogue_half": """
def reference(x, bias, gate):
    return (F.gelu(x + bias) + F.gelu(x, approximate="tanh")) * torch.sigmoid(gate)

def make_inputs(R=6, C=130):
    return [torch.randn(R, C, dtype=torch.float16), torch.randn(C, dtype=torch.float16),
            torch.randn(R, C, dtype=torch.float16)]
""",
    "moments": """
def reference(x, weight, bias):
    y = F.layer_norm(x, (x.shape[-1],)) * weight + bias
    return (y - y.amin(-1, keepdim=True)) / (1.0 + x.std(-1, keepdim=True) + y.amax(-1, keepdim=True).abs())

def make_inputs(R=7, C=64):
    return [torch.randn(R, C), torch.rand(C) + 0.5, torch.randn(C)]
""",
    "loss": """
def reference(x, y):
    return F.mse_loss(x, y) + F.smooth_l1_loss(x, y)

def make_inputs(R=12, C=50):
    return [torch.randn(R, C), torch.randn(R, C)]
""",
    "channels": """
def reference(x, weight):
    return x * torch.sigmoid(x.mean((2, 3), keepdim=True) * weight[:, None, None])

def make_inputs(A=2, B=3, R=5, C=11):
    return [torch.randn(A, B, R, C), torch.randn(B)]
""",
    "columns_first": """
def reference(x, weight):
    return torch.softmax(x * weight[:, None], 0)

def make_inputs(R=6, C=33):
    return [torch.randn(R, C), torch.randn(R)]
""",
    "transposed": """
def reference(x, y):
    return x * 2.0 + y.T

def make_inputs(C=37):
    return [torch.randn(C, C), torch.randn(C, C)]
""",
    "functions": """
def reference(x, y, kind):
    a = torch.where(kind > 2, torch.log1p(x.abs()) + torch.expm1(-y.abs()), x.clamp(-1, 1) ** 3)
    return a + torch.maximum(x, y) * torch.minimum(x, y) - F.softplus(y) + F.relu(x) + torch.erf(x) + x.cos() + y.sin()

def make_inputs(R=9, C=45):
    return [torch.randn(R, C), torch.randn(R, C), torch.randint(0, 6, (R, C))]
""",
    "quantised": """
def reference(x, y):
    whole = torch.round(x / 0.25).clamp(-128, 127).to(torch.int8)  # a step that both precisions hold exactly
    return whole.to(x.dtype) * 0.25 + y

def make_inputs(R=9, C=45):
    return [torch.randn(R, C), torch.randn(R, C)]
""",
    "long_rows": """
def reference(x, y):
    return torch.logsumexp(x + y, -1, keepdim=True) - x.amax(-1, keepdim=True)

def make_inputs(R=2, C=20000):
    return [torch.randn(R, C), torch.randn(R, C)]
""",
}

BUILT = ("norm", "norm_half", "masked_softmax", "loss", "long_rows", "functions")  # a compiler's three seconds each


def problem_of(folder: Path, name: str) -> Problem:
    path = folder / f"{name}.py"
    path.write_text(HEAD + CASES[name])
    problem: Problem = registry.load("problems", str(path))
    return problem


def source_of(problem: Problem, backend: str) -> str:
    source = generate.starter(problem.name, backend)
    assert source is not None
    return source


def examine(workshop: Workshop, problem: Problem, source: str, backend: str) -> dict[str, float]:
    """The judge's five stages. Raises Failed as it does."""
    assert registry.load("backends", backend).check(ast.parse(source)) is None
    handle = workshop.start(source, backend)
    exam = Examination(problem, handle, "cpu", registry.load("backends", backend).aten)
    try:
        exam.run_all((), seed=7)
    finally:
        exam.close()
        handle.close()
    return exam.errors


@pytest.mark.parametrize(
    ("name", "backend"), [(name, "triton") for name in CASES] + [(name, "cpp") for name in (CASES if ALL else BUILT)]
)
def test_a_starter_passes_the_five_stages(name: str, backend: str, workshop: Workshop, tmp_path: Path) -> None:
    problem = problem_of(tmp_path, name)
    source = source_of(problem, backend)
    errors = examine(workshop, problem, source, backend)
    assert set(errors) == {"smoke", "shapes", "stability", "edges"}


def test_a_starter_that_is_wrong_by_a_little_fails(workshop: Workshop, tmp_path: Path) -> None:
    problem = problem_of(tmp_path, "norm")
    source = source_of(problem, "cpp")
    assert "r_v * 0.5f" in source
    with pytest.raises(Failed):
        examine(workshop, problem, source.replace("r_v * 0.5f", "r_v * 0.501f"), "cpp")


@pytest.mark.parametrize("backend", ["cpp", "triton"])
def test_its_tunables_span_a_search_space(backend: str, tmp_path: Path) -> None:
    source = source_of(problem_of(tmp_path, "norm"), backend)
    constants = _tune.constants(source)
    assert len(constants) == sum("# tune:" in line for line in source.splitlines()) >= 2
    assert all(c.value in c.choices and source.count(c.name) >= 2 for c in constants)


@pytest.mark.parametrize("backend", generate.LANGUAGES)
def test_what_would_leave_the_machine_idle_begins_as_pytorch(backend: str, tmp_path: Path) -> None:
    loss = "def reference(x, y):\n    return (x - y).square().mean()\n\ndef make_inputs(R={}, C=1024):\n"
    loss += "    return [torch.randn(R, C), torch.randn(R, C)]\n"
    for name, rows, there in (("small", 8, True), ("large", 128, False)):  # all of it is one row
        (tmp_path / f"{name}.py").write_text(HEAD + loss.format(rows))
        assert (generate.starter(str(tmp_path / f"{name}.py"), backend) is not None) is there


@pytest.mark.parametrize("backend", generate.LANGUAGES)
def test_an_owners_own_names_of_sizes_do_no_harm(backend: str, tmp_path: Path) -> None:
    path = tmp_path / "owned.py"
    path.write_text(HEAD + CASES["long_rows"].replace("R=2, C=20000", "n=2, m=20000").replace("R, C", "n, m"))
    assert generate.starter(str(path), backend) is not None


def test_a_backend_without_a_generator_has_no_starter(tmp_path: Path) -> None:
    assert generate.starter(problem_of(tmp_path, "norm").name, "torch") is None


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: x.cumsum(-1) + y,  # no loop
        lambda x, y: x.mean(-1, keepdim=True) + y.mean(0, keepdim=True),  # two directions
        lambda x, y: x + x.T + y,  # a dimension meets itself
        lambda x, y: (x + y).reshape(-1),  # dimensions merge
        lambda x, y: x + y + torch.arange(6, dtype=x.dtype),  # a size in the code
        lambda x, y: x @ y.T @ y,
        lambda x, y: x[:, :3] + y[:, 3:],
    ],
)
def test_what_is_not_rows_and_columns_is_refused(function: object) -> None:
    shapes, dtypes = [(6, 6), (6, 6)], [torch.float32] * 2
    with pytest.raises(NotLoops):
        lower(function, sizes.find(function, shapes, dtypes), dtypes)  # type: ignore[arg-type]


def test_a_divisor_that_follows_from_sizes_is_told_from_one_in_the_code() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return x.sum(-1, keepdim=True) / 3.0 + F.layer_norm(x, (x.shape[-1],))

    found = sizes.find(function, [(4, 3)], [torch.float32])
    loops = lower(function, found, [torch.float32])
    divisors = [v.args[1] for v in loops.values if v.op == "div"]
    assert 3.0 in divisors and any(getattr(d, "sizes", None) == ("C",) for d in divisors)


def test_what_is_costly_and_needed_twice_is_kept() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x * 2.0, -1)

    loops = lower(function, sizes.find(function, [(4, 8)], [torch.float32]), [torch.float32])
    assert [v.op for v in loops.worth_keeping()] == ["exp"]
    assert [[v.op for v in each] for each in loops.passes()] == [["max"], ["sum"]]


def test_generated_triton_compiles_for_a_gpu(tmp_path: Path) -> None:
    for name in CASES:
        problem_of(tmp_path, name)
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "triton")
    command = [sys.executable, str(Path(__file__).with_name("compile_generated.py")), "90"]
    paths = [str(tmp_path / f"{name}.py") for name in CASES]
    done = subprocess.run([*command, *paths], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == list(CASES)
