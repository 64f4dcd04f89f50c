"""What a workspace shows people beside its git refs: ``experiments/N/`` and the lines of results.tsv."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from autokernel.extension import Attempt, Exchange
from autokernel.run import history
from autokernel.run.gitstore import write_file
from autokernel.run.history import Row
from autokernel.types import AutokernelError, Experiment


def experiment_folder(folder: Path, number: int) -> Path:
    return folder / "experiments" / str(number)


def write_experiment(
    folder: Path, experiment: Experiment, attempts: Sequence[Attempt], exchanges: Sequence[Exchange]
) -> None:
    """``experiments/N``: candidate.py, verdict.json, log.txt; comparison.json where there is one; attempt-K.py and
    attempt-K.json (idea, verdict) of each attempt that failed before; exchange.jsonl, one exchange with a model a line.
    """
    verdict, comparison = experiment.verdict, experiment.comparison
    place = experiment_folder(folder, experiment.number)
    temporary = place.with_name(f".{experiment.number}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    files = {
        "candidate.py": experiment.candidate.source,
        "verdict.json": json.dumps(verdict.to_json(), indent=1),
        "log.txt": f"{verdict.status.value} at {verdict.stage}: {verdict.reason}\n{verdict.log_tail}\n",
    }
    if comparison:
        files["comparison.json"] = json.dumps(dataclasses.asdict(comparison), indent=1)
    for attempt in attempts:
        files[f"attempt-{attempt.number}.py"] = attempt.source
        told = {"idea": attempt.idea, "verdict": attempt.verdict.to_json()}
        files[f"attempt-{attempt.number}.json"] = json.dumps(told, indent=1)
    if exchanges:
        files["exchange.jsonl"] = "".join(f"{json.dumps(exchange)}\n" for exchange in exchanges)
    for name, text in files.items():
        (temporary / name).write_bytes(text.encode("utf-8", "replace"))
    shutil.rmtree(place, ignore_errors=True)
    temporary.rename(place)


def settle_table(folder: Path, rows: Sequence[Row], note: Callable[[str], None]) -> None:
    """Makes results.tsv agree with the rows of the refs; a file that was broken is kept beside it and named."""
    path = folder / history.FILE
    expected = history.render(rows)
    found = path.read_bytes() if path.exists() else b""
    if found == expected.encode():
        return
    older = [v for v in history.VERSIONS[:-1] if history.render(rows, v).encode().startswith(found)]
    if found and found.endswith(b"\n") and older:
        added = ", ".join(history.COLUMNS[len(older[-1]) :])
        note(f"{path} was of an older version: written again with the columns {added}")
    elif found and not expected.encode().startswith(found):
        theirs, ours = found.split(b"\n"), expected.encode().split(b"\n")
        pairs = enumerate(zip(theirs, ours, strict=False), start=1)
        line = next((number for number, (a, b) in pairs if a != b), min(len(theirs), len(ours)))
        try:
            more = len(history.parse(found.decode("utf-8"), str(path))) > len(rows)
        except (AutokernelError, UnicodeDecodeError):
            more = False
        if more:
            raise AutokernelError(
                f"{path} line {len(ours)}: experiment {len(rows) + 1} is told of, and git has no "
                f"refs/records/{len(rows) + 1}. Put .git back as it was, or remove the lines from there on"
            )
        aside = _unused(path)
        write_file(aside, found)
        note(f"{path} line {line} was broken: restored from the git refs; the broken file is {aside.name}")
    elif found and not found.endswith(b"\n"):
        note(f"{path} line {found.count(10) + 1} was cut off: restored from the git refs")
    write_file(path, expected.encode())


def _unused(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.broken-{n}") for n in range(1, 10_000))
    return next(name for name in names if not name.exists())
