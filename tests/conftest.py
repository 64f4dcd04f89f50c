"""What every test shares: tools of the environment on the path, caches and settings of the person left alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from autokernel.evaluate.workshop import Workshop

# ninja lies beside the interpreter; the environment need not be activated.
os.environ["PATH"] = os.pathsep.join((os.environ.get("PATH", ""), str(Path(sys.executable).parent)))
os.environ.setdefault("MPLBACKEND", "Agg")
sys.path.insert(0, str(Path(__file__).parent))  # what tests of several folders use lies here

LONG = (  # files that take more than 20 s alone, the longest first: see below
    "test_commands.py",
    "evaluate/test_faults.py",
    "test_night_llm.py",
    "backends/test_triton_starters.py",
    "agent/test_init.py",
    "evil/test_evil.py",
    "regions/test_generate.py",
    "evaluate/test_sandbox.py",
    "agent/test_mcp.py",
    "engage/test_own_regions.py",
    "regions/test_huggingface.py",
    "engage/test_export.py",
    "regions/test_uncovered.py",
    "agent/test_try.py",
    "backends/test_cuda_starters.py",
    "engage/test_training.py",
    "backends/test_torch_backend.py",
)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    """Real runners on the CPU, in which Triton interprets."""
    from autokernel.evaluate.pool import Nursery
    from autokernel.evaluate.workshop import Workshop

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        opened = Workshop(Nursery(tmp_path_factory.mktemp("workshop"), "cpu", 1))
        yield opened
        opened.close()


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may spend anyone's money."""
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Quick files come first, so that a mistake shows soon, then long ones, the longest first, so that no worker is
    left alone with one. Tests marked ``gpu`` are skipped where there is none.
    """
    here = Path(__file__).parent
    order = {here / name: number for number, name in enumerate(LONG, start=1)}
    assert all(path.is_file() for path in order), "LONG names a file that is gone"
    items.sort(key=lambda item: order.get(item.path, 0))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
