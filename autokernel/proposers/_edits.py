"""An edit that a model asks for: exact, or refused with a reason from which the model can mend it. Never fuzzy.

A model calls one tool, ``edit_kernel``, with search/replace blocks or with a whole file. Every search text must occur
exactly once in the file as it is; all blocks are looked up in that file, so their order does not matter and none may
overlap another. What cannot be applied to the letter is refused: a guess at what was meant would be a candidate that
nobody wrote.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

TOOL_NAME = "edit_kernel"
TOOL_DESCRIPTION = (
    "Propose the next version of the kernel file: either `edits` (search/replace blocks) or `content` (the whole new "
    "file), never both. Each search text must be copied from the file to the letter, indentation and all, and must "
    "occur exactly once in it; add neighbouring lines until it does. Blocks are applied to the file as shown, "
    "together, and may not overlap. No other file can be changed."
)
TOOL_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "path": {"type": "string", "description": "The kernel file, as the task names it."},
        "idea": {"type": "string", "description": "One line: what is changed, and why that should be faster."},
        "edits": {
            "type": "array",
            "description": "Search/replace blocks.",
            "items": {
                "type": "object",
                "properties": {
                    "search": {"type": "string", "description": "Text that occurs exactly once in the file."},
                    "replace": {"type": "string", "description": "What stands there afterwards; may be empty."},
                },
                "required": ["search", "replace"],
            },
        },
        "content": {"type": "string", "description": "The whole new file, instead of edits."},
    },
    "required": ["path", "idea"],
}
IDEA_CHARACTERS = 300  # of an idea, which becomes the subject of a commit and a cell of a table
_SHOWN_LINES = 12  # of the file, around what a search text nearly is


class EditRefused(Exception):
    """Why an edit was not applied: ``reason`` on one line, and for the model what of the file helps to mend it."""

    def __init__(self, reason: str, shown: str = "") -> None:
        super().__init__(f"{reason}{shown}")
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Edited:
    """The new file and the idea behind it, on one line."""

    source: str
    idea: str


def edited(source: str, file: str, arguments: Mapping[str, Any]) -> Edited:
    """The file after a call of the tool with these arguments. ``file`` is the only path that may be named.

    Raises EditRefused.
    """
    path = arguments.get("path", file)
    if path != file:
        raise EditRefused(f"expected path {file!r}, the only file that can change, got {path!r}")
    idea = arguments.get("idea")
    if not isinstance(idea, str) or not idea.strip():
        raise EditRefused(f"expected idea to be one line of text that says what is changed and why, got {idea!r}")
    edits, content = arguments.get("edits"), arguments.get("content")
    if edits and content:
        raise EditRefused("got both edits and content: send search/replace blocks or the whole file, not both")
    whole = content is not None and not edits
    changed = _whole(source, content) if whole else replaced(source, _blocks(edits))
    if changed == source:
        raise EditRefused("the edit changes nothing: the file would be, character for character, the one shown")
    return Edited(changed, " ".join(idea.split())[:IDEA_CHARACTERS])


def replaced(source: str, blocks: Sequence[tuple[str, str]]) -> str:
    """The file with each block's search text replaced, all at once. Raises EditRefused."""
    spans: list[tuple[int, int, int, str]] = []  # begin, end, number of the block, what stands there afterwards
    for number, (search, replace) in enumerate(blocks, 1):
        if not search:
            raise EditRefused(
                f"edit {number} has an empty search text: to insert lines, search for the line beside them and repeat "
                "it in replace; to write the whole file, send content"
            )
        if search == replace:
            raise EditRefused(f"edit {number} changes nothing: its search and replace texts are the same")
        _same_line_ends(source, replace, f"edit {number}'s replace text")
        found = _occurrences(source, search)
        if not found:
            reason, shown = _missing(source, search)
            raise EditRefused(f"edit {number}: {reason}", shown)
        if len(found) > 1:
            lines = ", ".join(str(_line(source, at)) for at in found[:8])
            raise EditRefused(
                f"edit {number}: the search text occurs {len(found)} times (at lines {lines}); add neighbouring lines "
                "until it occurs once"
            )
        spans.append((found[0], found[0] + len(search), number, replace))
    spans.sort()
    for (_, end, one, _), (begin, _, other, _) in itertools.pairwise(spans):
        if begin < end:
            raise EditRefused(
                f"edits {min(one, other)} and {max(one, other)} overlap at line {_line(source, begin)}: make them one"
            )
    parts, at = list[str](), 0
    for begin, end, _, replace in spans:
        parts += [source[at:begin], replace]
        at = end
    return "".join([*parts, source[at:]])


