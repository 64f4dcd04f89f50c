"""Regions that round on the way: found, printed, and judged so that a tie may fall either way and nothing else may."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from autokernel import registry
from autokernel.evaluate.cases import plan
from autokernel.evaluate.correctness import Expected, expected, mismatch
from autokernel.evaluate.stages import Failed
from autokernel.evaluate.workshop import Workshop
from autokernel.regions import capture, generate, match, model, uncovered
from autokernel.regions.capture import Capture
from autokernel.regions.match import Match
from autokernel.regions.profiler import OpTime, Timing
from autokernel.regions.uncovered import Shelf, with_uncovered
from autokernel.types import Problem, Tolerance, is_file

from .test_generate import examine

MODEL = Path(__file__).parent.parent / "models" / "quantised.py"
STEP = 0.05

Kernel = Callable[..., torch.Tensor]
Tensor = torch.Tensor


def captured(dtype: str = "fp32") -> Capture:
    torch._dynamo.reset()
    return capture.capture(model.load(MODEL, "cpu", dtype))  # type: ignore[arg-type]


def found(folder: Path, dtype: str = "fp32") -> list[Match]:
    """The model's own regions, each node as if it took as long as any other."""
    graphs = captured(dtype)
    nodes = {
        (g.index, n.name): (OpTime("aten::op", 1.0, 1.0),)
        for g in graphs.graphs
        for n in g.nodes
        if n.op in ("call_function", "call_method") and n.name not in g.free
    }
    every = with_uncovered(graphs, match.match(graphs), Timing(nodes, (), 100.0), Shelf(folder, "quantised.py"))
    return [m for m in every if is_file(m.problem)]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from threads, and on a busy machine they wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def regions(tmp_path_factory: pytest.TempPathFactory) -> list[Match]:
    return found(tmp_path_factory.mktemp("shelf"))


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> list[Match]:
    """The same regions of the model in bfloat16."""
    return found(tmp_path_factory.mktemp("half"), "bf16")


@pytest.fixture(scope="module")
def problems(regions: list[Match]) -> dict[str, Problem]:
    loaded = [registry.load("problems", m.problem) for m in regions]
    return dict(zip(("constant", "rows"), loaded, strict=True))


def test_a_region_grows_through_roundings_and_says_so(regions: list[Match]) -> None:
    assert [len(m.nodes) for m in regions] == [5, 12]
    operations = [{str(getattr(n.target, "__name__", n.target)) for n in m.nodes} for m in regions]
    assert {"round", "clamp"} <= operations[0] and {"amax", "round", "to"} <= operations[1]
    assert all("\nJUMPS = True\n" in Path(m.problem).read_text() for m in regions)
    assert all(registry.load("problems", m.problem).jumps for m in regions)


def test_no_problem_that_comes_with_the_package_has_jumps() -> None:
    assert not any(registry.load("problems", name).jumps for name in registry.names("problems"))


def test_such_a_region_is_found_again_by_its_file(regions: list[Match], half: list[Match]) -> None:
    for dtype, first in (("fp32", regions), ("bf16", half)):
        printed = [registry.load("problems", m.problem) for m in first]
        again = captured(dtype)
        places = [m for g in again.graphs for m in match.match_graph(g, printed, again.model.device, {})]
        assert [(m.problem, m.workload.key) for m in places] == [(m.problem, m.workload.key) for m in first]
        assert len(places) == 2


