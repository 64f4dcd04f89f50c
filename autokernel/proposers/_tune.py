"""The ``# tune:`` constants of a kernel file: reading them, and writing a file with other values.

``MR = 6  # tune: 4, 6, 8 | rows of the register tile`` is a module-level constant, the values worth trying (Python
literals, the current one among them) and what it is. A line that does not read so is no tunable.
"""

from __future__ import annotations

import ast
import dataclasses
import io
import json
import tokenize
from collections.abc import Mapping

Value = int | float | str | bool


@dataclasses.dataclass(frozen=True)
class Constant:
    """``choices`` are in the file's order, numbers ascending; ``start`` and ``end`` are the value's place, in bytes."""

    name: str
    value: Value
    choices: tuple[Value, ...]
    note: str
    start: int
    end: int

    @property
    def ordered(self) -> bool:
        """Whether neighbours in ``choices`` are neighbours in effect: numbers are, flags are not."""
        return all(isinstance(choice, (int, float)) and not isinstance(choice, bool) for choice in self.choices)

    @property
    def index(self) -> int:
        return self.choices.index(self.value)


def constants(source: str) -> tuple[Constant, ...]:
    """The tunables of a file in its order; none where the file does not parse."""
    try:
        tree, comments = ast.parse(source), _comments(source)
    except (SyntaxError, ValueError, tokenize.TokenError):
        return ()
    found = []
    for node in tree.body:
        if not isinstance(node, ast.Assign) or len(node.targets) != 1 or not isinstance(node.targets[0], ast.Name):
            continue
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        comment = next((comments[line] for line in lines if "tune:" in comments.get(line, "")), None)
        if comment is None:
            continue
        written, _, note = comment.split("tune:", 1)[1].partition("|")
        try:
            value, choices = ast.literal_eval(node.value), ast.literal_eval(f"({written.strip().rstrip(',')},)")
        except (SyntaxError, ValueError):
            continue
        if value not in choices or not all(isinstance(choice, (int, float, str)) for choice in choices):
            continue
        start, end = span(source, node.value)
        constant = Constant(node.targets[0].id, value, tuple(dict.fromkeys(choices)), note.strip(), start, end)
        if constant.ordered:
            constant = dataclasses.replace(constant, choices=tuple(sorted(constant.choices)))
        found.append(constant)
    return tuple(found)


def with_values(source: str, values: Mapping[str, Value]) -> str:
    """The same file with other values of some of its tunables."""
    data = source.encode()
    for constant in sorted(constants(source), key=lambda c: -c.start):
        if constant.name in values:
            value = values[constant.name]
            text = json.dumps(value) if isinstance(value, str) else repr(value)
            data = data[: constant.start] + text.encode() + data[constant.end :]
    return data.decode()


def span(source: str, node: ast.expr) -> tuple[int, int]:
    """Where an expression stands in the UTF-8 bytes of its file."""
    lines = source.encode().splitlines(keepends=True)
    before = [0]
    for line in lines:
        before.append(before[-1] + len(line))
    last = node.end_lineno or node.lineno
    return before[node.lineno - 1] + node.col_offset, before[last - 1] + (node.end_col_offset or 0)


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
