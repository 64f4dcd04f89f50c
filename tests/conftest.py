"""What every test shares: tools of the environment on the path, caches and settings of the person left alone."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# ninja lies beside the interpreter; the environment need not be activated.
os.environ["PATH"] = os.pathsep.join((os.environ.get("PATH", ""), str(Path(sys.executable).parent)))
os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may spend anyone's money."""
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
