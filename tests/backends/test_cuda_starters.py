"""Every CUDA starter of kernels/cuda: compiled by nvcc without a spill, its arithmetic held to the judge on the CPU.

No GPU is needed: starters go through the judge's cases in an emulation (cuda_on_cpu.h, hopper_on_cpu.h). By default
few are compiled, for one architecture, and most run in one dtype: half a minute. ``make starters`` compiles all for all
architectures, and runs every dtype, and the tunables' other ends.
"""

from __future__ import annotations

import ast
import os
import random
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import tvm_ffi.cpp
import tvm_ffi.cpp.extension
from tvm_ffi.libinfo import find_dlpack_include_path, find_include_path

from autokernel import assets, registry
from autokernel.backends import _light_nvcc, cuda
from autokernel.backends.cuda import BACKEND
from autokernel.proposers import _tune
from autokernel.types import DTYPES, Dims, DType, Problem

from .emulation import built
from .extent import ALL, REASON, only_with_all
from .test_cpp_starters import check, generator, layouts, middle

FOLDER = assets.root() / "kernels" / "cuda"
PORTABLE = sorted(FOLDER.glob("*.py"))
HOPPER = sorted(FOLDER.glob("sm90/*.py"))
MOST_LINES = 550  # on Hopper three ways: wgmma for halves, FFMA for float32, a cluster for one row, and their launchers
SLOW_PAIRS = 5_000  # pairs of query and key: more take the emulation longer than a default run has
LONG: dict[str, Sequence[Dims]] = {  # rows that no registers hold, columns that several blocks share
    "softmax": ({"R": 2, "C": 70001}, {"R": 7, "C": 66000}, {"R": 2, "C": 20000}, {"R": 7, "C": 20001}),
    "layernorm": ({"R": 2, "C": 40001},),
    "rmsnorm": ({"R": 2, "C": 40001},),
    "cross_entropy": ({"R": 1, "V": 50257},),
    "reduce": ({"R": 2, "C": 70001}, {"R": 12, "C": 65536}, {"R": 7001, "C": 70}, {"R": 300, "C": 3001}),
    "matmul": ({"M": 130, "K": 70, "N": 900}, {"M": 1, "K": 1100, "N": 300}),
}


def name_of(path: Path) -> str:
    return str(path.relative_to(FOLDER).with_suffix(""))


# (starter, architecture) that are compiled by default, and (starter, dtype) that run by default
COMPILED = {("sm90/matmul", "90a")}
SLOW = {"fused_mlp", "flash_attention", "matmul"}
RUN = {"fp16": {p.stem for p in PORTABLE} - SLOW, "fp32": {"softmax"}, "bf16": {"matmul"}}

pytestmark = pytest.mark.skipif(cuda._nvcc() is None, reason="no nvcc")


def toolkit_headers() -> Path:
    nvcc = cuda._nvcc()
    assert nvcc is not None
    return nvcc.parent.parent / "include"


@pytest.fixture(params=[*PORTABLE, *HOPPER], ids=name_of)
def path(request: pytest.FixtureRequest) -> Path:
    chosen: Path = request.param
    return chosen


def kernel_of(source: str) -> Callable[..., torch.Tensor]:
    function: Callable[..., torch.Tensor] = built(source, toolkit_headers()).kernel_fn
    return function