def _blocks(edits: Any) -> list[tuple[str, str]]:
    if not edits:
        raise EditRefused("the call holds no edit: send edits (search/replace blocks) or content (the whole file)")
    if not isinstance(edits, list):
        raise EditRefused(f"expected edits to be a list of search/replace blocks, got {type(edits).__name__}")
    blocks = []
    for number, block in enumerate(edits, 1):
        search, replace = (block.get("search"), block.get("replace")) if isinstance(block, dict) else (None, None)
        if not isinstance(search, str) or not isinstance(replace, str):
            raise EditRefused(f"expected edit {number} to be an object with the texts search and replace")
        blocks.append((search, replace))
    return blocks


def _whole(source: str, content: Any) -> str:
    if not isinstance(content, str) or not content.strip():
        raise EditRefused("content is empty: expected the whole new file")
    _same_line_ends(source, content, "content")
    return content


def _same_line_ends(source: str, text: str, what: str) -> None:
    if "\r" in text and "\r" not in source:
        raise EditRefused(f"{what} has carriage returns (CRLF): the file's lines end in LF alone, and so must these")
    if "\r\n" in source and "\n" in text.replace("\r\n", ""):
        raise EditRefused(f"{what} has bare LF: the file's lines end in CRLF, and so must these")


def _occurrences(source: str, search: str) -> list[int]:
    """Where the text begins, overlapping occurrences included: one of those is as ambiguous as any other."""
    found, at = [], source.find(search)
    while at >= 0:
        found.append(at)
        at = source.find(search, at + 1)
    return found


def _line(source: str, at: int) -> int:
    return source.count("\n", 0, at) + 1


def _missing(source: str, search: str) -> tuple[str, str]:
    """Why a search text is not in the file: what it differs in, where that can be told; and the nearest lines."""
    unix, sought = source.replace("\r\n", "\n"), search.replace("\r\n", "\n")
    if sought in unix:
        ends = ("LF", "CRLF") if "\r\n" in search else ("CRLF", "LF")
        told = f"the search text differs from the file in its line ends alone: the file has {ends[0]}, it has {ends[1]}"
        return told, ""
    lines, wanted = unix.split("\n"), sought.strip("\n").split("\n")
    first = _nearest(lines, wanted)
    shown = lines[first : first + min(len(wanted), _SHOWN_LINES)]
    quoted = "\n".join(f"{first + n:>5} | {line}" for n, line in enumerate(shown, 1))
    there = lines[first : first + len(wanted)]
    if [line.rstrip() for line in there] == [line.rstrip() for line in wanted]:
        why = f"it differs from those at line {first + 1} in trailing whitespace alone"
    elif [line.strip() for line in there] == [line.strip() for line in wanted]:
        why = f"it differs from those at line {first + 1} in indentation alone"
    else:
        why = f"the nearest lines are at line {first + 1}"
    return f"the search text does not occur in the file; {why}", f" (the numbers are no part of it):\n{quoted}"


def _nearest(lines: Sequence[str], wanted: Sequence[str]) -> int:
    """Index of the first of as many lines as are wanted that resemble these the most."""
    sought = [line.strip() for line in wanted]
    matcher = difflib.SequenceMatcher(autojunk=False)
    known: dict[tuple[str, str], float] = {}

    def alike(a: str, b: str) -> float:
        if a == b:
            return 1.0 if a else 0.25  # blank lines are everywhere: they say little
        if (a, b) not in known:
            matcher.set_seqs(a, b)
            known[a, b] = matcher.ratio() if matcher.quick_ratio() > 0.5 else 0.0
        return known[a, b]

    stripped = [line.strip() for line in lines]
    sampled = list(enumerate(sought))[:: max(1, len(sought) // _SHOWN_LINES)]  # a whole function is told by a few lines
    scores = [
        sum(alike(stripped[first + n], line) for n, line in sampled if first + n < len(stripped))
        for first in range(max(1, len(lines) - len(sought) + 1))
    ]
    return scores.index(max(scores))
