"""A real judge for the tests of this folder, and small helpers that give it files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from autokernel.assets import starter
from autokernel.evaluate.client import JudgeClient, JudgeOptions
from autokernel.types import Target, Workload

WORK = Workload({"R": 64, "C": 256}, "fp32", count=3, scalars={"eps": 1e-6})


def target(backend: str = "cpp", work: Workload = WORK) -> Target:
    return Target("rmsnorm", "rmsnorm", backend, (work,), share=0.1, eager_us=100.0, floor_us=1.0)


def cpp_source() -> str:
    path = starter("rmsnorm", "cpp")
    assert path is not None
    return path.read_text()


def torch_source(body: str, before: str = "") -> str:
    """A file of the torch backend whose kernel_fn has this body."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return (
        'import torch\n\nKERNEL_TYPE = "rmsnorm"\nBACKEND = "torch"\n'
        f"{before}\n\ndef kernel_fn(x, weight, eps=1e-6):\n{lines}\n"
    )


HONEST = torch_source(
    "wide = x.float()\nreturn (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)"
)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JudgeClient]:
    with JudgeClient(scratch(tmp_path_factory)) as client:
        yield client


@pytest.fixture(scope="module")
def judge_without_policy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JudgeClient]:
    """The walls behind the reading of the source, alone."""
    with JudgeClient(scratch(tmp_path_factory), JudgeOptions(policy=False)) as client:
        yield client


def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("judge") / "scratch"
