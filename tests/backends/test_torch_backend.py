"""torch.compile in a candidate: Inductor builds inside of the sandbox, into the candidate's own folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from autokernel.evaluate.pool import Nursery
from autokernel.evaluate.workshop import Workshop

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
    return compiled(x)
"""


def isolation_it_builds_in(folder: Path, device: str) -> Mapping[str, bool]:
    """Levels of the runner in which the file was loaded, started as the judge does. Raises Failed where it does not."""
    workshop = Workshop(Nursery(folder / "scratch", device, 1))
    try:
        handle = workshop.start(COMPILED.replace("DEVICE", device), "torch")
        handle.close()
        return handle.levels
    finally:
        workshop.close()


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The folder for temporary files and caches that the judge itself has, and a candidate must not need."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    yield tmp_path / "tmp"


def test_inductor_builds_in_the_sandbox(tmp_path: Path, elsewhere: Path) -> None:
    assert isolation_it_builds_in(tmp_path, "cpu")["landlock"], "or nothing is shown"


@pytest.mark.gpu
def test_inductor_builds_in_the_sandbox_on_a_gpu(tmp_path: Path, elsewhere: Path) -> None:
    assert isolation_it_builds_in(tmp_path, "cuda")["landlock"], "or nothing is shown"
