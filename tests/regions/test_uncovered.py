"""Regions that no built-in problem covers: what is a region, what is printed of it, and that it is found again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from autokernel import registry
from autokernel.regions import capture, match, model
from autokernel.regions.capture import Capture
from autokernel.regions.match import Match
from autokernel.regions.model import execute
from autokernel.regions.profiler import OpTime, Timing
from autokernel.regions.uncovered import Shelf, with_uncovered
from autokernel.types import Problem, is_file, kernel_type

MODEL = Path(__file__).parent.parent / "models" / "uncovered.py"


def captured(dtype: str = "fp32") -> Capture:
    torch._dynamo.reset()
    return capture.capture(model.load(MODEL, "cpu", dtype))  # type: ignore[arg-type]


def timed(capture: Capture, us: Callable[[str], float] = lambda name: 1.0) -> Timing:
    """As if each node had taken this long."""
    nodes = {
        (g.index, n.name): (OpTime("aten::op", us(n.name), 1.0),)
        for g in capture.graphs
        for n in g.nodes
        if n.op in ("call_function", "call_method") and n.name not in g.free
    }
    return Timing(nodes, (), 100.0)


@dataclasses.dataclass(frozen=True)
class Found:
    capture: Capture
    matches: list[Match]

    def of(self, part: str) -> list[Match]:
        return [m for m in self.matches if part in kernel_type(m.problem)]


def find(folder: Path, dtype: str = "fp32") -> Found:
    graphs = captured(dtype)
    covered = match.match(graphs)
    return Found(graphs, with_uncovered(graphs, covered, timed(graphs), Shelf(folder, "uncovered.py")))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return find(tmp_path_factory.mktemp("shelf"))


def printed(one: Match) -> ModuleType:
    return execute(Path(one.problem))


def inner(one: Match) -> Callable[..., torch.Tensor]:
    """The model's own nodes of a place as a function of their inputs."""
    from torch import fx

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        values = dict(zip(one.inputs, tensors, strict=True))
        for node in one.nodes:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n])
            method = node.op == "call_method"
            values[node] = (
                getattr(args[0], node.target)(*args[1:], **kwargs) if method else node.target(*args, **kwargs)
            )
        return values[one.output]

    return run


def test_equal_programs_are_one_problem_with_a_workload_a_shape(found: Found) -> None:
    norms = found.of("tanh")
    assert len(norms) == 2 and len({m.problem for m in norms}) == 1
    assert [m.workload.dims for m in norms] == [{"B": 2, "R": 24, "C": 96}, {"B": 2, "R": 24, "C": 192}]
    assert [m.module_path for m in norms] == ["first", "second"]
    assert {n.name for m in norms for n in m.inputs} >= {"l_x_", "l_residual_"}


def test_a_softmax_is_taken_in_with_its_mask_and_scale(found: Found) -> None:
    (one,) = found.of("softmax")
    assert is_file(one.problem) and len(one.nodes) == 3
    source = Path(one.problem).read_text()
    assert "torch.softmax(" in source and "masked_fill" in source
    assert "torch.ones(R, C, dtype=torch.bool).triu(1)" in source  # the mask as it is, not any bits
    assert [str(m.problem) for m in found.matches if m.problem == "softmax"] == []


def test_a_softmax_that_little_surrounds_stays_a_softmax(tmp_path: Path) -> None:
    graphs = captured()
    covered = match.match(graphs)
    (softmax,) = (m for m in covered if m.problem == "softmax")
    much = timed(graphs, lambda name: 100.0 if name == softmax.output.name else 1.0)
    left = with_uncovered(graphs, covered, much, Shelf(tmp_path, "uncovered.py"))
    assert [m.nodes for m in left if m.problem == "softmax"] == [softmax.nodes]


