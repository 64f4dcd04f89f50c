"""The tools of the CUDA toolkit on real kernels: they find what was planted, nothing in the starters, and count."""

from __future__ import annotations

from pathlib import Path

import pytest

from autokernel import assets
from autokernel.backends._occupancy import MULTIPROCESSORS
from autokernel.evaluate import nsight, sanitizer, toolrun
from autokernel.evaluate.client import Assignment, Evaluation, OnEvent
from autokernel.evaluate.toolrun import Exercise
from autokernel.types import Comparison, Measurements, Status, Target, Verdict, Workload

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(toolrun.command("compute-sanitizer") is None, reason="no CUDA toolkit"),
]
WORK = Workload({"R": 4096, "C": 4096}, "fp16", scalars={"eps": 1e-6})


def source(backend: str, *edits: tuple[str, str]) -> str:
    """The rmsnorm starter of a backend with each of these texts, which must be there once, replaced."""
    path = assets.starter("rmsnorm", backend)
    assert path is not None
    text = path.read_text()
    for before, after in edits:
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    return text


# A store that goes on past the end of a row; one that misses the barrier between warps; one that adds what was there.
PAST_THE_END = (
    "if (first + j >= 0 && first + j < columns) row[first + j] = narrow<T>(v[j]);",
    ("if (first + j >= 0) row[first + j] = narrow<T>(v[j]);"),
)
NO_BARRIER = "row[threadIdx.x / 32] = v;\n    __syncthreads();", "row[threadIdx.x / 32] = v;"
UNWRITTEN = (
    PAST_THE_END[0],
    ("if (first + j >= 0 && first + j < columns) row[first + j] = narrow<T>(v[j] + 0 * float(row[first + j]));"),
)
# Triton: the mask of the store is left out.
NO_MASK = (
    "y.to(y_ptr.dtype.element_ty), mask=inside)\n\n\n@triton.jit",
    "y.to(y_ptr.dtype.element_ty))\n\n\n@triton.jit",
)


PLANTED = {
    "cuda-memcheck": ("cuda", "memcheck", PAST_THE_END, "rmsnorm"),
    "cuda-racecheck": ("cuda", "racecheck", NO_BARRIER, "rmsnorm"),
    "cuda-initcheck": ("cuda", "initcheck", UNWRITTEN, "rmsnorm"),
    "triton-memcheck": ("triton", "memcheck", NO_MASK, "short_rows_kernel"),
}


@pytest.mark.parametrize(("backend", "tool", "edit", "kernel"), PLANTED.values(), ids=PLANTED)
def test_what_was_planted_is_found(backend: str, tool: sanitizer.Tool, edit: tuple[str, str], kernel: str) -> None:
    (result,) = sanitizer.check(Exercise(source(backend, edit), "rmsnorm", backend, "cuda"), (tool,))
    print(result.told)
    assert result.errors, result
    assert kernel in result.told


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_a_starter_is_clean(backend: str) -> None:
    results = sanitizer.check(Exercise(source(backend), "rmsnorm", backend, "cuda"))
    assert [(each.tool, each.errors) for each in results] == [(tool, 0) for tool in sanitizer.TOOLS], results


class Keeping:
    """A judge that passes and would keep whatever it is given."""

    def evaluate(self, assignment: Assignment, on_event: OnEvent = lambda _: None) -> Evaluation:
        measured = Measurements(10.0, {}, None, {WORK.key: 10.0}, 1.0)
        comparison = Comparison(0.1, 0.05, 0.15, 4, True, "faster", 11.0, 10.0)
        return Evaluation(Verdict(Status.PASS, "done", "", measurements=measured), comparison, 1.0)


def test_a_run_does_not_keep_what_a_sanitizer_refuses() -> None:
    target = Target("rmsnorm", "rmsnorm", "cuda", (WORK,), 1.0, 0.0, 0.0)
    judge = sanitizer.Sanitizing(Keeping(), (target,), "cuda")
    refused = judge.evaluate(Assignment(target, source("cuda", PAST_THE_END)))
    assert (refused.verdict.status, refused.verdict.stage, refused.comparison) == (Status.CRASH, "sanitize", None)
    kept = judge.evaluate(Assignment(target, source("cuda")))
    assert kept.verdict.status is Status.PASS and kept.comparison is not None and kept.comparison.keep


@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_counters_of_a_copying_kernel(backend: str) -> None:
    if toolrun.command("ncu") is None:
        pytest.skip("no Nsight Compute")
    target = Target("rmsnorm", "rmsnorm", backend, (WORK,), 1.0, 0.0, 0.0)
    counted = nsight.count(source(backend), target, "cuda", WORK)
    if not counted.kernels:
        pytest.skip(counted.reason)  # no right to read counters: what is told then is tested without a GPU
    (figures,) = counted.kernels.values()
    print(counted)
    one_way = 4096 * 4096 * 2
    assert 0.9 * one_way < figures["dram_read_bytes"] < 1.3 * one_way
    assert 0 < figures["achieved_occupancy"] <= figures["occupancy"] + 0.01
    assert figures["dram_pct"] > figures["sm_pct"] > 0 and figures["registers"] > 8 and figures["top_stall"]


def test_occupancy_is_the_driver_s() -> None:
    """Ours, from the compiler's report, beside what the driver's own calculation gives, as ncu reports it."""
    import torch

    from autokernel.backends._occupancy import occupancy

    if toolrun.command("ncu") is None:
        pytest.skip("no Nsight Compute")
    arch = int("".join(map(str, torch.cuda.get_device_capability())))
    assert arch in MULTIPROCESSORS
    path = assets.starter("matmul", "triton")
    assert path is not None
    work = Workload({"M": 1024, "K": 1024, "N": 1024}, "fp16")
    target = Target("matmul", "matmul", "triton", (work,), 1.0, 0.0, 0.0)
    with toolrun.folder(Exercise(path.read_text(), "matmul", "triton", "cuda", (work,))) as folder:
        assert folder.run([], 120).calls == 1
        evidence = _evidence(folder.log.parent / "cache")
    counted = nsight.count(path.read_text(), target, "cuda", work)
    if not counted.kernels:
        pytest.skip(counted.reason)
    for name, figures in counted.kernels.items():
        known = evidence[name]
        share = occupancy(arch, int(known["registers"]), int(known["warps"]), int(known["shared_bytes"]))
        assert share is not None and abs(share - figures["occupancy"]) < 0.02, (name, known, figures)


def _evidence(cache: Path) -> dict[str, dict[str, float]]:
    from autokernel.backends.triton import BACKEND

    return {name: dict(figures) for name, figures in BACKEND.evidence(cache).items()}
