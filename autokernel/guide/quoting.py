"""Quoting what others wrote (sources, logs, ideas, hints) so that it reads as data, and counting what text costs."""

from __future__ import annotations

import math
import re

BYTES_PER_TOKEN = 3.5
LINE_CHARS = 240


def tokens_of(text: str) -> int:
    """An estimate: a token for every 3.5 bytes of UTF-8, whatever the model. The rule of thumb is four bytes for prose
    and three for code, and a brief is both.
    """
    return math.ceil(len(text.encode()) / BYTES_PER_TOKEN)


def fenced(text: str, language: str = "") -> str:
    """The text in a fence longer than any run of backticks in it, so that nothing in it can close the fence."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(4, longest + 1)
    body = printable(text).rstrip("\n")
    return f"{fence}{language}\n{body}\n{fence}"


def cell(text: str, limit: int) -> str:
    """One line for a table's cell: white space folded, what could end the cell or open markup replaced, clipped."""
    flat = " ".join(printable(text).split()).replace("|", "/").replace("`", "'").replace("<!--", "<!-")
    return flat if len(flat) <= limit else flat[: limit - 1].rstrip() + "…"


def printable(text: str) -> str:
    """Without control characters, but for tabs and line ends; a carriage return would hide what stands before it."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", " ", text)


def short_paths(text: str) -> str:
    """Absolute paths of two and more folders as their last part alone: folders of a scratch tell nothing."""
    return re.sub(r"(?<![\w.:/])/(?:[\w.+@~-]+/){2,}([\w.+@-]+)", r"\1", text)


def excerpt(log: str, limit: int) -> str:
    """A log in about ``limit`` characters: long lines clipped, repeated ones once, and where that is still too long,
    what follows the first line that speaks of an error, then the end.
    """
    lines = [line[:LINE_CHARS] for line in dict.fromkeys(short_paths(log).strip().splitlines())]
    text = "\n".join(lines)
    if len(text) <= limit:
        return text
    end = _last_lines(lines, limit // 2)
    first = next((n for n, line in enumerate(lines) if re.search(r"\berror\b", line, re.IGNORECASE)), 0)
    start = _first_lines(lines[first : len(lines) - len(end)], limit // 2)
    return "\n".join([*start, "[...]", *end])


def _first_lines(lines: list[str], limit: int) -> list[str]:
    kept: list[str] = []
    for line in lines:
        if sum(len(k) + 1 for k in kept) + len(line) > limit:
            break
        kept.append(line)
    return kept


def _last_lines(lines: list[str], limit: int) -> list[str]:
    return _first_lines(lines[::-1], limit)[::-1]
