"""Every Triton starter: the judge's five stages in Triton's interpreter, and compiled for GPUs that are not here.

The interpreter's rule for bf16: as it comes, it cuts float32 to bf16 where a GPU rounds to nearest even, doubles bf16's
denormals, and its tl.dot multiplies the bit patterns of bf16 as if they were numbers. So runners here mend all three
before the kernel loads (``MENDED``, which also makes it faster), and bf16 is then held to the judge's own tolerances
like the other dtypes; a GPU remains the judge of it.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from autokernel import assets, registry
from autokernel.backends.triton import BACKEND
from autokernel.evaluate.cases import STAGES, Case
from autokernel.evaluate.pool import Handle
from autokernel.evaluate.stages import Examination, Failed
from autokernel.evaluate.workshop import Workshop
from autokernel.proposers import _tune
from autokernel.types import DTYPES, Problem, Status, Workload

from .extent import ALL, REASON, only_with_all

FOLDER = assets.root() / "kernels" / "triton"
FILES = sorted([*FOLDER.glob("*.py"), *FOLDER.glob("sm*/*.py")])
Compiled = Future[subprocess.CompletedProcess[str]]
MOST_LINES = 300
# in the interpreter, 8 s each
SLOW = {"fused_mlp", "sm90/fused_mlp", "flash_attention", "sm90/flash_attention", "cross_entropy"}
MENDED = """
import numpy as _np
import triton.language as _tl
from triton.runtime import interpreter as _interpreter

def _mend():
    convert, dot = _interpreter._convert_float, _interpreter.InterpreterBuilder.create_dot

    def rounding(data, source, target, mode):
        if source == _tl.bfloat16 and target == _tl.float32:
            return (_np.ascontiguousarray(data).astype(_np.uint32) << 16).view(_np.float32)
        if source == _tl.float32 and target == _tl.bfloat16:
            bits = _np.ascontiguousarray(data).view(_np.uint32)
            nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(_np.uint16)
            return _np.where(_np.isnan(data), _np.uint16(0x7FC0), nearest)
        return convert(data, source, target, mode)

    def widened(handle):
        if handle.dtype.scalar != _tl.bfloat16:
            return handle
        return _interpreter.TensorHandle(rounding(handle.data, _tl.bfloat16, _tl.float32, None), _tl.float32)

    patch, launch, patched = _interpreter._patch_lang, _interpreter.GridExecutor.__call__, set()

    def patched_once(function):  # by every call of a function inside a kernel, milliseconds each
        if function not in patched:
            patched.add(function)
            return patch(function)

    def launched(self, *args, **kwargs):
        patched.clear()
        return launch(self, *args, **kwargs)

    _interpreter._patch_lang, _interpreter.GridExecutor.__call__ = patched_once, launched
    _interpreter._convert_float = rounding
    _interpreter.InterpreterBuilder.create_dot = lambda self, a, b, *rest: dot(self, widened(a), widened(b), *rest)

