"""What a model's tokens cost: list prices that ship with autokernel, and the owner's own table before them.

A table is a JSON file: ``{"my-model": {"input": 1.0, "output": 5.0, "cache_read": 0.1, "cache_write": 1.25}}`` in USD
per million tokens; what is left out of the last two costs as much as input. The key ``about`` is a remark.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autokernel.types import AutokernelError

SHIPPED = Path(__file__).with_name("prices.json")
_FIELDS = ("input", "output", "cache_read", "cache_write")
_SNAPSHOT = re.compile(r"-\d{8}|-\d{4}-\d{2}-\d{2}|-latest")


@dataclasses.dataclass(frozen=True)
class Usage:
    """Tokens of one question to a model. The input counts what was neither read from nor written to its cache."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0

    @property
    def tokens_in(self) -> int:
        return self.input + self.cache_read + self.cache_write


@dataclasses.dataclass(frozen=True)
class Price:
    """USD per million tokens."""

    input: float
    output: float
    cache_read: float
    cache_write: float

    def cost_usd(self, usage: Usage) -> float:
        fresh, cached = self.input * usage.input, self.cache_read * usage.cache_read
        return (fresh + cached + self.cache_write * usage.cache_write + self.output * usage.output) / 1e6


def price_of(model: str, own: Path | None) -> Price | None:
    """The price of a model, from the owner's table or else the shipped one; None where neither names it.

    A model is named in full, or is a dated snapshot of one that is (``claude-haiku-4-5-20251001``): a longer name that
    merely begins alike is another model at another price. Raises AutokernelError for a file that is no table.
    """
    table = {**_read(SHIPPED), **(_read(own) if own else {})}
    if model in table:
        return table[model]
    snapshot = _SNAPSHOT.search(model)
    return table.get(model[: snapshot.start()]) if snapshot and snapshot.end() == len(model) else None


def _read(path: Path) -> dict[str, Price]:
    try:
        listed = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise AutokernelError(f"expected --prices to be a JSON file that can be read, got {path}: {error}") from error
    if not isinstance(listed, dict):
        raise AutokernelError(f"{path}: expected an object from model to prices, got {type(listed).__name__}")
    return {model: _price(path, model, entry) for model, entry in listed.items() if model != "about"}


def _price(path: Path, model: str, entry: Any) -> Price:
    if isinstance(entry, Mapping) and "input" in entry and not set(entry) - set(_FIELDS):
        values = {name: entry.get(name, entry["input"]) for name in _FIELDS}
        sound = all(isinstance(v, (int, float)) and not isinstance(v, bool) and v >= 0 for v in values.values())
        if sound and "output" in entry:
            return Price(**{name: float(value) for name, value in values.items()})
    raise AutokernelError(
        f'{path}: expected "{model}" to be like {{"input": 1, "output": 5, "cache_read": 0.1, "cache_write": 1.25}} '
        f"(USD per million tokens; the last two may be left out), got {json.dumps(entry)[:120]}"
    )