def test_what_costs_little_is_left_alone(tmp_path: Path) -> None:
    graphs = captured()
    covered = match.match(graphs)
    cheap = timed(graphs, lambda name: 1e4 if name.startswith("linear") else 1.0)
    assert with_uncovered(graphs, covered, cheap, Shelf(tmp_path, "x.py")) == covered
    assert not list(tmp_path.iterdir())


def test_regions_share_no_node_and_hold_no_product(found: Found) -> None:
    nodes = [n.name for m in found.matches for n in m.nodes]
    assert len(nodes) == len(set(nodes))
    own = [n for m in found.matches if is_file(m.problem) for n in m.nodes]
    names = {str(getattr(n.target, "__name__", n.target)) for n in own}
    assert not names & {"linear", "sort"} and "gelu" in names


def test_what_is_no_loop_is_a_region_too(found: Found) -> None:
    (one,) = found.of("cumsum")
    assert [str(getattr(n.target, "__name__", n.target)) for n in one.nodes] == ["flip", "cumsum"]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_printed_reference_is_the_models_own_code(tmp_path: Path, dtype: str) -> None:
    own = [m for m in find(tmp_path, dtype).matches if is_file(m.problem)]
    assert len(own) >= 4
    for one in own:
        problem: Problem = registry.load("problems", one.problem)
        assert problem.dtypes == (dtype,)
        tensors = problem.make_inputs(one.workload.dims, problem.dtypes[0], torch.Generator().manual_seed(3))
        assert torch.equal(problem.reference(*tensors), inner(one)(*tensors))
        assert [tuple(t.shape) for t in tensors] == [tuple(n.meta["example_value"].shape) for n in one.inputs]
        exact = problem.reference(*(t.double() if t.is_floating_point() else t for t in tensors))
        assert exact.dtype == torch.float64  # no cast of the model's rounds the oracle


def test_an_inputs_values_are_like_the_models(found: Found) -> None:
    (one,) = found.of("softmax")
    problem: Problem = registry.load("problems", one.problem)
    scores, temperature, _ = problem.make_inputs(one.workload.dims, "fp32", torch.Generator().manual_seed(0))
    assert 0.8 < float(scores.std()) < 1.2
    assert temperature.shape == () and 0.25 < float(temperature) < 0.6  # 0.3 in the model, and never exactly


def test_costs_are_counted_from_the_graph(found: Found) -> None:
    one = found.of("tanh")[0]
    problem: Problem = registry.load("problems", one.problem)
    elements = 2 * 24 * 96
    assert problem.bytes(one.workload) == 4 * (3 * elements + 96)  # two inputs and the output once, the weight
    assert 8 * elements <= problem.flops(one.workload) <= 9 * elements


def test_a_program_is_found_again_and_only_where_it_is_the_same(found: Found, tmp_path: Path) -> None:
    problem: Problem = registry.load("problems", found.of("tanh")[0].problem)
    again = captured()
    places = [m for g in again.graphs for m in match.match_graph(g, [problem], again.model.device, {})]
    assert [m.workload.key for m in places] == [m.workload.key for m in found.of("tanh")]
    source = Path(problem.name).read_text()
    other_eps = tmp_path / "other.py"  # another program: no node of the graph says 1e-4
    other_eps.write_text(source.replace("1e-05", "0.0001"))
    other_code = tmp_path / "code.py"  # the same program, and a reference that computes something else
    head, _, code = source.partition("def reference")
    other_code.write_text(head + "def reference" + code.replace("1e-05", "0.0001"))
    for path in (other_eps, other_code):
        changed = registry.load("problems", str(path))
        assert not [m for g in again.graphs for m in match.match_graph(g, [changed], again.model.device, {})]


def test_names_and_files_do_not_collide(found: Found) -> None:
    paths = {m.problem for m in found.matches if is_file(m.problem)}
    stems = {kernel_type(p) for p in paths}
    assert len(stems) == len(paths) and all(s.isidentifier() for s in stems)
    assert not stems & set(registry.names("problems"))
