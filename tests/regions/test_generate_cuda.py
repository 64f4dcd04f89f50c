"""CUDA starters that are written from a region's loops: the judge's cases in an emulation on the CPU, nvcc, a device.

By default the cases that differ most run, and one is compiled, for one architecture. ``make starters`` runs and
compiles all, the latter for all architectures, and runs the tunables' other ends.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from autokernel import registry
from autokernel.backends import cuda
from autokernel.evaluate.cases import plan
from autokernel.evaluate.client import Assignment, JudgeClient, JudgeOptions
from autokernel.evaluate.stages import bits
from autokernel.proposers import _tune
from autokernel.regions import generate
from autokernel.types import Problem, Status, Target, Workload, kernel_type

from ..backends.extent import ALL, only_with_all
from ..backends.test_cpp_starters import check, generator, layouts
from ..backends.test_cuda_starters import compiled, kernel_of
from .test_generate import CASES, HEAD, problem_of

MORE = {
    "three_dtypes": """
DTYPES = ("fp32", "fp16", "bf16")

def reference(x, weight, keep):
    scaled = torch.where(keep, x, 0.0) * weight
    return F.silu(F.layer_norm(scaled, (x.shape[-1],))) + x

def make_inputs(R=9, C=267):
    return [torch.randn(R, C), torch.rand(C) + 0.5, torch.rand(R, C) < 0.9]
""",
    "rows_of_a_warp_and_more": """
def reference(x, y):
    return torch.softmax(x, -1) * y.abs().sum(-1, keepdim=True) + torch.exp2(y) - y.sign()

def make_inputs(A=3, R=2, C=3000):
    return [torch.randn(A, R, C), torch.randn(R, C)]
""",
    "flat": """
def reference(x, y, kind, scale):
    near = F.gelu(x) * torch.rsqrt(y * y + 1.0) + torch.isnan(y)
    return torch.where(kind > 2, near * scale, x.pow(1.5) - kind)

def make_inputs(C=9001):
    return [torch.rand(C), torch.randn(C), torch.randint(0, 6, (C,)), torch.rand(()) + 0.5]
""",
}
RUN = ("three_dtypes", "rows_of_a_warp_and_more", "flat", "moments", "channels")
EVERY = (*MORE, *CASES)
COMPILED = [(name, arch) for name in EVERY for arch in ("80", "90a", "100a")] if ALL else [("three_dtypes", "90a")]

needs_nvcc = pytest.mark.skipif(cuda._nvcc() is None, reason="no nvcc")
every_case = pytest.mark.parametrize("name", EVERY)
chosen_cases = pytest.mark.parametrize("name", EVERY if ALL else RUN)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The problems as files, so that each starter is generated once."""
    found = tmp_path_factory.mktemp("problems")
    for name in CASES:
        problem_of(found, name)
    for name, text in MORE.items():
        (found / f"{name}.py").write_text(HEAD + text)
    return found


def told(folder: Path, name: str) -> tuple[Problem, str]:
    problem: Problem = registry.load("problems", str(folder / f"{name}.py"))
    source = generate.starter(problem.name, "cuda")
    assert source is not None
    return problem, source


def judge_on_the_cpu(problem: Problem, source: str) -> None:
    """The judge's cases of every stage, and every layout of the inputs. Raises AssertionError."""
    kernel: Callable[..., torch.Tensor] = kernel_of(source)
    for stage, cases in plan(problem, "cpu", (), random.Random(5)).items():
        for case in cases:
            tensors = case.make(case.dims, case.dtype, generator(11))
            out = check(problem, kernel, tensors, case.dtype, case.scalars, case.name, statistical=stage == "shapes")
            if stage == "determinism":
                assert torch.equal(bits(out), bits(kernel(*tensors))), case.name
    for dtype in problem.dtypes:
        for number, tensors in enumerate(layouts(problem.make_inputs({}, dtype, generator()))):
            check(problem, kernel, tensors, dtype, {}, f"layout {number}")


# ------------------------------------------------------------------------------------------------- what a file says


