"""The same judge with another device string. Needs a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from autokernel import registry
from autokernel.evaluate.client import Assignment, JudgeClient, JudgeOptions
from autokernel.types import Status, Target, Workload

from .conftest import HONEST, scratch, target, torch_source

pytestmark = pytest.mark.gpu
WORK = Workload({"R": 4096, "C": 4096}, "fp16", scalars={"eps": 1e-6})


@pytest.fixture(scope="module")
def cuda_judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JudgeClient]:
    with JudgeClient(scratch(tmp_path_factory), JudgeOptions(device="cuda", policy=False)) as client:
        yield client


def test_an_honest_candidate_passes_and_is_compared(cuda_judge: JudgeClient) -> None:
    faster = torch_source("return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)")
    evaluation = cuda_judge.evaluate(Assignment(target("torch", WORK), faster, incumbent=HONEST))
    assert evaluation.verdict.status is Status.PASS, evaluation.verdict
    assert evaluation.verdict.measurements is not None
    assert {"eager", "library"} <= set(evaluation.verdict.measurements.baselines_us)
    assert evaluation.comparison is not None
    assert evaluation.comparison.log_ratio > 0.5  # the library's fused kernel against five launches


def test_a_wrong_candidate_fails_smoke(cuda_judge: JudgeClient) -> None:
    wrong = torch_source("return x")
    assert cuda_judge.evaluate(Assignment(target("torch", WORK), wrong)).verdict.status is Status.SMOKE


def test_an_illegal_address_costs_one_runner(cuda_judge: JudgeClient) -> None:
    illegal = torch_source("return x[torch.full_like(x[:, 0], 10**9, dtype=torch.int64)]")
    verdict = cuda_judge.evaluate(Assignment(target("torch", WORK), illegal)).verdict
    assert verdict.status in (Status.SMOKE, Status.CRASH), verdict
    assert cuda_judge.evaluate(Assignment(target("torch", WORK), HONEST)).verdict.status is Status.PASS


def test_inputs_cannot_be_written_and_the_next_candidate_passes(cuda_judge: JudgeClient) -> None:
    verdict = cuda_judge.evaluate(Assignment(target("torch", WORK), torch_source("x.mul_(1.0)\nreturn x"))).verdict
    assert verdict.status in (Status.SMOKE, Status.CRASH), verdict
    assert "illegal" in verdict.reason.lower() or verdict.status is Status.CRASH, verdict
    assert cuda_judge.evaluate(Assignment(target("torch", WORK), HONEST)).verdict.status is Status.PASS


def test_kernels_are_timed_as_recorded_and_outputs_read_where_they_lie(cuda_judge: JudgeClient) -> None:
    verdict = cuda_judge.evaluate(Assignment(target("torch", WORK), HONEST)).verdict
    assert verdict.status is Status.PASS, verdict
    assert (verdict.environment["timed"], verdict.environment["outputs"]) == ("graph", "read")


def test_what_waits_for_the_device_is_timed_by_its_calls(cuda_judge: JudgeClient) -> None:
    waits = HONEST.replace("    wide = x.float()", "    torch.cuda.synchronize()\n    wide = x.float()")
    verdict = cuda_judge.evaluate(Assignment(target("torch", WORK), waits)).verdict
    assert verdict.status is Status.PASS, verdict
    assert (verdict.environment["timed"], verdict.environment["outputs"]) == ("calls", "asked")


OWN = {
    "reference": """
import torch

def reference(x, y, bias):
    return torch.nn.functional.gelu(x + y + bias)

def make_inputs(R=1024, C=768):
    return [torch.randn(R, C), torch.randn(R, C), torch.randn(C)]
""",
    "Model": """
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(768)
        self.register_buffer("shift", torch.arange(768) / 768)

    def forward(self, x):
        return self.norm(x) + self.shift

def get_inputs():
    return [torch.randn(1024, 768)]
""",
}
KERNELS = {
    "reference": "def kernel_fn(x, y, bias):\n    return torch.nn.functional.gelu(x + y + bias)\n",
    "Model": "def kernel_fn(x, norm_weight, norm_bias, shift):\n"
    "    return torch.nn.functional.layer_norm(x, (768,), norm_weight, norm_bias) + shift\n",
}


@pytest.mark.parametrize("kind", OWN)
def test_an_owner_s_own_problem_is_judged_and_timed(cuda_judge: JudgeClient, kind: str, tmp_path: Path) -> None:
    """Inputs that the owner's file draws lie on the device, too, in every stage and in the timed calls."""
    path = tmp_path / "own.py"
    path.write_text(OWN[kind])
    problem = registry.load("problems", str(path))
    work = Workload(dict(problem.shapes["cuda"][0]), "fp32", scalars=dict(problem.scalars))
    own = Target("own", str(path), "torch", (work,), share=0.1, eager_us=100.0, floor_us=1.0)
    source = f'import torch\n\nKERNEL_TYPE = "{own.kernel_type}"\nBACKEND = "torch"\n\n\n{KERNELS[kind]}'
    verdict = cuda_judge.evaluate(Assignment(own, source)).verdict
    assert verdict.status is Status.PASS, verdict
    assert verdict.measurements is not None and verdict.measurements.latency_us > 0