_mend()
"""

pytestmark = pytest.mark.skipif(bool(BACKEND.missing()), reason=f"no Triton here: {BACKEND.missing()}")


def name_of(path: Path) -> str:
    return str(path.relative_to(FOLDER).with_suffix(""))


@pytest.fixture(params=FILES, ids=name_of)
def path(request: pytest.FixtureRequest) -> Path:
    chosen: Path = request.param
    return chosen


@pytest.fixture
def problem(path: Path) -> Problem:
    loaded: Problem = registry.load("problems", path.stem)
    return loaded


@pytest.fixture
def source(path: Path) -> str:
    return path.read_text()


# ---------------------------------------------------------------------------------------------- what it says of itself


def test_there_is_a_portable_starter_for_each_problem() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == set(registry.names("problems"))


def test_one_for_the_architecture_is_preferred() -> None:
    assert assets.starter("softmax", "triton", "sm90") == FOLDER / "softmax.py"
    assert assets.starter("matmul", "triton") == FOLDER / "matmul.py"
    assert assets.starter("matmul", "triton", "sm90") == FOLDER / "sm90" / "matmul.py"
    assert assets.starter("matmul", "triton", "sm75") == FOLDER / "matmul.py"


def test_the_file_states_what_it_is(source: str, problem: Problem) -> None:
    tree = ast.parse(source)
    module = {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    assert {"KERNEL_TYPE": problem.name, "BACKEND": "triton"}.items() <= module.items()
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "kernel_fn")
    names = [argument.arg for argument in function.args.args]
    values = [ast.literal_eval(default) for default in function.args.defaults]
    theirs = inspect.signature(problem.reference).parameters
    assert names == list(theirs)
    assert values == [p.default for p in theirs.values() if p.default is not inspect.Parameter.empty]
    header = ast.get_docstring(tree) or ""
    assert "Bytes:" in header and "lops:" in header and "float16" in header, "shapes, dtypes, bytes and flops"
    assert "Another GPU should revisit" in header
    assert len(source.splitlines()) <= MOST_LINES
    assert "autokernel" not in source and "atomic" not in source and "autotune" not in source


def test_the_policy_lets_it_through(source: str) -> None:
    assert BACKEND.check(ast.parse(source)) is None


def test_its_tunables_span_a_search_space(source: str) -> None:
    constants = _tune.constants(source)
    written = [line for line in source.splitlines() if "# tune:" in line]
    assert len(constants) == len(written) >= 3, "a tune comment does not read as one"
    for constant in constants:
        assert len(constant.choices) >= 2 and constant.value in constant.choices and constant.note, constant.name
        assert source.count(constant.name) >= 2, f"{constant.name} is not used"


# ------------------------------------------------------------------------------------------------- the five stages


class Spread(Examination):
    """The examination, spread thin: the interpreter takes milliseconds for each step of a kernel. All cases of smoke,
    shapes (the four smallest) and determinism; of the other stages every case in one dtype, all dtypes in turn.
    """

    def __init__(self, problem: Problem, handle: Handle) -> None:
        shapes = tuple(sorted(problem.shapes["cpu"], key=lambda dims: problem.bytes(Workload(dims, "fp32")))[:4])
        super().__init__(
            dataclasses.replace(problem, shapes={**problem.shapes, "cpu": shapes}), handle, "cpu", BACKEND.aten
        )
        self.seen: dict[str, set[str]] = {}
        self._turn = 0

    def check(self, stage: str, case: Case, generator: torch.Generator) -> None:
        if stage in ("stability", "edges") and not case.name.startswith("held-out"):
            turn, self._turn = self._turn, self._turn + 1
            if (turn // 3 + turn) % 3:  # cases come dtype by dtype
                return
        super().check(stage, case, generator)
        self.seen.setdefault(stage, set()).add(case.dtype)


def examined(workshop: Workshop, source: str, problem: Problem, seed: int) -> Spread:
    """The judge's examination of a source in a confined runner. Raises Failed as it does."""
    handle: Handle = workshop.start(MENDED + source, "triton")
    exam = Spread(problem, handle)
    try:
        exam.run_all((), seed)
    finally:
        exam.close()
        handle.close()
    return exam


def test_it_passes_all_five_stages_in_the_interpreter(
    workshop: Workshop, path: Path, source: str, problem: Problem
) -> None:
    if not ALL and name_of(path) in SLOW:
        pytest.skip(REASON)
    exam = examined(workshop, source, problem, seed=20)
    assert set(exam.errors) == {"smoke", "shapes", "stability", "edges"} and max(exam.errors.values()) <= 1
    assert all(exam.seen[stage] == set(DTYPES) for stage in STAGES if stage != "smoke"), exam.seen


def test_halves_of_all_sizes_through_descriptors(workshop: Workshop) -> None:
    """Hopper's product takes pointers where the interpreter could follow: here its large path takes everything."""
    source = (FOLDER / "sm90" / "matmul.py").read_text()
    large = source.replace("    if m == 1:", "    return BM, 64, BK, WARPS, STAGES, 1, True\n    if m == 1:")
    assert large != source
    exam = examined(workshop, large, registry.load("problems", "matmul"), seed=22)
    assert all({"fp16", "bf16"} <= exam.seen[stage] for stage in STAGES if stage != "smoke"), exam.seen


