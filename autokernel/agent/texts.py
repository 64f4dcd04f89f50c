"""The texts of an agent's folder: TASK.md and BRIEF.md, written anew after each experiment, and ITERATIONS.md, to which
only is added, because the agent writes its analyses there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from autokernel import assets
from autokernel.agent.place import Place
from autokernel.evaluate.bench_metric import read as read_bench
from autokernel.extension import Brief
from autokernel.guide.text import render
from autokernel.run.desk import HINTS, standing
from autokernel.run.gitstore import told, write_file
from autokernel.types import Experiment, Measurements, Status

TASK, BRIEF, ITERATIONS, PROGRAM = "TASK.md", "BRIEF.md", "ITERATIONS.md", "program.md"
ROWS_END = "<!-- rows end -->"
_ENTRY = re.compile(r"(?m)^## Iteration (\d+):")
_ITERATIONS = f"""# Iterations

One row and one section for each experiment; the newest is last. The sections are yours to complete: why it came out as
it did, and what follows. Only the last line of the table is looked for, so leave it where it is.

| experiment | hypothesis | change | result | decision |
|---|---|---|---|---|
{ROWS_END}
"""
_TASK = """# Task: make this kernel faster

Edit {kernels} and nothing else, for one idea at a time; then

    autokernel try -m "tier 2: what you changed, and why it should help"

The edit is judged: correctness first, then its time against the version that stands, in interleaved runs. If it is
faster beyond doubt, it is committed and is what the next edit starts from; otherwise the file is put back (your version
is kept in `experiments/N/candidate.py`). Then write into ITERATIONS.md what you learned, and go on.

{judged}

## Rules

- The judge decides. Nothing that you write outside the kernel file changes what it measures.
- `context/` is for reading. `results.tsv`, `experiments/` and `.git` are written by the judge alone.
- A kernel that computes less than asked, remembers answers, calls a library for the work, or looks for the judge is
  refused; program.md says how that is found out.
- HINTS.md holds the owner's hints for this folder: read it before each idea.

## Commands

| | |
|---|---|
| `autokernel try -m "..."` | judge the edit, keep or reset it; `--json` for one JSON object |
| `autokernel bench {first}` | judge without an experiment: nothing is kept or reset |
| `autokernel status` | where it stands, and what to try next |
| `autokernel history` | every experiment, one line each |
| `autokernel show N`, `autokernel diff N` | all about experiment N; its change |
| `autokernel report` | what was won, for the owner |

program.md: how to think about a kernel, in six tiers. BRIEF.md: all that is known of this one, made anew after each
experiment. `context/`: the reference, the model, the profile: what there is.

## Where it stands

{standing}
Due next: {next_step}.
"""


def write_new(place: Place) -> None:
    """The texts of a new folder that are not written anew later."""
    for name, text in ((PROGRAM, assets.program()), (ITERATIONS, _ITERATIONS), (HINTS, "")):
        _put(place.folder / name, text)


def write_task(place: Place, experiments: Sequence[Experiment], next_step: str) -> None:
    """TASK.md: what is asked, by which rules, with which commands, and where it stands."""
    text = _TASK.format(
        kernels=", ".join(f"`{target.file}`" for target in place.targets),
        first=place.targets[0].file,
        judged=_how_judged(place),
        standing="\n".join(standing_lines(place, experiments)),
        next_step=next_step,
    )
    _put(place.folder / TASK, text)


def standing_lines(place: Place, experiments: Sequence[Experiment]) -> list[str]:
    """A line for each target: its champion's time and what was tried."""
    lines = []
    for target in place.targets:
        mine = [e for e in experiments if e.target.name == target.name]
        stands, tried = standing(mine), [e for e in mine if e.decision in ("keep", "revert")]
        kept = sum(e.decision == "keep" for e in tried)
        if stands is None or stands.verdict.measurements is None:
            lines.append(f"{target.name}: no version passes yet.")
            continue
        since = f"since experiment {stands.number}" if stands.decision == "keep" else "the version it started from"
        lines.append(
            f"{target.name}: {measured(stands.verdict.measurements)}; {since}; {len(tried)} tried, {kept} kept."
        )
    return lines


def measured(found: Measurements) -> str:
    """A time and its position, in words."""
    parts = [f"{found.latency_us:,.2f} us"]
    if found.speedup_vs_eager is not None:
        parts.append(f"{found.speedup_vs_eager:.2f}x eager")
    if found.speedup_vs_best is not None and found.speedup_vs_best != found.speedup_vs_eager:
        parts.append(f"{found.speedup_vs_best:.2f}x the best baseline")
    if found.pct_peak is not None:
        parts.append(f"{found.pct_peak:.0f} % of the roofline ceiling")
    return ", ".join(parts)


def write_brief(place: Place, asked: Brief) -> None:
    _put(place.folder / BRIEF, render(asked).text)


def without_entry(place: Place, experiments: Sequence[Experiment]) -> list[Experiment]:
    """Those that ITERATIONS.md has no section for."""
    path = place.folder / ITERATIONS
    with told(path):
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    known = {int(number) for number in _ENTRY.findall(text)}
    return [e for e in experiments if e.number not in known]


def add_entry(place: Place, experiment: Experiment, change: tuple[int, int], next_step: str) -> None:
    """One row at the end of the table and one section at the end of the file; what is there is not touched."""
    path = place.folder / ITERATIONS
    with told(path):
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else _ITERATIONS
    idea, lines = experiment.candidate.idea, f"+{change[0]} −{change[1]} lines"
    cells = (str(experiment.number), idea, lines, result(experiment), experiment.decision)
    row = "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
    head, found, rest = text.partition(ROWS_END)
    if found:
        text = f"{head}{row}{found}{rest}"
    section = [
        f"## Iteration {experiment.number}: {idea}",
        "",
        f"- Change: {lines} (`autokernel diff {experiment.number}`)",
        f"- Result: {experiment.decision}: {result(experiment)}",
        "- Analysis: ",
        f"- Next: due is {next_step}",
    ]
    _put(path, text.rstrip("\n") + "\n\n" + "\n".join(section) + "\n")


def result(experiment: Experiment) -> str:
    """The outcome of an experiment, in one line."""
    verdict, comparison = experiment.verdict, experiment.comparison
    if verdict.status is not Status.PASS:
        return f"{verdict.status.value} at {verdict.stage}: {' '.join(verdict.reason.split())}"
    time = measured(verdict.measurements) if verdict.measurements else ""
    return f"{comparison.reason}; {time}" if comparison else time


def _how_judged(place: Place) -> str:
    target = place.targets[0]
    if target.problem.endswith(".json"):
        bench = read_bench(Path(target.problem))
        better = "the higher the better" if bench.higher_is_better else "a time: the lower the better"
        return (
            f"Judged by the owner's command `{bench.command}`: exit status 0 is correct, the line `metric: NUMBER` is "
            f"the speed ({better}). It runs in a copy of this folder's `context/` and the kernel, confined."
        )
    what = f"`context/{Path(target.problem).name}`" if target.problem.endswith(".py") else f"`{target.problem}`"
    works = "; ".join(f"{w.count} x {w.key}" for w in target.workloads)
    signature = place.signature or "kernel_fn"
    return (
        f"Problem: {what}; backend: `{target.backend}`; device: `{place.settings['device']}`. Five stages of "
        f"correctness (`{signature}` against the reference), then the time of these calls: {works}."
    )


def _put(path: Path, text: str) -> None:
    with told(path):
        write_file(path, text.encode("utf-8", "replace"))