def compiled(source: str, arch: str, folder: Path, *, clean: bool = True) -> dict[str, dict[str, int]]:
    """What nvcc makes of a file's CUDA source, as load_inline would have it built: registers, stack, shared memory. The
    light header must be enough for it.
    """
    nvcc = cuda._nvcc()
    assert nvcc is not None
    said: dict[str, Any] = {}

    def record(name: str, **options: Any) -> SimpleNamespace:
        said.update(options)
        return SimpleNamespace(**dict.fromkeys(options["functions"]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tvm_ffi.cpp, "load_inline", record)
        exec(compile(source, "candidate.py", "exec"), {"__name__": "candidate"})
    text = tvm_ffi.cpp.extension._decorate_with_tvm_ffi(said["cuda_sources"], dict.fromkeys(said["functions"], ""))
    (folder / "cuda.cu").write_text(text)
    includes = [f"-I{find_include_path()}", f"-I{find_dlpack_include_path()}"]
    command = [str(_light_nvcc.toolkit(nvcc) / "bin" / "nvcc"), *_light_nvcc.parallel_flags(nvcc), "-std=c++17", "-O2"]
    command += [f"-gencode=arch=compute_{arch},code=sm_{arch}", *includes, "-MD", "-MF", "cuda.d"]
    done = subprocess.run(
        [*command, *said.get("extra_cuda_cflags", []), "-cubin", "cuda.cu", "-o", "cuda.cubin"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert not clean or "warning" not in done.stderr, done.stderr[-3000:]
    assert _light_nvcc.HEADER.name in (folder / "cuda.d").read_text()
    return cuda.resources(b"\0" + (folder / "cuda.cubin").read_bytes())


# ------------------------------------------------------------------------------------------------- what a file says


def test_there_is_a_starter_for_each_problem() -> None:
    assert {path.stem for path in PORTABLE} == set(registry.names("problems"))


@pytest.mark.parametrize("path", [*PORTABLE, *HOPPER], ids=name_of)
def test_the_file_states_what_it_is_and_the_policy_lets_it_through(path: Path) -> None:
    source = path.read_text()
    tree = ast.parse(source)
    said = {
        node.targets[0].id: node.value.value  # type: ignore[attr-defined]
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    }
    assert (said["KERNEL_TYPE"], said["BACKEND"]) == (path.stem, "cuda")
    header = ast.get_docstring(tree) or ""
    assert all(word in header for word in ("Bytes:", "Flops:", "float16", "Other GPUs:"))
    assert len(source.splitlines()) <= MOST_LINES
    assert "fast_math" not in source and "autokernel" not in source and "atomicAdd" not in source
    assert BACKEND.check(tree) is None


@pytest.mark.parametrize("path", [*PORTABLE, *HOPPER], ids=name_of)
def test_its_tunables_span_a_search_space(path: Path) -> None:
    source = path.read_text()
    constants = _tune.constants(source)
    assert len(constants) == sum("# tune:" in line for line in source.splitlines()) >= 2
    for constant in constants:
        assert len(constant.choices) >= 2 and constant.value in constant.choices and constant.note, constant.name


def test_a_library_is_refused() -> None:
    source = 'SOURCE = "void launch() { cutlass::gemm::device::Gemm g; }"\n\ndef kernel_fn(x):\n    return x\n'
    assert "cutlass" in (BACKEND.check(ast.parse(source)) or "")


# ------------------------------------------------------------------------------------------------- nvcc


@pytest.mark.parametrize("arch", ["80", "90a", "100a"])
@pytest.mark.parametrize("path", [*PORTABLE, *HOPPER], ids=name_of)
def test_it_compiles_without_a_spill(path: Path, arch: str, tmp_path: Path) -> None:
    if path in HOPPER and arch != "90a":
        pytest.skip("for Hopper alone")
    if not ALL and (name_of(path), arch) not in COMPILED:
        pytest.skip(REASON)
    kernels = compiled(path.read_text(), arch, tmp_path)
    assert kernels
    for name, used in kernels.items():
        assert used["spill_bytes"] == 0 and 0 < used["registers"] <= 255, (name, used)


SPILLING = """
extern "C" __global__ void __launch_bounds__(1024) spilling(float* x, int n) {
  __shared__ float shared[100];
  float kept[96];
  #pragma unroll
  for (int i = 0; i < 96; ++i) kept[i] = x[i * n + threadIdx.x];
  shared[threadIdx.x % 100] = kept[0];
  __syncthreads();
  #pragma unroll
  for (int i = 0; i < 96; ++i) x[i * n + threadIdx.x] = kept[95 - i] * kept[i] + shared[i % 7 + threadIdx.x % 90];
}
"""


def test_evidence_is_what_the_compiler_reports(tmp_path: Path) -> None:
    """Registers, stack and shared memory read from a library are the figures that ptxas prints."""
    (tmp_path / "spilling.cu").write_text(SPILLING)
    environment = {**os.environ, **BACKEND.environment(str(tmp_path))}
    target = "-gencode=arch=compute_90a,code=sm_90a"
    command = [str(cuda._nvcc()), target, "-Xptxas=-v", "-Xcompiler=-fPIC", "-c", "spilling.cu", "-o", "spilling.so"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    (used,) = BACKEND.evidence(tmp_path).values()
    assert used["variants"] == 1
    assert f"Used {used['registers']} registers" in done.stderr
    assert f"{used['spill_bytes']} bytes stack frame" in done.stderr and used["spill_bytes"] > 0
    assert f"{used['shared_bytes']} bytes smem" in done.stderr and used["shared_bytes"] == 400


def test_evidence_does_not_trust_what_it_reads(tmp_path: Path) -> None:
    """A candidate's process wrote these files: a pipe, a link, and headers that point nowhere."""
    os.mkfifo(tmp_path / "pipe.so")
    (tmp_path / "link.so").symlink_to("/dev/zero")
    header = cuda.ELF_HEADER.pack(b"\x7fELF", 2, cuda.EM_CUDA, 1, 0, 1 << 60, 1 << 60, 0, 64, 56, 5, 64, 9, 1 << 15)
    (tmp_path / "elf.so").write_bytes(b"\0" + header + b"\x7fELF")
    assert BACKEND.evidence(tmp_path) == {}


# ------------------------------------------------------------------------------------------------- on the CPU


def small(dims: Dims) -> bool:
    """Attention grows with the square of its length: the emulation takes its short ones."""
    return ALL or "T" not in dims or dims["S"] * dims["T"] * max(1, dims["B"]) * dims["H"] <= SLOW_PAIRS


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_judges_cases_on_the_cpu(path: Path, dtype: DType) -> None:
    """Shapes, edges, held-out shapes, adversarial inputs, scalars, strides, and three equal runs."""
    if not ALL and name_of(path) not in RUN[dtype]:
        pytest.skip(REASON)
    problem: Problem = registry.load("problems", path.stem)
    kernel, rng = kernel_of(path.read_text()), random.Random(5)
    for dims in filter(small, problem.shapes["cpu"]):
        check(problem, kernel, problem.make_inputs(dims, dtype, generator()), dtype, {}, dims, statistical=True)
    edges = [*problem.edge_shapes, *LONG.get(path.stem, ()), *(problem.held_out(rng) for _ in range(4))]
    for scalars in ({}, *problem.edge_scalars):
        for dims in filter(small, edges):
            check(problem, kernel, problem.make_inputs(dims, dtype, generator()), dtype, scalars, (dims, scalars))
        for number, tensors in enumerate(layouts(problem.make_inputs(middle(problem), dtype, generator()))):
            check(problem, kernel, tensors, dtype, scalars, f"layout {number} {scalars}")
    for adversary in problem.adversarial:
        tensors = adversary.make(adversary.dims, dtype, generator(11))
        check(problem, kernel, tensors, dtype, adversary.scalars, adversary.name)
    tensors = problem.make_inputs(middle(problem), dtype, generator())
    first, *others = (kernel(*tensors).contiguous().view(-1).view(torch.uint8) for _ in range(3))
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("path", [p for p in (*PORTABLE, *HOPPER) if p.stem == "matmul"], ids=name_of)
def test_large_tiles_of_a_transposed_weight(path: Path) -> None:
    """The sweep's transposed matrices are small: here are several whole tiles, in B's other layout."""
    problem: Problem = registry.load("problems", "matmul")
    kernel = kernel_of(path.read_text())
    a, b = problem.make_inputs({"M": 260, "K": 200, "N": 600}, "fp16", generator())
    check(problem, kernel, (a, b.t().contiguous().t()), "fp16", {}, "transposed", statistical=True)


def test_a_target_beyond_the_classes_is_no_number() -> None:
    """Nothing beyond the row is read, and the mistake shows: the loss is NaN."""
    path = assets.starter("cross_entropy", "cuda")
    assert path is not None
    loss = kernel_of(path.read_text())(torch.zeros(3, 5), torch.tensor([5, 4, 9]))
    assert loss.isnan()


@only_with_all
def test_other_values_of_all_tunables_are_right(path: Path) -> None:
    """Every constant at the choice that is furthest from its own, at once: each must be live, and none be special."""
    source = path.read_text()
    values = {
        constant.name: constant.choices[0 if 2 * constant.index >= len(constant.choices) else -1]
        for constant in _tune.constants(source)
    }
    problem: Problem = registry.load("problems", path.stem)
    kernel = kernel_of(_tune.with_values(source, values))
    for dtype in DTYPES:
        for dims in filter(small, [*problem.shapes["cpu"], *problem.edge_shapes, *LONG.get(path.stem, ())]):
            check(problem, kernel, problem.make_inputs(dims, dtype, generator()), dtype, {}, (dims, values))


def test_the_emulation_sees_a_lane_left_out() -> None:
    source = (FOLDER / "rmsnorm.py").read_text()
    broken = source.replace("lane > 0; lane /= 2", "lane > 1; lane /= 2")
    assert broken != source
    problem: Problem = registry.load("problems", "rmsnorm")
    with pytest.raises(AssertionError, match="exceeds the budget"):
        check(problem, kernel_of(broken), problem.make_inputs({"R": 4, "C": 128}, "fp32", generator()), "fp32", {}, "")


@only_with_all
def test_the_emulation_sees_a_copy_that_nobody_waits_for() -> None:
    source = (FOLDER / "matmul.py").read_text()
    broken = source.replace("    copy_async_wait<STAGES - 2>();\n", "")
    assert broken != source
    problem: Problem = registry.load("problems", "matmul")
    inputs = problem.make_inputs({"M": 64, "K": 64, "N": 64}, "fp16", generator())
    with pytest.raises(AssertionError, match="NaN"):
        check(problem, kernel_of(broken), inputs, "fp16", {}, "")


@only_with_all
@pytest.mark.parametrize(
    ("right", "wrong", "seen"),
    [
        ("  cluster_sync();\n  for", "  for", "NaN"),
        ("r < ROW_BLOCKS; ++r", "r < ROW_BLOCKS - 1; ++r", "exceeds the budget"),
    ],
    ids=["blocks that do not wait", "a block left out"],
)
def test_the_emulation_sees_what_a_cluster_misses(right: str, wrong: str, seen: str) -> None:
    source = (FOLDER / "sm90" / "matmul.py").read_text()
    assert source.count(right) == 1
    problem: Problem = registry.load("problems", "matmul")
    inputs = problem.make_inputs({"M": 1, "K": 1100, "N": 300}, "fp16", generator())
    with pytest.raises(AssertionError, match=seen):
        check(problem, kernel_of(source.replace(right, wrong)), inputs, "fp16", {}, "", statistical=True)