def test_a_jump_that_the_judge_cannot_watch_is_no_part_of_a_region(tmp_path: Path) -> None:
    """PyTorch's own fake quantisation, where what is rounded is not to be seen; and an argmax."""
    own = tmp_path / "model.py"
    hidden = "torch.fake_quantize_per_tensor_affine(wide, STEP, 0, -128, 127) * 1.0"
    source = MODEL.read_text().replace("torch.clamp(torch.round(wide / STEP), -128, 127) * STEP", hidden)
    most = "torch.gather(x, -1, torch.cumsum(x, -1).argmax(-1, keepdim=True))"
    own.write_text(source.replace("* step + x", f"* step + {most}"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "MODEL", own)
        regions = found(tmp_path / "shelf")
        (graph,) = captured().graphs
    kind = uncovered._Kinds(graph)
    hidden_ones = [n for n in graph.nodes if "fake_quantize" in n.name or n.name.startswith("argmax")]
    assert [kind(n) for n in hidden_ones] == ["hidden jump", "hidden jump"]
    assert [len(m.nodes) for m in regions] == [12]
    names = [str(getattr(n.target, "__name__", n.target)) for m in regions for n in m.nodes]
    assert "round" in names and not {"argmax", "fake_quantize_per_tensor_affine"} & set(names)


# ------------------------------------------------------------------------------------ honest and careless kernels


def away(v: Tensor) -> Tensor:
    """To nearest, halves away from zero."""
    down = torch.floor(v.abs())
    return torch.sign(v) * torch.where(v.abs() - down >= 0.5, down + 1, down)


def constant(
    *,
    divide: Callable[[Tensor], Tensor] = lambda v: v / STEP,
    nearest: Kernel = torch.round,
    most: float = 127,
    back: float = STEP,
) -> Kernel:
    return lambda x, bias: torch.clamp(nearest(divide(x + bias)), -128, most) * back


def by_rows(
    *,
    nearest: Kernel = torch.round,
    levels: float = 127,
    divide: Callable[[Tensor, Tensor], Tensor] = torch.div,
    least: float = 1e-5,
    inside: torch.dtype = torch.float32,
) -> Kernel:
    def kernel(x: Tensor, bias: Tensor, y: Tensor) -> Tensor:
        h = (x.float() + bias.float()).to(inside)
        step = h.abs().amax(-1, keepdim=True).clamp(min=least) / levels
        return (nearest(divide(h, step)).clamp(-128, 127) * step + y).to(x.dtype)

    return kernel


HONEST = {
    "constant": {
        "as written": constant(),
        "by a product": constant(divide=lambda v: v * 20.0),
        "by a reciprocal": constant(divide=lambda v: v * (1 / torch.tensor(STEP))),
    },
    "rows": {
        "as written": by_rows(),
        "by a reciprocal": by_rows(divide=lambda h, step: h * (1 / step)),
        "by the range": by_rows(divide=lambda h, step: h * (127 / h.abs().amax(-1, keepdim=True).clamp(min=1e-5))),
    },
}
CARELESS = {
    "constant": {
        "truncates": constant(nearest=torch.trunc),
        "half away from zero": constant(nearest=away),
        "half up": constant(nearest=lambda v: torch.floor(v + 0.5)),
        "another scale": constant(divide=lambda v: v / 0.0501, back=0.0501),
        "no clamp": constant(most=float("inf")),
        "one level less": constant(most=126),
        "half precision": constant(divide=lambda v: (v.half() / STEP).float()),
    },
    "rows": {
        "truncates": by_rows(nearest=torch.trunc),
        "half away from zero": by_rows(nearest=away),
        "half up": by_rows(nearest=lambda v: torch.floor(v + 0.5)),
        "another scale": by_rows(levels=128),
        "another floor of the scale": by_rows(least=1e-2),
        "half precision": by_rows(inside=torch.float16),
        "bfloat16": by_rows(inside=torch.bfloat16),
        "no rounding": by_rows(nearest=lambda v: v),
    },
}


@dataclasses.dataclass(frozen=True)
class Asked:
    """One case of the judge's, its inputs drawn and its oracle run."""

    name: str
    tensors: tuple[Tensor, ...]
    want: Expected
    tolerance: Tolerance
    statistical: bool

    def wrong(self, out: Tensor) -> str | None:
        return mismatch(out, self.want, self.tolerance, statistical=self.statistical)[1]


def asked(problem: Problem, seed: int) -> list[Asked]:
    """What the judge asks of a kernel, without its processes."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    every = []
    for stage, cases in plan(problem, "cpu", (), rng).items():
        for case in cases:
            tensors = case.make(case.dims, case.dtype, generator)
            want = expected(problem, tensors, case.scalars, 0, "cpu")
            every.append(Asked(case.name, tensors, want, problem.tolerances[case.dtype], stage == "shapes"))
    return every


def judged(questions: Sequence[Asked], kernel: Kernel) -> dict[str, str]:
    """What is wrong, by case."""
    answers = {each.name: each.wrong(kernel(*each.tensors)) for each in questions}
    return {name: wrong for name, wrong in answers.items() if wrong}


@pytest.fixture(scope="module")
def questions(problems: dict[str, Problem]) -> dict[str, list[Asked]]:
    return {which: [*asked(problem, 0), *asked(problem, 1)] for which, problem in problems.items()}


@pytest.mark.parametrize(("which", "how"), [(w, h) for w, kernels in HONEST.items() for h in kernels])
def test_an_honest_kernel_passes_on_ties_too(questions: dict[str, list[Asked]], which: str, how: str) -> None:
    assert judged(questions[which], HONEST[which][how]) == {}


@pytest.mark.parametrize(("which", "how"), [(w, h) for w, kernels in CARELESS.items() for h in kernels])
def test_a_careless_kernel_falls(questions: dict[str, list[Asked]], which: str, how: str) -> None:
    assert judged(questions[which], CARELESS[which][how])


def test_a_last_digit_is_forgiven_but_where_all_is_exact(questions: dict[str, list[Asked]]) -> None:
    a_little_off = by_rows(divide=lambda h, step: h / step * (1 + 3e-6))
    assert set(judged(questions["rows"], a_little_off)) == {"levels fp32"}


@pytest.mark.parametrize("which", ["constant", "rows"])
def test_ties_are_among_the_inputs(problems: dict[str, Problem], which: str) -> None:
    """An adversary puts values on ties, where honest kernels differ from each other, and not just there."""
    problem = problems[which]
    ties = next(a for a in problem.adversarial if a.name == "ties")
    tensors = ties.make(ties.dims, "fp32", torch.Generator().manual_seed(0))
    share = expected(problem, tensors, {}, 0, "cpu").unsettled
    assert 0.1 < share < 0.6
    plain = problem.make_inputs(ties.dims, "fp32", torch.Generator().manual_seed(0))
    assert expected(problem, plain, {}, 0, "cpu").unsettled < 0.01


def test_with_an_oracle_in_float32_ties_are_forgiven_and_truncation_is_not(
    problems: dict[str, Problem], half: list[Match]
) -> None:
    for problem in (problems["rows"], registry.load("problems", half[1].problem)):
        dtype = problem.dtypes[0]
        tensors = problem.make_inputs({}, dtype, torch.Generator().manual_seed(0))
        want = expected(problem, tensors, {}, 10**12, "cpu")  # more operations than a float64 oracle is run for
        assert want.precision == "float32" and (dtype != "fp32" or want.unsettled < 0.01)
        case = Asked("random", tensors, want, problem.tolerances[dtype], True)
        assert judged([case], by_rows(divide=lambda h, step: h * (1 / step))) == {}
        assert judged([case], by_rows(nearest=torch.trunc))
        exact = expected(problem, tensors, {}, 0, "cpu")
        assert float(want.room.max()) <= 1.1 * float(exact.room.max())  # type: ignore[union-attr]


def test_in_half_precision_a_step_is_seen_beside_the_tolerance(half: list[Match]) -> None:
    """Of bfloat16 the tolerance is wider than a step; PyTorch's own roundings before a jump make many values unsure."""
    problem: Problem = registry.load("problems", half[1].problem)
    questions = asked(problem, 0)
    assert judged(questions, problem.reference) == {}
    assert judged(questions, by_rows()) == {}
    assert judged(questions, by_rows(divide=lambda h, step: h * (1 / step))) == {}
    assert judged(questions, by_rows(nearest=torch.trunc))
    assert judged(questions, by_rows(nearest=away))
    assert judged(questions, by_rows(levels=120))


# ------------------------------------------------------------------------------------ generated starters


@pytest.mark.parametrize("backend", ["cpp", "triton"])
@pytest.mark.parametrize("which", ["constant", "rows"])
def test_a_generated_starter_passes_the_five_stages(
    problems: dict[str, Problem], workshop: Workshop, which: str, backend: str
) -> None:
    source = generate.starter(problems[which].name, backend)
    assert source is not None
    assert set(examine(workshop, problems[which], source, backend)) == {"smoke", "shapes", "stability", "edges"}


def test_a_starter_that_rounds_otherwise_falls(problems: dict[str, Problem], workshop: Workshop) -> None:
    """C's own rounding: halves away from zero."""
    source = generate.starter(problems["rows"].name, "cpp")
    assert source is not None and "std::nearbyint(" in source
    with pytest.raises(Failed, match="levels"):
        examine(workshop, problems["rows"], source.replace("std::nearbyint(", "std::round("), "cpp")
