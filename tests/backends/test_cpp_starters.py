"""Every C++ starter of kernels/cpp, held to what the judge will ask of it: a new file is tested without an edit."""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from autokernel import assets, registry
from autokernel.backends.cpp import BACKEND
from autokernel.evaluate.correctness import expected, mismatch
from autokernel.evaluate.memory import relaid
from autokernel.evaluate.stages import odd_strides
from autokernel.problems._common import TORCH_DTYPES
from autokernel.proposers import _tune
from autokernel.types import DTYPES, Dims, DType, Problem, Scalar

FILES = sorted((assets.root() / "kernels" / "cpp").glob("*.py"))
MOST_LINES = 300
Tensors = tuple[torch.Tensor, ...]

pytestmark = pytest.mark.skipif(bool(BACKEND.missing()), reason=f"cannot build C++ here: {BACKEND.missing()}")


@pytest.fixture(scope="module", autouse=True)
def precompiled_headers() -> Iterator[None]:
    """The compiler as runners have it: a third of the time of each build."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", BACKEND.environment("")["CXX"])
        yield


@functools.cache
def built(source: str) -> SimpleNamespace:
    """The file's names after it ran as the runner runs it: on its own. tvm_ffi keeps what it built by its hash."""
    names: dict[str, object] = {"__name__": "candidate"}
    exec(compile(source, "candidate.py", "exec"), names)
    return SimpleNamespace(**names)


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
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