@only_with_all
@pytest.mark.parametrize("name", ["matmul", "sm90/matmul", "fused_mlp", "sm90/fused_mlp", "sm90/flash_attention"])
def test_little_calls_take_the_way_of_large_ones(workshop: Workshop, name: str) -> None:
    """Little and odd calls share compilations, and most that the interpreter could follow are such: here none is."""
    path = FOLDER / f"{name}.py"
    source, found = re.subn(r"^(LITTLE|ODD) = 1 << \d+", r"\1 = 0", path.read_text(), flags=re.MULTILINE)
    assert found == 1
    source = source.replace(" and keys >= 256", "")
    examined(workshop, source, registry.load("problems", path.stem), seed=25)


def test_rows_of_all_lengths_read_twice(workshop: Workshop) -> None:
    """Wide rows are, where there are a thousand of them, more than the interpreter could follow: here all rows are."""
    source = (FOLDER / "rmsnorm.py").read_text()
    twice = source.replace("if columns > LONG_ROW or", "if columns > 0 or").replace(
        "LONG_BLOCK = 4096", "LONG_BLOCK = 512"
    )
    assert twice.count("columns > 0 or") == twice.count("= 512  # tune: 2048") == 1
    examined(workshop, twice, registry.load("problems", "rmsnorm"), seed=24)
    with pytest.raises(Failed):
        wrong = twice.replace("EVEN: tl.constexpr = columns % BLOCK == 0", "EVEN: tl.constexpr = columns > 0")
        examined(workshop, wrong, registry.load("problems", "rmsnorm"), seed=24)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("rmsnorm", "/ columns + eps", "/ (columns + 1) + eps"),  # 1/64 off in the smallest row
        ("softmax", "x = tl.load(x_ptr + row * x_stride", "x = tl.load(x_ptr + row * columns"),
        ("matmul", "a_at += BK * a_k", "a_at += (BK - 1) * a_k"),
        ("matmul", "EVEN_K=k % bk == 0", "EVEN_K=True"),  # no odd operand comes this way
        ("fused_mlp", "EVEN_K=hidden % bk == 0", "EVEN_K=True"),
    ],
)
def test_a_broken_starter_is_refused(workshop: Workshop, name: str, right: str, wrong: str) -> None:
    """What the stages above are worth: the same files with one mistake each."""
    file = assets.starter(name, "triton")
    assert file is not None and right in file.read_text()
    with pytest.raises(Failed) as failure:
        examined(workshop, file.read_text().replace(right, wrong), registry.load("problems", name), seed=21)
    assert failure.value.status in (Status.SMOKE, Status.SHAPES, Status.EDGES)


# ------------------------------------------------------------------------------------------------- compiled ahead


def compiled(path: Path, folder: Path, arch: str = "90") -> subprocess.CompletedProcess[str]:
    """The file compiled for this architecture, in a process of its own; binaries lie in the folder."""
    environment = {**os.environ, **BACKEND.environment(str(folder))}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(Path(__file__).with_name("compile_ahead.py")), str(path), arch]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def architecture(path: Path) -> str:
    """Where this file is the one that is used: a portable file with a sibling for Hopper is for what came before."""
    return "80" if (FOLDER / "sm90" / path.name).is_file() and path.parent == FOLDER else "90"


@pytest.fixture(scope="module", autouse=True)
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[Path, tuple[Path, Compiled]]]:
    """The folder of each file's binaries, which are built while the interpreter's tests run."""
    place = tmp_path_factory.mktemp("binaries")
    with ThreadPoolExecutor(max_workers=1) as compiler:
        folders = {path: place / path.parent.name / path.stem for path in FILES}
        yield {p: (folder, compiler.submit(compiled, p, folder, architecture(p))) for p, folder in folders.items()}
        compiler.shutdown(cancel_futures=True)


def test_it_compiles_without_spilling(path: Path, binaries: Mapping[Path, tuple[Path, Compiled]]) -> None:
    folder, compiling = binaries[path]
    done = compiling.result()
    assert done.returncode == 0, done.stderr[-2000:]
    evidence = BACKEND.evidence(folder)
    kernels = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
    assert evidence and set(evidence) <= kernels
    for kernel, figures in evidence.items():
        assert figures["spill_bytes"] == 0, (kernel, figures)
        assert 16 <= figures["registers"] <= 255 and figures["shared_bytes"] <= 227 << 10, (kernel, figures)
        assert 0 < figures["occupancy"] <= 1 and figures["warps"] <= 32 and figures["variants"] >= 1, (kernel, figures)
