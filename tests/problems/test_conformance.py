"""What every problem promises, held over each file of the folder: a new one is tested without an edit here."""

from __future__ import annotations

import inspect
import itertools
import random
from collections.abc import Mapping

import pytest
import torch

from autokernel import registry
from autokernel.evaluate.correctness import expected, mismatch
from autokernel.problems._common import LOOSE, TORCH_DTYPES
from autokernel.types import DTYPES, AdversarialInput, Dims, DType, Problem, Scalar, Window, Workload

NAMES = registry.names("problems")
KINDS = ("cpu", "cuda")
MOST_CPU_FLOPS = 1.5e9  # of a sweep's largest shape, and 4 times this of a whole sweep: well under a second a dtype
Tensors = tuple[torch.Tensor, ...]


@pytest.fixture(params=NAMES)
def problem(request: pytest.FixtureRequest) -> Problem:
    loaded: Problem = registry.load("problems", request.param)
    return loaded


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scalar_sets(problem: Problem) -> list[dict[str, Scalar]]:
    return [dict(problem.scalars), *({**problem.scalars, **edge} for edge in problem.edge_scalars)]


def middle(problem: Problem) -> Dims:
    return problem.shapes["cpu"][len(problem.shapes["cpu"]) // 2]


def in_double(tensors: Tensors) -> Tensors:
    return tuple(t.double() if t.is_floating_point() else t for t in tensors)


def test_a_problem_is_there_for_each_oracle_of_the_house() -> None:
    assert {"softmax", "layernorm", "rmsnorm", "reduce", "cross_entropy", "rotary_embedding"} <= set(NAMES)


def test_the_record_agrees_with_its_file_and_its_signature(problem: Problem) -> None:
    assert problem.name in NAMES
    assert registry.load("problems", problem.name) is problem
    assert problem.summary.strip() and problem.tolerance_reason.strip()
    parameters = inspect.signature(problem.reference).parameters
    names = list(parameters)
    assert tuple(names[: len(problem.inputs)]) == problem.inputs
    defaults = {name: parameters[name].default for name in names[len(problem.inputs) :]}
    assert defaults == dict(problem.scalars)
    for scalars in [*problem.edge_scalars, *(a.scalars for a in problem.adversarial)]:
        assert set(scalars) <= set(problem.scalars)
    assert set(problem.tolerances) == set(DTYPES)
    for dtype, tolerance in problem.tolerances.items():
        assert 0 < tolerance.atol <= LOOSE[dtype].atol and 0 < tolerance.rtol <= LOOSE[dtype].rtol
    assert "eager" in problem.baselines and set(problem.baselines) <= {"eager", "library"}


def test_the_sweep_is_wide_and_cheap_enough_for_its_device(problem: Problem) -> None:
    for kind in KINDS:
        shapes = problem.shapes[kind]
        assert 8 <= len(shapes) <= 10
        assert len({tuple(sorted(dims.items())) for dims in shapes}) == len(shapes), "a shape is there twice"
    costs = [problem.flops(Workload(dims, "fp32", scalars=problem.scalars)) for dims in problem.shapes["cpu"]]
    assert max(costs) <= MOST_CPU_FLOPS and sum(costs) <= 4 * MOST_CPU_FLOPS


def test_the_edges_hold_odd_sizes_ones_and_nothing(problem: Problem) -> None:
    sizes = {size for dims in problem.edge_shapes for size in dims.values()}
    assert {1, 1023, 1537, 4097} <= sizes
    assert any(0 in dims.values() for dims in problem.edge_shapes)


@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_are_contiguous_random_and_given_by_the_generator(problem: Problem, dtype: DType) -> None:
    first, again, other = (problem.make_inputs(middle(problem), dtype, generator(seed)) for seed in (1, 1, 2))
    assert len(first) == len(problem.inputs)
    for name, tensor, same, different in zip(problem.inputs, first, again, other, strict=True):
        assert tensor.device.type == "cpu" and tensor.is_contiguous(), name
        assert tensor.dtype == TORCH_DTYPES[dtype] or not tensor.is_floating_point(), name
        assert torch.equal(tensor, same) and not torch.equal(tensor, different), name
        assert tensor.numel() < 8 or len(tensor.unique()) > tensor.numel() ** 0.5 / 4, f"{name} is hardly random"


@pytest.mark.parametrize("dtype", DTYPES)
def test_baselines_are_right_on_every_shape(problem: Problem, dtype: DType) -> None:
    for dims, scalars in itertools.product([*problem.shapes["cpu"], *problem.edge_shapes], scalar_sets(problem)):
        tensors = problem.make_inputs(dims, dtype, generator())
        before = tuple(t.clone() for t in tensors)
        want = expected(problem, tensors, scalars, 0, "cpu")
        for name, baseline in problem.baselines.items():
            out = baseline(*tensors, **scalars)
            assert out.dtype == TORCH_DTYPES[dtype] and out.shape == want.oracle.shape, (name, dims, scalars)
            _, wrong = mismatch(out, want, LOOSE[dtype], statistical=False)
            assert wrong is None, (name, dims, scalars, wrong)
        assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True)), "an input was written to"


