"""What a candidate is called on in each of the five stages: shapes, adversaries, edges, a model's own workloads."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping

import torch

from autokernel.types import Dims, DType, Problem, Scalar, Workload

STAGES = ("smoke", "shapes", "stability", "determinism", "edges")
HELD_OUT_SHAPES = 3
SMALL_FLOPS = 1e9  # of a workload that is run three times for determinism


@dataclasses.dataclass(frozen=True)
class Case:
    """One call to check. ``make`` draws the inputs; ``random_inputs`` says that the mean square rule applies."""

    name: str
    dims: Dims
    dtype: DType
    scalars: Mapping[str, Scalar]
    make: Callable[[Dims, DType, torch.Generator], tuple[torch.Tensor, ...]]
    strides: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    random_inputs: bool = True


def plan(
    problem: Problem, kind: str, workloads: tuple[Workload, ...], rng: random.Random, off: frozenset[str] = frozenset()
) -> dict[str, list[Case]]:
    """The cases of every stage, on a device of this kind; ``off`` names defences that a test has switched off."""
    smoke = case_of(problem, problem.shapes[kind][0], workloads[0].dtype if workloads else problem.dtypes[0])
    held_out = [] if "held-out" in off else list(_held_out(problem, rng))
    found = {
        "smoke": [smoke],
        "shapes": list(_shapes(problem, kind, workloads)),
        "stability": list(_stability(problem)),
        "determinism": list(_determinism(problem, kind, workloads)),
        "edges": list(_edges(problem)),
    }
    found = {stage: [] if stage in off else cases for stage, cases in found.items()}
    return {**found, "edges": found["edges"] + held_out}


def case_of(problem: Problem, dims: Dims, dtype: DType, scalars: Mapping[str, Scalar] | None = None) -> Case:
    """A case of random inputs."""
    name = f"{'x'.join(f'{n}{v}' for n, v in dims.items())} {dtype}"
    return Case(name, dims, dtype, {**problem.scalars, **(scalars or {})}, problem.make_inputs)


def _real(problem: Problem, work: Workload) -> Case:
    case = case_of(problem, work.dims, work.dtype, work.scalars)
    return dataclasses.replace(case, name=f"workload {work.key}", strides=work.strides)


def _shapes(problem: Problem, kind: str, workloads: tuple[Workload, ...]) -> Iterator[Case]:
    for dims in problem.shapes[kind]:
        for dtype in problem.dtypes:
            yield case_of(problem, dims, dtype)
    for work in workloads:
        yield _real(problem, work)


def _stability(problem: Problem) -> Iterator[Case]:
    for adversary in problem.adversarial:
        for dtype in problem.dtypes:
            case = case_of(problem, adversary.dims, dtype, adversary.scalars)
            yield dataclasses.replace(case, name=f"{adversary.name} {dtype}", make=adversary.make, random_inputs=False)


def _determinism(problem: Problem, kind: str, workloads: tuple[Workload, ...]) -> Iterator[Case]:
    middle = problem.shapes[kind][len(problem.shapes[kind]) // 2]
    for dtype in problem.dtypes:
        yield case_of(problem, middle, dtype)
    for work in [w for w in workloads if problem.flops(w) < SMALL_FLOPS][:1]:
        yield _real(problem, work)


def _edges(problem: Problem) -> Iterator[Case]:
    for dims in problem.edge_shapes:
        for dtype in problem.dtypes:
            yield case_of(problem, dims, dtype)
    base = problem.shapes["cpu"][len(problem.shapes["cpu"]) // 2]
    for scalars in problem.edge_scalars:
        for dtype in problem.dtypes:
            case = case_of(problem, base, dtype, scalars)
            yield dataclasses.replace(case, name=f"{case.name} {dict(scalars)}")
    for dtype in problem.dtypes if problem.strided else ():
        yield dataclasses.replace(case_of(problem, base, dtype), name=f"strided {dtype}", strides={"*": ()})


def _held_out(problem: Problem, rng: random.Random) -> Iterator[Case]:
    for _ in range(HELD_OUT_SHAPES):
        case = case_of(problem, problem.held_out(rng), rng.choice(problem.dtypes))
        yield dataclasses.replace(case, name=f"held-out {case.name}")