@pytest.fixture
def kernel(source: str) -> Callable[..., torch.Tensor]:
    function: Callable[..., torch.Tensor] = built(source).kernel_fn
    return function


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def middle(problem: Problem) -> Dims:
    return problem.shapes["cpu"][len(problem.shapes["cpu"]) // 2]


@contextlib.contextmanager
def nothing_left_over() -> Iterator[None]:
    """New tensors hold NaN: what a kernel leaves out must not be right because an earlier call's output lay there."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def check(
    problem: Problem,
    kernel: Callable[..., torch.Tensor],
    tensors: Tensors,
    dtype: DType,
    scalars: Mapping[str, Scalar],
    case: object,
    *,
    statistical: bool = False,
) -> torch.Tensor:
    """One call, held to the judge's rule; the output. The inputs must be left as they were."""
    used = {**problem.scalars, **scalars}
    before = tuple(t.clone() for t in tensors)
    want = expected(problem, tensors, used, 0, "cpu")
    with nothing_left_over():
        out = kernel(*tensors, **used)
    assert out.dtype == TORCH_DTYPES[dtype] and out.shape == want.oracle.shape, case
    _, wrong = mismatch(out, want, problem.tolerances[dtype], statistical=statistical)
    assert wrong is None, (case, dtype, wrong)
    for name, tensor, copy in zip(problem.inputs, tensors, before, strict=True):
        assert torch.equal(tensor.nan_to_num(), copy.nan_to_num()), f"{case}: {name} was written to"
    owners = {t.untyped_storage().data_ptr() for t in tensors if t.numel()}
    assert not out.numel() or out.untyped_storage().data_ptr() not in owners, f"{case}: the output is an input"
    return out


def test_there_is_a_starter_for_each_problem() -> None:
    assert {path.stem for path in FILES} == set(registry.names("problems"))


def test_the_file_states_what_it_is(source: str, problem: Problem) -> None:
    module = built(source)
    assert {"KERNEL_TYPE": problem.name, "BACKEND": "cpp"}.items() <= vars(module).items()
    mine, theirs = (inspect.signature(f).parameters for f in (module.kernel_fn, problem.reference))
    assert list(mine) == list(theirs)
    assert {n: p.default for n, p in mine.items()} == {n: p.default for n, p in theirs.items()}
    header = ast.get_docstring(ast.parse(source)) or ""
    assert "Bytes:" in header and "lops:" in header and "float16" in header, "shapes, dtypes, bytes and flops"
    assert len(source.splitlines()) <= MOST_LINES
    assert "fast-math" not in source and "autokernel" not in source


def test_the_policy_lets_it_through(source: str) -> None:
    assert BACKEND.check(ast.parse(source)) is None


def test_its_tunables_span_a_search_space(source: str) -> None:
    constants = _tune.constants(source)
    written = [line for line in source.splitlines() if "# tune:" in line]
    assert len(constants) == len(written) >= 2, "a tune comment does not read as one"
    for constant in constants:
        assert len(constant.choices) >= 2 and constant.value in constant.choices, constant.name
        assert constant.name == "CFLAGS" or constant.note, f"{constant.name} does not say what it is"


@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes(problem: Problem, kernel: Callable[..., torch.Tensor], dtype: DType) -> None:
    for dims in problem.shapes["cpu"]:
        check(problem, kernel, problem.make_inputs(dims, dtype, generator()), dtype, {}, dims, statistical=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_edges(problem: Problem, kernel: Callable[..., torch.Tensor], dtype: DType) -> None:
    rng = random.Random(5)
    for dims in [*problem.edge_shapes, *(problem.held_out(rng) for _ in range(4))]:
        check(problem, kernel, problem.make_inputs(dims, dtype, generator()), dtype, {}, dims)
    for scalars in problem.edge_scalars:
        for dims in [middle(problem), *problem.edge_shapes]:
            check(problem, kernel, problem.make_inputs(dims, dtype, generator()), dtype, scalars, (dims, scalars))


@pytest.mark.parametrize("dtype", DTYPES)
def test_adversarial_inputs(problem: Problem, kernel: Callable[..., torch.Tensor], dtype: DType) -> None:
    for adversary in problem.adversarial:
        tensors = adversary.make(adversary.dims, dtype, generator(11))
        check(problem, kernel, tensors, dtype, adversary.scalars, adversary.name)


def layouts(tensors: Tensors) -> Sequence[Tensors]:
    """The same values as the judge lays them out, the other way round, with every last step doubled, and with
    repeated rows (which changes the values)."""
    return (
        tuple(odd_strides(t, i) for i, t in enumerate(tensors)),
        tuple(odd_strides(t, i + 1) for i, t in enumerate(tensors)),
        tuple(relaid(t, [2 * s for s in t.stride()]) for t in tensors),
        tuple(relaid(t, [0, *t.stride()[1:]]) if t.dim() > 1 else t for t in tensors),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides(problem: Problem, kernel: Callable[..., torch.Tensor], dtype: DType) -> None:
    for scalars in ({}, *problem.edge_scalars):
        for number, tensors in enumerate(layouts(problem.make_inputs(middle(problem), dtype, generator()))):
            check(problem, kernel, tensors, dtype, scalars, f"layout {number} {scalars}")


@pytest.mark.parametrize("dtype", DTYPES)
def test_three_runs_are_bitwise_equal(problem: Problem, kernel: Callable[..., torch.Tensor], dtype: DType) -> None:
    tensors = problem.make_inputs(middle(problem), dtype, generator())
    first, *others = (kernel(*tensors).contiguous().view(-1).view(torch.uint8) for _ in range(3))
    assert all(torch.equal(first, other) for other in others)


def test_cross_entropy_refuses_a_target_beyond_the_classes() -> None:
    """It must not read past the row: PyTorch refuses such a target, too."""
    path = assets.starter("cross_entropy", "cpp")
    assert path is not None
    with pytest.raises(IndexError, match="2 targets are not below the number of classes, 5"):
        built(path.read_text()).kernel_fn(torch.zeros(3, 5), torch.tensor([5, 4, 9]))


def test_other_values_of_all_tunables_are_right(source: str, problem: Problem) -> None:
    """Every constant at the choice that is furthest from its own, at once: each must be live, and none be special."""
    values = {
        constant.name: constant.choices[0 if 2 * constant.index >= len(constant.choices) else -1]
        for constant in _tune.constants(source)
    }
    kernel = built(_tune.with_values(source, values)).kernel_fn
    for dtype in DTYPES:
        for dims in problem.shapes["cpu"]:
            check(problem, kernel, problem.make_inputs(dims, dtype, generator()), dtype, {}, (dims, values))
        for adversary in problem.adversarial:
            tensors = adversary.make(adversary.dims, dtype, generator(11))
            check(problem, kernel, tensors, dtype, adversary.scalars, (adversary.name, values))