def test_the_oracle_runs_in_double_precision(problem: Problem) -> None:
    tensors = problem.make_inputs(middle(problem), "fp32", generator())
    oracle = problem.reference(*in_double(tensors), **problem.scalars)
    mine = problem.reference(*tensors, **problem.scalars)
    assert oracle.dtype is torch.float64
    assert mine.dtype is torch.float32 and mine.shape == oracle.shape
    assert not torch.equal(mine.double(), oracle), "no digit beyond float32: something inside is narrower"
    assert torch.allclose(mine.double(), oracle, rtol=1e-3, atol=1e-3 * float(oracle.abs().max()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_are_those_of_inputs_and_output(problem: Problem, dtype: DType) -> None:
    for dims, scalars in itertools.product(problem.shapes["cpu"], scalar_sets(problem)):
        tensors = problem.make_inputs(dims, dtype, generator())
        out = problem.reference(*tensors, **scalars)
        total = sum(t.numel() * t.element_size() for t in (*tensors, out))
        assert problem.bytes(Workload(dims, dtype, scalars=scalars)) == total, dims


def test_flops_grow_with_every_size(problem: Problem) -> None:
    """Doubling a size costs more, or, for sizes that only say which of the inputs are shared, the same."""
    dims = middle(problem)
    base = problem.flops(Workload(dims, "fp32", scalars=problem.scalars))
    assert base > 0
    doubled = [problem.flops(Workload({**dims, n: 2 * v}, "fp32", scalars=problem.scalars)) for n, v in dims.items()]
    assert min(doubled) >= base and max(doubled) >= 2 * base


def test_held_out_shapes_are_new_and_can_be_made(problem: Problem) -> None:
    rng = random.Random(3)
    drawn = [problem.held_out(rng) for _ in range(40)]
    assert len({tuple(sorted(dims.items())) for dims in drawn}) > 20
    for dims in drawn[:5]:
        assert set(middle(problem)) <= set(dims) and min(dims.values()) > 0
        tensors = problem.make_inputs(dims, "fp32", generator())
        assert problem.reference(*tensors, **problem.scalars).numel() > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_adversarial_inputs_are_fair_and_unlike_random_ones(problem: Problem, dtype: DType) -> None:
    """PyTorch itself has the oracle's infinities and NaNs there, and something finite is left to compare."""
    assert len({a.name for a in problem.adversarial}) == len(problem.adversarial) >= 3
    for adversary in problem.adversarial:
        tensors = adversary.make(adversary.dims, dtype, generator())
        usual = problem.make_inputs(adversary.dims, dtype, generator())
        assert [(t.shape, t.dtype) for t in tensors] == [(t.shape, t.dtype) for t in usual], adversary.name
        assert any(not torch.equal(t, u) for t, u in zip(tensors, usual, strict=True)), adversary.name
        check_fair(problem, adversary, tensors, dtype)


def check_fair(problem: Problem, adversary: AdversarialInput, tensors: Tensors, dtype: DType) -> None:
    scalars: Mapping[str, Scalar] = {**problem.scalars, **adversary.scalars}
    want = expected(problem, tensors, scalars, 0, "cpu")
    limit = torch.finfo(TORCH_DTYPES[dtype]).max
    assert (want.oracle.isfinite() & (want.oracle.abs() <= limit)).any(), adversary.name
    own = problem.reference(*tensors, **scalars)
    _, wrong = mismatch(own, want, problem.tolerances[dtype], statistical=False)
    if wrong and "NaN" in wrong and dtype != "fp32":
        pytest.skip(f"PyTorch itself loses a NaN in {dtype} on this processor")
    assert wrong is None, (adversary.name, wrong)


@pytest.mark.parametrize("position", [0, -1])
def test_a_window_that_is_the_problem_is_recognised(problem: Problem, position: int) -> None:
    """Whatever the order of the tensors, one of the proposals gives the reference's numbers, and by views alone."""
    tensors = in_double(problem.make_inputs(middle(problem), "fp32", generator()))
    for scalars in scalar_sets(problem):
        oracle = problem.reference(*tensors, **scalars)
        order = list(itertools.permutations(range(len(tensors))))[position]
        offered = [tensors[i] for i in order]
        window = Window(tuple(t.to("meta") for t in offered), oracle.to("meta"), tuple(scalars.values()))
        found = []
        for binding in problem.propose_bindings(window):
            inputs = binding.adapt(*offered)
            owners = {t.untyped_storage().data_ptr() for t in offered}
            assert all(t.untyped_storage().data_ptr() in owners for t in inputs), "adapt copied"
            out = binding.restore(problem.reference(*inputs, **binding.scalars), *offered)
            if out.shape == oracle.shape and torch.allclose(out, oracle, rtol=1e-9, atol=1e-12):
                found.append(binding)
        assert found, f"none of the proposals gives {scalars}"
        flops = {problem.flops(Workload(b.dims, "fp32", scalars=b.scalars)) for b in found}
        assert problem.flops(Workload(middle(problem), "fp32", scalars=scalars)) in flops


def test_a_window_that_cannot_be_the_problem_is_left_alone(problem: Problem) -> None:
    integers = torch.empty(4, 6, dtype=torch.int64, device="meta")
    assert not problem.propose_bindings(Window((integers,), integers))
    floats = torch.empty(4, 6, device="meta")
    assert not problem.propose_bindings(Window((), floats))
    assert not problem.propose_bindings(Window((floats,), torch.empty(5, 7, 3, device="meta")))
    assert not problem.propose_bindings(Window((floats,) * 7, floats))
