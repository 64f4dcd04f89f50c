"""How a model is named: the path of a model file, or ``hf:NAME_OR_PATH`` for a Hugging Face id or a local folder.

A ``Path`` keeps either one, so that both travel the same way: ``Path("hf:org/name")`` prints as it was given.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from autokernel.types import AutokernelError

PREFIX = "hf:"


def huggingface(model: str | Path) -> str | None:
    """The id or folder behind ``hf:``; None where the model is a file."""
    text = str(model)
    return text[len(PREFIX) :] if text.startswith(PREFIX) else None


def title(model: str | Path) -> str:
    """A model's name, safe as that of a folder: a file's stem, the last part of an id or of a folder's path."""
    name = huggingface(model)
    if name is None:
        return Path(model).stem
    last = Path(name).expanduser().resolve().name if is_folder(name) else name.rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^\w.-]+", "-", last).strip(".-") or "model"


def is_folder(name: str) -> bool:
    """Whether what stands behind ``hf:`` is a folder of this machine, or spelled as one."""
    return Path(name).expanduser().is_dir() or name.startswith((".", "/", "~"))


def digest(model: Path) -> str:
    """sha256, in hex, of what defines the model: its file, the config.json of its folder, or its id.

    Raises AutokernelError where there is no such file.
    """
    name = huggingface(model)
    if name is not None and not is_folder(name):
        return hashlib.sha256(name.encode()).hexdigest()
    file = Path(name).expanduser() / "config.json" if name is not None else model
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        expected = (
            "a model file was expected (class Model, get_inputs)" if name is None else "a config.json was expected"
        )
        raise AutokernelError(f"{file}: {expected}: {error.strerror or error}") from error
