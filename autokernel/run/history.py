"""``results.tsv``: one row an experiment, written so that any tool can read it and no text can break it.

Free text is escaped (``\\t``, ``\\n``, ``\\r``, ``\\\\``); a number that does not exist is an empty cell. ``speedup``,
``ci_low`` and ``ci_high`` are ratios against the incumbent (1.05: five percent faster).
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autokernel.isolation import summary
from autokernel.types import AutokernelError, Decision, Experiment, Status

FILE = "results.tsv"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of results.tsv; the fields are the columns, in order. ``time`` is ISO 8601 UTC; ``seconds`` is the
    experiment's wall time, and its cost what asking cost, both of all its attempts; ``commit`` and ``parent`` are git
    commits of the workspace; ``attempts`` is 1, and 1 more for each time that it failed and was mended; ``isolation``
    is what the candidate ran under: "all", or "without" and the levels that were missing ("" where nobody noted it).
    """

    experiment: int
    time: str
    target: str
    problem: str
    backend: str
    proposer: str
    idea: str
    status: str
    stage: str
    decision: Decision
    latency_us: float | None
    incumbent_us: float | None
    speedup: float | None
    ci_low: float | None
    ci_high: float | None
    speedup_vs_eager: float | None
    speedup_vs_best: float | None
    pct_peak: float | None
    seconds: float
    tokens_in: int
    tokens_out: int
    cost_usd: float
    commit: str
    parent: str
    attempts: int = 1
    isolation: str = ""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Row:
        return cls(**data)


COLUMNS: tuple[str, ...] = tuple(field.name for field in dataclasses.fields(Row))
HEADER = "\t".join(COLUMNS)
OLDER = tuple(field.name for field in dataclasses.fields(Row) if field.default is dataclasses.MISSING)
VERSIONS = tuple(COLUMNS[:count] for count in range(len(OLDER), len(COLUMNS) + 1))  # each added columns at the end
_KNOWN = {"\t".join(columns): columns for columns in VERSIONS}  # header -> columns of a file that can be read


def row_of(experiment: Experiment, parent: str) -> Row:
    """The row of a finished experiment whose commit has this parent commit."""
    verdict, comparison, cost = experiment.verdict, experiment.comparison, experiment.cost
    measured = verdict.measurements
    return Row(
        experiment=experiment.number,
        time=experiment.time,
        target=experiment.target.name,
        problem=experiment.target.kernel_type,
        backend=experiment.target.backend,
        proposer=experiment.candidate.author,
        idea=experiment.candidate.idea,
        status=verdict.status.value,
        stage=verdict.stage,
        decision=experiment.decision,
        latency_us=measured.latency_us if measured else None,
        incumbent_us=comparison.incumbent_us if comparison else None,
        speedup=_ratio(comparison.log_ratio) if comparison else None,
        ci_low=_ratio(comparison.ci_low) if comparison else None,
        ci_high=_ratio(comparison.ci_high) if comparison else None,
        speedup_vs_eager=measured.speedup_vs_eager if measured else None,
        speedup_vs_best=measured.speedup_vs_best if measured else None,
        pct_peak=measured.pct_peak if measured else None,
        seconds=experiment.seconds,
        tokens_in=cost.tokens_in,
        tokens_out=cost.tokens_out,
        cost_usd=cost.cost_usd,
        commit=experiment.commit,
        parent=parent,
        attempts=experiment.attempts,
        isolation=summary(verdict.environment.get("isolation") or {}),
    )


def _ratio(log_ratio: float) -> float:
    """exp, kept within what a float holds: the interval of two wild blocks can be that wide."""
    return math.exp(max(-700.0, min(700.0, log_ratio)))


# ------------------------------------------------------------------------------------------------- text to and fro

_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_UNESCAPES = {written: raw for raw, written in _ESCAPES.items()}
# Other characters at which str.splitlines (and so many a reader) would break a line, and the NUL, become spaces.
_BREAKS = re.compile("[\x00\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")


def escape(text: str) -> str:
    text = _BREAKS.sub(" ", text).encode("utf-8", "replace").decode("utf-8")
    return re.sub(r"[\\\t\n\r]", lambda found: _ESCAPES[found.group()], text)


def unescape(cell: str) -> str:
    """Raises ValueError where a backslash starts none of the four escapes."""

    def raw(found: re.Match[str]) -> str:
        if found.group() not in _UNESCAPES:
            raise ValueError(f"'{found.group()}' is no escape")
        return _UNESCAPES[found.group()]

    return re.sub(r"\\.?", raw, cell)


def _number(cell: str) -> float:
    value = float(cell)
    if not math.isfinite(value):
        raise ValueError("not a finite number")
    return value


def _count(cell: str) -> int:
    if not cell.isascii() or not cell.isdigit():
        raise ValueError("not a whole number")
    return int(cell)


