"""What a candidate can do to a GPU: one typed verdict each, and the next honest one passes. Needs a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import psutil
import pytest

from autokernel.evaluate.client import Assignment, JudgeClient, JudgeOptions
from autokernel.types import Status, Workload

from .conftest import HONEST, scratch, target
from .fault_sources import call, load

pytestmark = pytest.mark.gpu
WORK = Workload({"R": 256, "C": 1024}, "fp16", scalars={"eps": 1e-6})

KERNEL = """
source = 'extern "C" __global__ void k(float* p) {{ {body} }}'
kernel = torch.cuda._compile_kernel(source, "k")
kernel((1, 1, 1), (1, 1, 1), (x.float(),))
torch.cuda.synchronize()
"""
TAKE_ALL = "held = []\nwhile True:\n    held.append(torch.zeros(1 << 30, dtype=torch.uint8, device='cuda'))"
FAULTS: Mapping[str, tuple[str, tuple[Status, ...]]] = {
    "an index outside (device assert)": (
        call("return x[torch.full_like(x[:, 0], 10**4, dtype=torch.int64)]"), (Status.SMOKE, Status.CRASH)
    ),
    "an illegal device address": (call(KERNEL.format(body="((float*)8)[0] = 1;")), (Status.SMOKE, Status.CRASH)),
    "a trap": (call(KERNEL.format(body='asm("trap;");')), (Status.SMOKE, Status.CRASH)),
    "a kernel without end": (call("torch.cuda._sleep(1 << 62)"), (Status.TIMEOUT,)),
    "device memory taken in the call": (call(TAKE_ALL), (Status.SMOKE,)),
    "device memory taken while loading": (load(TAKE_ALL), (Status.BUILD,)),
    "a petabyte of device memory": (call("torch.empty(10**15, device='cuda')"), (Status.SMOKE,)),
    "abort in the middle of a launch": (call("torch.cuda._sleep(1 << 40)\nos.abort()"), (Status.CRASH,)),
    "an output on the wrong device": (call("return x.cpu()"), (Status.SMOKE,)),
}  # fmt: skip


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JudgeClient]:
    options = JudgeOptions(device="cuda", policy=False, spares=0)  # what a fault leaves behind is counted in processes
    with JudgeClient(scratch(tmp_path_factory), options) as client:
        yield client


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_costs_one_runner(judge: JudgeClient, name: str) -> None:
    source, statuses = FAULTS[name]
    pid, before = judge.pid, len(psutil.Process(judge.pid).children(recursive=True))
    verdict = judge.evaluate(Assignment(target("torch", WORK), source, baselines=False)).verdict
    assert verdict.status in statuses, verdict
    assert judge.pid == pid
    assert len(psutil.Process(pid).children(recursive=True)) == before
    honest = judge.evaluate(Assignment(target("torch", WORK), HONEST, baselines=False)).verdict
    assert honest.status is Status.PASS, honest


def test_every_level_holds_beside_the_driver(judge: JudgeClient) -> None:
    if os.geteuid() != 0:
        pytest.skip("levels without privileges depend on this machine's settings")
    lacking = [name for name in ("net", "landlock", "reads", "privs", "env", "limits") if not judge.isolation[name]]
    assert lacking == []
