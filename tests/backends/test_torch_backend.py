"""torch.compile in a candidate: Inductor builds inside of the sandbox, into the candidate's own folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from autokernel.evaluate.client import Assignment, JudgeClient, JudgeOptions
from autokernel.types import Status, Target, Verdict, Workload

COMPILED = """
import torch

KERNEL_TYPE = "softmax"
BACKEND = "torch"


@torch.compile(dynamic=True)
def compiled(x):
    e = (x.float() - x.float().amax(-1, keepdim=True)).exp()
    return (e / e.sum(-1, keepdim=True)).to(x.dtype)


with torch.no_grad():  # built while the file is loaded: that has minutes, a call has seconds
    out = compiled(torch.randn(4, 8, device="DEVICE"))
if not torch._dynamo.utils.counters["inductor"]:
    raise RuntimeError("Inductor was not at work")
if torch._inductor.config.compile_threads != 1:
    raise RuntimeError("Inductor would start processes")


def kernel_fn(x):
    return compiled(x) if x.shape == (4, 8) else torch.softmax(x, -1)
"""


def judged(folder: Path, device: str) -> Verdict:
    target = Target("softmax", "softmax", "torch", (Workload({"R": 64, "C": 256}, "fp32"),), 0.1, 100.0, 1.0)
    with JudgeClient(folder / "scratch", JudgeOptions(device=device, policy=False)) as judge:
        source = COMPILED.replace("DEVICE", device)
        return judge.evaluate(Assignment(target, source, baselines=False)).verdict


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The folder for temporary files and caches that the judge itself has, and a candidate must not need."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    yield tmp_path / "tmp"


def test_inductor_builds_in_the_sandbox(tmp_path: Path, elsewhere: Path) -> None:
    verdict = judged(tmp_path, "cpu")
    assert verdict.environment["isolation"]["landlock"], "or nothing is shown"
    assert verdict.status is Status.PASS, (verdict.reason, verdict.log_tail)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_inductor_builds_in_the_sandbox_on_a_gpu(tmp_path: Path, elsewhere: Path) -> None:
    verdict = judged(tmp_path, "cuda")
    assert verdict.status is Status.PASS, (verdict.reason, verdict.log_tail)