def _one_of(allowed: Sequence[str]) -> Callable[[str], str]:
    def parse(cell: str) -> str:
        if cell not in allowed:
            raise ValueError("not one of " + ", ".join(allowed))
        return cell

    return parse


def _optional(parse: Callable[[str], float]) -> Callable[[str], float | None]:
    return lambda cell: parse(cell) if cell else None


def _commit(cell: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{40}", cell):
        raise ValueError("not a commit (40 hexadecimal digits)")
    return cell


def _time(cell: str) -> str:
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", cell):
        raise ValueError("not a time like 2026-01-31T23:59:59Z")
    return cell


_BY_TYPE: Mapping[str, Callable[[str], Any]] = {
    "int": _count,
    "float": _number,
    "float | None": _optional(_number),
    "str": unescape,
}
_PARSERS: Mapping[str, Callable[[str], Any]] = {
    **{field.name: _BY_TYPE.get(str(field.type), unescape) for field in dataclasses.fields(Row)},
    "time": _time,
    "status": _one_of([status.value for status in Status]),
    "decision": _one_of(typing.get_args(Decision)),
    "commit": _commit,
    "parent": _commit,
}


def format_row(row: Row, columns: Sequence[str] = COLUMNS) -> str:
    """The line of a row, without its newline. Floats keep seven significant digits."""

    def cell(value: object) -> str:
        if value is None:
            return ""
        return format(value, ".7g") if isinstance(value, float) else escape(str(value))

    return "\t".join(cell(getattr(row, name)) for name in columns)


def parse_row(line: str, columns: Sequence[str] = COLUMNS) -> Row:
    """The row of a line. Raises ValueError that names the column."""
    cells = line.split("\t")
    if len(cells) != len(columns):
        raise ValueError(f"{len(columns)} tab-separated columns expected, {len(cells)} found")
    values: dict[str, Any] = {}
    for name, cell in zip(columns, cells, strict=True):
        try:
            values[name] = _PARSERS[name](cell)
        except ValueError as error:
            raise ValueError(f"column '{name}' holds {cell[:40]!r}: {error}") from error
    return Row(**values)


# ------------------------------------------------------------------------------------------------- the file


def parse(text: str, where: str) -> list[Row]:
    """The rows of a file's text, of this version or of an older one, which had fewer columns. Raises
    AutokernelError that names the line and the column.
    """

    def wrong(number: int, what: str) -> AutokernelError:
        return AutokernelError(
            f"{where} line {number}: {what}; `autokernel run` on this workspace restores the file from its git refs"
        )

    lines = text.split("\n")
    if lines[0] not in _KNOWN:
        raise wrong(
            1, f"the header of results.tsv was expected ({COLUMNS[0]}, {COLUMNS[1]}, ...), {lines[0][:40]!r} found"
        )
    if lines.pop() != "":
        raise wrong(len(lines) + 1, "the line has no end: the file was cut off")
    rows: list[Row] = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            row = parse_row(line, _KNOWN[lines[0]])
        except ValueError as error:
            raise wrong(number, str(error)) from error
        if row.experiment != len(rows) + 1:
            raise wrong(number, f"experiment {len(rows) + 1} expected, {row.experiment} found")
        rows.append(row)
    return rows


def read(path: Path) -> list[Row]:
    """The rows of a results.tsv, or of the one in a run's folder. Raises AutokernelError that names the line."""
    path = path / FILE if path.is_dir() else path
    try:
        return parse(path.read_bytes().decode("utf-8"), str(path))
    except FileNotFoundError as error:
        raise AutokernelError(f"{path}: no such file; a results.tsv or the folder of a run was expected") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise AutokernelError(
            f"{path} line {line}: UTF-8 text expected, byte 0x{error.object[error.start]:02x} found; "
            "`autokernel run` on this workspace restores the file from its git refs"
        ) from error
    except OSError as error:
        raise AutokernelError(f"{path} cannot be read: {error.strerror or error}") from error


def render(rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> str:
    """The text of a whole file."""
    return "".join(f"{line}\n" for line in ["\t".join(columns), *(format_row(row, columns) for row in rows)])


def append(path: Path, row: Row) -> None:
    """Adds one line and has it on the disk when it returns. Raises OSError."""
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(format_row(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


# ------------------------------------------------------------------------------------------------- what rows say


def champion(rows: Sequence[Row], target: str) -> Row | None:
    """The row whose kernel stands now for this target: its last kept one, else its passing baseline, else None."""
    for row in reversed(rows):
        if row.target == target and (row.decision == "keep" or (row.decision == "baseline" and row.status == "PASS")):
            return row
    return None


def false_keeps(rows: Sequence[Row], min_gain: float = 0.005) -> tuple[int, int]:
    """(A/A comparisons whose lower bound passed the minimum gain, all A/A comparisons): the observed false keeps."""
    bounds = [row.ci_low for row in rows if row.decision == "aa" and row.ci_low is not None]
    return sum(low > 1.0 + min_gain for low in bounds), len(bounds)
