"""A report as a person reads it: a table on the terminal, report.md and progress.png in the run's folder."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from autokernel.advice import advise
from autokernel.proof import NAMES, Proof, tables
from autokernel.report import Report, TargetReport
from autokernel.wording import clock, outcome, span, times

HEADINGS = (
    "target", "backend", "share", "tried", "kept", "starter", "champion", "vs eager", "of peak", "time", "measured in",
)  # fmt: skip
FOOTNOTE = (
    "starter and champion: speedup over the best of eager, torch.compile and the library, timed in the same session. "
    "measured in: the session that the champion's figures come from."
)


def _cells(target: TargetReport) -> tuple[str, ...]:
    return (
        target.name,
        target.backend,
        "–" if target.share is None else f"{target.share:.1%}",
        str(target.experiments),
        str(target.kept),
        times(target.starter_vs_best),
        times(target.speedup_vs_best),
        times(target.speedup_vs_eager),
        "–" if target.pct_peak is None else f"{target.pct_peak:.0f} %",
        "–" if target.latency_us is None else span(target.latency_us),
        target.source,
    )


def headline(report: Report) -> str:
    """One sentence: what the run is worth."""
    counts = f"{len(report.rows)} experiments, {report.kept} kept"
    if report.projected_speedup is None:
        return f"{report.run}: {counts}"
    proof = report.proof
    if report.nothing or (proof and proof.fastest is None):
        return f"{report.run}: {counts}; nothing is to be applied"
    if proof is None or proof.fastest is None:
        told = f"{report.projected_speedup:.2f}x as fast as eager (projected)"
        return f"{report.run}: {counts}; {report.subject} {told}"
    mode = "ours" if "ours" in proof.applied else proof.fastest
    over = proof.speedup[mode]["eager"]
    gain = f"{over['mean']:.2f}x as fast as eager"
    if over["low"] <= 1:
        gain = f"not shown to be faster than eager, {proof.gain(mode, 'eager')}"
    beside = "" if mode == "ours" else f"{NAMES[mode]}, "
    if proof.train:
        told = f"a training step {gain} ({beside}measured)"
    else:
        told = f"{report.subject} {gain} ({beside}measured; projected {report.projected_speedup:.2f}x)"
    if proof.forward_us[proof.rival] < proof.forward_us[mode]:  # no gain over eager is told without what beats it
        told += f"; {NAMES[proof.rival]} alone {proof.speedup[proof.rival]['eager']['mean']:.2f}x"
    return f"{report.run}: {counts}; {told}"


def facts(report: Report) -> list[str]:
    """How far to believe the figures, and what they cost."""
    spent = f"The experiments took {clock(report.judged_s)}"
    paid = report.tokens or report.cost_usd
    cost = f"; {report.tokens} tokens, {report.cost_usd:.2f} USD" if paid else "; no tokens, no cost"
    lines = [spent + cost + "."]
    if report.fixed:
        lines.append(f"{report.fixed} failed first and passed once they were fixed.")
    if report.aa_total:
        rate = report.aa_kept / report.aa_total
        lines.append(
            f"A/A: {report.aa_total} candidates were the champion itself; {report.aa_kept} would have been kept "
            f"(false-keep rate {rate:.0%})."
        )
    else:
        lines.append("A/A: none yet, so the false-keep rate of this run is not known.")
    degraded = collections.Counter(row.isolation for row in report.rows if row.isolation not in ("", "all"))
    for levels, count in degraded.most_common():
        lines.append(
            f"Isolation was degraded: {count} candidates ran {levels}; `autokernel doctor` says what that means."
        )
    for failure in report.failures:
        reason = f": {' '.join(failure.reason.split())[:160]}" if failure.reason else ""
        lines.append(f"{failure.count} ended with {failure.status}; the last one, #{failure.last_experiment}{reason}")
    return lines


def show(report: Report, console: Console) -> None:
    """The report on a terminal."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", title=headline(report), title_justify="left",
                  title_style="bold")  # fmt: skip
    for index, name in enumerate(HEADINGS):
        table.add_column(name, justify="left" if index in (0, 1, 10) else "right", no_wrap=True)
    for target in report.targets:
        cells = [escape(cell) for cell in _cells(target)]
        if target.speedup_vs_best is not None:
            cells[6] = f"[{'green' if target.speedup_vs_best > 1 else 'yellow'}]{cells[6]}[/]"
        table.add_row(*cells)
    console.print(table)
    console.print(f"[dim]{FOOTNOTE}[/]\n", soft_wrap=True)
    if report.proof:
        show_proof(report.proof, console)
    elif report.nothing:
        console.print(f"{report.nothing}\n", style="bold", markup=False, highlight=False, soft_wrap=True)
    for line in facts(report):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for line in advise(report):
        console.print(f"→ {line}", markup=False, highlight=False, style="cyan", soft_wrap=True)


