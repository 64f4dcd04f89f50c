"""Where content lies: ``kernels/`` and ``models/`` of the checkout, or ``autokernel/_assets/`` of a wheel."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def root() -> Path:
    """The folder that holds ``kernels/`` and ``models/``."""
    packed = PACKAGE / "_assets"
    return packed if packed.is_dir() else PACKAGE.parent


def starter(problem: str, backend: str, arch: str | None = None) -> Path | None:
    """The starter kernel of this problem in this backend, or None when there is none.

    With ``arch`` (such as "sm90", see ``hardware.arch``) one written for that architecture is preferred.
    """
    folder = root() / "kernels" / backend
    paths = [*([folder / arch / f"{problem}.py"] if arch else []), folder / f"{problem}.py"]
    return next((path for path in paths if path.is_file()), None)


def models() -> list[Path]:
    """The model files that come with autokernel."""
    return sorted((root() / "models").glob("*.py"))


def cache_folder() -> Path:
    """Where measured ceilings and precompiled headers are kept: $AUTOKERNEL_CACHE or ~/.cache/autokernel."""
    return Path(os.environ.get("AUTOKERNEL_CACHE") or Path.home() / ".cache" / "autokernel")


def program() -> str:
    """The text of program.md: what an agent is told of the loop, its rules and the playbook. The owner may edit it."""
    return (root() / "program.md").read_text(encoding="utf-8")
