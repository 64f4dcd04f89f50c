"""Takes secrets out of what is written down: the one function through which every recorded exchange passes.

A secret is the value of an environment variable whose name says so (``..._API_KEY``, ``..._TOKEN``, ``..._SECRET``,
``..._PASSWORD``), whatever has the shape of a known kind of key (``sk-...``, ``Bearer ...``), and the value of a header
that carries one. Standard library only. Not covered: a secret that is encoded, split, or under a name that says
nothing, unless it has a known shape.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TypeVar

Told = TypeVar("Told")

REDACTED = "[redacted]"
_NAMES = re.compile(r"(^|_)(API_?)?(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)S?(_|$)", re.IGNORECASE)
_SHORTEST = 8  # a value that is shorter is a setting ("true", "1"), and would be found in half of all words
_SHAPES = re.compile(
    r"(?<![A-Za-z0-9_])(?:(?:sk-|xai-|github_pat_)[A-Za-z0-9_\-]{8,}|(?:gsk|hf|gh[pousr])_[A-Za-z0-9]{16,}|AIza[\w\-]{30,})"
    r"|(?i:(?<=bearer )[A-Za-z0-9._~+/=\-]{8,})"
)
_HEADERS = frozenset(
    ("authorization", "proxy-authorization", "x-api-key", "api-key", "api_key", "apikey", "cookie", "set-cookie")
)


def secrets(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """The values that must not be written, longest first; of this process's environment unless another is given."""
    known = os.environ if environment is None else environment
    values = {value for name, value in known.items() if _NAMES.search(name) and len(value) >= _SHORTEST}
    return tuple(sorted(values, key=lambda value: (-len(value), value)))


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for a process that has no business with anyone's keys."""
    return {name: value for name, value in environment.items() if not _NAMES.search(name)}


def redact(told: Told, environment: Mapping[str, str] | None = None) -> Told:
    """The same text, or JSON value of any depth, without secrets: each is replaced by ``[redacted]``."""
    return _clean(told, secrets(environment))


def _clean(told: Told, values: tuple[str, ...]) -> Told:
    if isinstance(told, str):
        return _text(told, values)  # type: ignore[return-value]
    if isinstance(told, Mapping):
        return {  # type: ignore[return-value]
            _text(str(name), values): REDACTED if str(name).lower() in _HEADERS and value else _clean(value, values)
            for name, value in told.items()
        }
    if isinstance(told, (list, tuple)):
        return [_clean(value, values) for value in told]  # type: ignore[return-value]
    return told


def _text(text: str, values: tuple[str, ...]) -> str:
    for value in values:
        text = text.replace(value, REDACTED)
    return _SHAPES.sub(REDACTED, text)