def show_proof(proof: Proof, console: Console) -> None:
    """A verification on a terminal: whole forwards, each kernel's trial, and what it comes to."""
    for rows in filter(_is_filled, tables(proof)):
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for index, heading in enumerate(rows[0]):
            table.add_column(heading, justify="left" if index in (0, len(rows[0]) - 1) else "right", no_wrap=index == 0)
        for row in rows[1:]:
            table.add_row(*(escape(cell) for cell in row))
        console.print(table)
        console.print()
    console.print(proof.headline(), style="bold", highlight=False, soft_wrap=True)
    for line in proof.why():
        console.print(line, highlight=False, soft_wrap=True)
    console.print()


def _is_filled(rows: Sequence[tuple[str, ...]]) -> bool:
    return len(rows) > 1  # more than a heading


def markdown(report: Report) -> str:
    """report.md: the same, for a pull request or a colleague, with the kept experiments in order."""
    lines = [f"# {headline(report)}", ""]
    if report.model:
        lines += [f"Model: `{report.model}`", ""]
    lines += ["![every experiment, and each target's champion](progress.png)", "", "## Targets", ""]
    lines += [_row((*HEADINGS, "file")), _row(("---",) * (len(HEADINGS) + 1))]
    lines += [_row((*_cells(target), f"`{target.file}`")) for target in report.targets]
    lines += ["", FOOTNOTE, ""]
    if report.proof:
        lines += ["## The whole model, measured", "", f"{report.proof.headline()}.", ""]
        for rows in filter(_is_filled, tables(report.proof)):
            lines += [_row(rows[0]), _row(("---",) * len(rows[0])), *(_row(row) for row in rows[1:]), ""]
        lines += [*(f"- {line}" for line in report.proof.why()), ""]
    elif report.nothing:
        lines += [f"{report.nothing[0].upper()}{report.nothing[1:]}.", ""]
    lines += ["## How it went", "", *(f"- {line}" for line in facts(report)), ""]
    kept = [row for row in report.rows if row.decision == "keep"]
    if kept:
        lines += ["## What was kept", "", _row(("#", "target", "gain", "95 % interval", "idea", "commit"))]
        lines.append(_row(("---",) * 6))
        for row in kept:
            gain = "–" if row.speedup is None else f"{(row.speedup - 1) * 100:+.1f} %"
            low, high = (("–" if r is None else f"{(r - 1) * 100:+.1f}") for r in (row.ci_low, row.ci_high))
            interval, commit = f"{low} to {high}", f"`{row.commit[:10]}`"
            idea = f"{row.idea} (fixed, attempt {row.attempts})" if row.attempts > 1 else row.idea
            lines.append(_row((str(row.experiment), row.target, gain, interval, idea, commit)))
        lines += ["", "Gains are of one step over the version before it; they are not multiplied into a headline.", ""]
    if advice := advise(report):
        lines += ["## What to do next", "", *(f"- {line}" for line in advice), ""]
    return "\n".join(lines)


def _row(cells: tuple[str, ...]) -> str:
    """A row of a Markdown table; no cell can break it."""
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def write(report: Report) -> list[Path]:
    """Writes report.md and progress.png beside the rows; the paths. Raises OSError where that cannot be."""
    from autokernel import charts

    text, picture = report.folder / "report.md", report.folder / "progress.png"
    text.write_text(markdown(report), encoding="utf-8")
    points = [
        {"experiment": r.experiment, "target": r.target, "decision": r.decision, "speedup": r.speedup_vs_best}
        for r in report.rows
        if outcome(r) != "A/A"
    ]
    charts.progress(points, headline(report), picture)
    return [text, picture]