@every_case
def test_the_file_states_what_it_is_and_the_policy_lets_it_through(name: str, folder: Path) -> None:
    source = told(folder, name)[1]
    tree = ast.parse(source)
    said = {n.targets[0].id: n.value for n in tree.body if isinstance(n, ast.Assign)}  # type: ignore[attr-defined]
    assert (ast.literal_eval(said["KERNEL_TYPE"]), ast.literal_eval(said["BACKEND"])) == (name, "cuda")
    header = ast.get_docstring(tree) or ""
    assert all(word in header for word in ("Bytes:", "Flops:", "Other GPUs:", " -> ["))
    assert cuda.BACKEND.check(tree) is None
    constants = _tune.constants(source)
    assert len(constants) == sum("# tune:" in line for line in source.splitlines()) >= 2
    assert all(c.value in c.choices and c.note and source.count(c.name) >= 3 for c in constants), "a constant is dead"


def test_bytes_and_flops_follow_from_the_operations(folder: Path) -> None:
    header = ast.get_docstring(ast.parse(told(folder, "functions")[1])) or ""
    assert "Bytes: 3·R·C · itemsize + 8·R·C," in header  # x, y, the output; kind is of int64
    header = ast.get_docstring(ast.parse(told(folder, "norm_half")[1])) or ""
    assert "Bytes: (2·R·C + C) · itemsize," in header
    assert "Flops: 7·R·C + 3·R." in header  # square, sum, two products, silu's two, a sum; mean, eps, rsqrt


def test_long_rows_have_the_largest_block(folder: Path) -> None:
    assert "THREADS = 1024 " in told(folder, "long_rows")[1]
    assert "THREADS = 256 " in told(folder, "rows_of_a_warp_and_more")[1]


# ------------------------------------------------------------------------------------------------- on the CPU


@needs_nvcc
@chosen_cases
def test_the_judges_cases_on_the_cpu(name: str, folder: Path) -> None:
    judge_on_the_cpu(*told(folder, name))


@needs_nvcc
@only_with_all
@pytest.mark.parametrize("end", [0, -1])
@chosen_cases
def test_other_values_of_all_tunables_are_right(name: str, end: int, folder: Path) -> None:
    problem, source = told(folder, name)
    judge_on_the_cpu(problem, _tune.with_values(source, {c.name: c.choices[end] for c in _tune.constants(source)}))


@needs_nvcc
@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("moments", "lane > 0; lane /= 2", "lane > 1; lane /= 2"),  # a lane left out
        ("masked_softmax", "Larger()(v", "Sum()(v"),
        ("flat", "(columns - first + step - 1) / step", "(columns - first) / step"),  # the last column of some threads
    ][: 3 if ALL else 1],
)
def test_the_emulation_sees_what_is_wrong(name: str, before: str, after: str, folder: Path) -> None:
    problem, source = told(folder, name)
    assert before in source
    with pytest.raises(AssertionError):
        judge_on_the_cpu(problem, source.replace(before, after))


def test_what_cpp_has_no_word_for_is_no_starter(tmp_path: Path) -> None:
    path = tmp_path / "powers.py"
    path.write_text(HEAD + "def reference(x, n):\n    return x * (n & 6)\n\ndef make_inputs(R=4, C=5):\n")
    with path.open("a") as file:
        file.write("    return [torch.randn(R, C), torch.randint(0, 9, (R, C))]\n")
    assert generate.starter(str(path), "cuda") is None


# ------------------------------------------------------------------------------------------------- nvcc and a device


@needs_nvcc
@pytest.mark.parametrize(("name", "arch"), COMPILED)
def test_it_compiles(name: str, arch: str, folder: Path, tmp_path: Path) -> None:
    problem, source = told(folder, name)
    kernels = compiled(source, arch, tmp_path)
    assert len(kernels) == len(problem.dtypes)
    for used in kernels.values():  # a division of 64 bits is a call, which has a frame; a sine keeps a table on it
        assert used["spill_bytes"] <= 32 and 0 < used["registers"] <= 64, used


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JudgeClient]:
    with JudgeClient(tmp_path_factory.mktemp("judge") / "scratch", JudgeOptions(device="cuda")) as client:
        yield client


@pytest.mark.gpu
@needs_nvcc
@chosen_cases
def test_the_judge_passes_it_on_a_gpu(name: str, folder: Path, judge: JudgeClient) -> None:
    problem, source = told(folder, name)
    work = Workload(problem.shapes["cuda"][-1], problem.dtypes[0])
    target = Target(kernel_type(problem.name), problem.name, "cuda", (work,), share=0.1, eager_us=100.0, floor_us=1.0)
    verdict = judge.evaluate(Assignment(target, source)).verdict
    assert verdict.status is Status.PASS, (verdict.status, verdict.reason, verdict.log_tail)
