"""The calls of a kernel that are made for a tool to watch."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from autokernel import registry
from autokernel.evaluate import exercise, toolrun
from autokernel.evaluate.toolrun import Exercise
from autokernel.types import Problem, Workload

from .tool_script import KERNEL


def test_the_calls_are_made_and_counted_and_the_folder_goes() -> None:
    with toolrun.folder(Exercise(KERNEL, "rmsnorm", "torch", "cpu")) as folder:
        ended = folder.run([], 120)
        where = folder.log.parent
        assert where.is_dir()
    assert ended.status == 0, ended.printed
    problem: Problem = registry.load("problems", "rmsnorm")
    assert ended.calls == len(list(exercise.small_calls(problem))) > 3 * len(problem.edge_shapes)
    assert not where.exists()


def test_only_the_workloads_that_are_given_are_called() -> None:
    works = (Workload({"R": 4, "C": 8}, "fp32"), Workload({"R": 3, "C": 5}, "bf16", strides={"x": (7, 1)}))
    with toolrun.folder(Exercise(KERNEL, "rmsnorm", "torch", "cpu", works)) as folder:
        assert folder.run([], 120).calls == 2


def test_calls_that_fail_or_last_too_long_are_no_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWNERS_API_KEY", "secret-of-the-owner")
    broken = KERNEL.replace(
        "    wide", "    import os; raise ValueError(str(os.environ.get('OWNERS_API_KEY')))\n    wide"
    )
    with toolrun.folder(Exercise(broken, "rmsnorm", "torch", "cpu")) as folder:
        ended = folder.run([], 120)
    assert (ended.status, ended.calls, ended.last_line) == (1, 0, "ValueError: None"), "and it has no keys"
    hanging = KERNEL.replace("import torch", "import time; time.sleep(600)", 1)
    with toolrun.folder(Exercise(hanging, "rmsnorm", "torch", "cpu")) as folder:
        assert folder.run([], 0.5).status is None


def test_nothing_outlives_whoever_asked(tmp_path: Path) -> None:
    """Not even when that was killed: a tool that hangs would hold the GPU."""
    hanging = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(f'{{os.getpid()}} '); time.sleep(600)"
    code = f"""
from autokernel.evaluate.toolrun import Exercise, folder
with folder(Exercise({KERNEL.replace("import torch", hanging, 1)!r}, "rmsnorm", "torch", "cpu")) as place:
    place.run([], 600)
"""
    with subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "TMPDIR": str(tmp_path)}) as asker:
        told = wait_for(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text().endswith(" "))
        asker.kill()
    assert told
    child = int((tmp_path / "pid").read_text())
    assert wait_for(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


def wait_for(what: Callable[[], bool], limit_s: float = 60.0) -> bool:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        with contextlib.suppress(psutil.NoSuchProcess):
            if what():
                return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("name", registry.names("problems"))
def test_small_calls_are_small_and_take_every_dtype(name: str) -> None:
    problem: Problem = registry.load("problems", name)
    calls = list(exercise.small_calls(problem))
    kinds = {tensors[0].dtype for tensors, _ in calls}
    assert len(kinds) == len(problem.dtypes) and len(calls) >= 4 * len(kinds)
    for tensors, scalars in calls:
        assert sum(t.numel() * t.element_size() for t in tensors) <= exercise.SMALL_BYTES
        assert set(problem.scalars) <= set(scalars)
    if problem.strided:
        assert any(not t.is_contiguous() for tensors, _ in calls for t in tensors)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(7, dtype=torch.float16),
        torch.arange(60.0).reshape(3, 4, 5)[:, 1:3],
        torch.arange(12.0).reshape(3, 4).t(),
        torch.arange(4).expand(3, 4),
        torch.empty(0, 8),
    ],
    ids=["odd", "slice", "transposed", "expanded", "empty"],
)
def test_an_input_ends_where_its_allocation_ends(tensor: torch.Tensor) -> None:
    """To the piece of 16 bytes: what lies beyond is out of bounds, and all that lies before it was written."""
    placed = exercise.on_device(tensor, "cpu")
    assert torch.equal(placed, tensor) and placed.stride() == tensor.stride()
    storage = placed.untyped_storage()
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1 if tensor.numel() else 0
    beyond = storage.nbytes() - last * tensor.element_size()
    assert 0 <= beyond < exercise.PIECE_BYTES and storage.nbytes() % exercise.PIECE_BYTES == 0
    assert storage.tolist()[storage.nbytes() - beyond :] == [0] * beyond
