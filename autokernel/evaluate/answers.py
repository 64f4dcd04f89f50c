"""All that a runner may say, and in which form: what reads an answer need not think of a forged one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from autokernel.evaluate.protocol import PeerNonsense


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _wholes(value: object) -> bool:
    return isinstance(value, list) and all(map(_whole, value))


def _text(value: object) -> bool:
    return isinstance(value, str)


def _allocation(value: object) -> bool:
    return isinstance(value, list) and len(value) == 3 and _text(value[0]) and all(map(_whole, value[1:]))


ANSWER: Mapping[str, Callable[[object], bool]] = {  # all that a runner may say, and in which form
    "ok": lambda value: isinstance(value, bool),
    "levels": lambda value: isinstance(value, dict),
    "message": _text,
    "traceback": _text,
    "ops": lambda value: isinstance(value, list) and all(map(_text, value)),
    "claim_ns": _whole,
    "at": _wholes,
    "shape": _wholes,
    "stride": _wholes,
    "dtype": _text,
    "device": _text,
    "recorded": lambda value: isinstance(value, bool),
    "launch_ns": _whole,
    "allocations": lambda value: isinstance(value, list) and all(map(_allocation, value)),
}


def checked(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The answer, when every field is one of ANSWER and of its form: what reads it need not think of a forged one.
    Raises PeerNonsense.
    """
    for name, value in answer.items():
        if name not in ANSWER or not ANSWER[name](value):
            raise PeerNonsense(f"an answer holds {name[:40]!r} in a form that no runner writes")
    return {name: _plain_inside(value) for name, value in answer.items()}


def _plain_inside(value: Any) -> Any:
    if isinstance(value, str):
        return plain(value)
    return list(map(_plain_inside, value)) if isinstance(value, list) and value and isinstance(value[0], str) else value


def plain(text: str) -> str:
    """What an untrusted process wrote, without what would steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)
