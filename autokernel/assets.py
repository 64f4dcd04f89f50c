"""Where content lies: ``kernels/`` and ``models/`` of the checkout, or ``autokernel/_assets/`` of a wheel."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def root() -> Path:
    """The folder that holds ``kernels/`` and ``models/``."""
    packed = PACKAGE / "_assets"
    return packed if packed.is_dir() else PACKAGE.parent


def starter(problem: str, backend: str) -> Path | None:
    """The starter kernel of this problem in this backend, or None when there is none."""
    path = root() / "kernels" / backend / f"{problem}.py"
    return path if path.is_file() else None


def models() -> list[Path]:
    """The model files that come with autokernel."""
    return sorted((root() / "models").glob("*.py"))


def cache_folder() -> Path:
    """Where measured ceilings and precompiled headers are kept: $AUTOKERNEL_CACHE or ~/.cache/autokernel."""
    return Path(os.environ.get("AUTOKERNEL_CACHE") or Path.home() / ".cache" / "autokernel")
