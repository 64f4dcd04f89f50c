"""The parts of a brief that change with each experiment."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from autokernel.extension import Attempt, Brief
from autokernel.guide.figures import Bound, Call, worth
from autokernel.guide.prefix import micro
from autokernel.guide.progress import TIERS, Due, ideas, tier_of
from autokernel.guide.quoting import cell, excerpt, fenced, short_paths
from autokernel.types import Experiment, Measurements, Status

IDEA_CHARS, REASON_CHARS, EVIDENCE_LINES = 140, 180, 40
MEANING = {
    "memory": "memory-bound: bytes decide; fewer of them, in wider and earlier accesses",
    "compute": "compute-bound: the multiply-add units decide; keep them fed",
    "launch": "launch-bound: starting the work costs as much as the work; fewer launches, less Python, fewer barriers",
    "": "unknown: no ceilings or no cost function",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Context:
    """What was computed once for a brief: the cost of its calls, what bounds them, the tier that is due."""

    costs: Sequence[Call]
    bound: Bound
    due: Due
    device: str


@dataclasses.dataclass(frozen=True)
class Room:
    """How much of what may be left out is there. ``rows`` and ``notes`` None: all of them."""

    spare: str
    rows: int | None
    log_chars: int
    evidence: bool
    notes: int | None


def compose(brief: Brief, context: Context, room: Room) -> str:
    """The body with this much room."""
    sections = (
        why_it_matters(brief),
        position(brief, context),
        evidence(brief.evidence) if room.evidence else "",
        experiments(brief.history, room.rows),
        tier_due(context.due, room.spare),
        notes(brief.notes, room.notes),
        hints(brief.hints),
        f"## The file as it stands: {brief.target.file}\n\n{fenced(brief.source, language(brief))}\n",
        failed(brief.failed, room.log_chars, language(brief)) if brief.failed else "",
        ask(brief, context.due),
    )
    return "\n".join(section for section in sections if section)


def why_it_matters(brief: Brief) -> str:
    target, gain = brief.target, worth(brief.target, brief.position)
    if not target.eager_us:
        return "## Why this target\n\nThe kernel stands alone, outside of any model: its own time is the score.\n"
    headroom = f"{target.eager_us / target.floor_us:.1f}x" if target.floor_us else "unknown"
    return (
        "## Why this target\n\n"
        f"It took {target.share:.1%} of the forward pass as the model's owner wrote it, {headroom} its roofline floor, "
        f"and takes {gain.share_now:.1%} with the version that stands. With that version the forward is "
        f"{gain.now:.3f}x as fast as it was; 10 % less time here makes it {gain.at_ten:.3f}x, and the floor would make "
        f"it {gain.at_floor:.3f}x (Amdahl's law, all else unchanged).\n"
    )


def position(brief: Brief, context: Context) -> str:
    """Where the incumbent stands: its time, beside the baselines, the floor and the noise."""
    head = "## Where the version that stands is\n\n"
    measured = brief.position
    if measured is None:
        return head + "It has not been measured yet.\n"
    best = min(measured.baselines_us.values(), default=0.0)
    others = ", ".join(
        f"{name} {micro(us)} µs ({us / measured.latency_us:.2f}x)" for name, us in measured.baselines_us.items()
    )
    lines = [
        f"{micro(measured.latency_us)} µs a forward, ± {measured.noise_pct:.1f} %." + (f" {others}." if others else "")
    ]
    if best:
        behind = measured.latency_us / best
        lines.append(f"It is {best / measured.latency_us:.2f}x as fast as the best baseline." if behind <= 1 else
                     f"It is slower than the best baseline: {behind:.2f} times its time.")  # fmt: skip
    peak = f"{measured.pct_peak:.0f} % of the roofline ceiling; " if measured.pct_peak is not None else ""
    lines.append(f"{peak}{MEANING[context.bound]}.")
    rows = list(_each_workload(measured, context.costs))
    if len(rows) > 1:
        lines += [
            "",
            "| workload | µs a call | floor µs | % of it | share of this target |",
            "|---|---|---|---|---|",
            *rows,
        ]
    return head + "\n".join(lines) + "\n"


def _each_workload(measured: Measurements, costs: Sequence[Call]) -> Iterator[str]:
    floors = {c.workload.key: c for c in costs}
    for key, us in measured.workloads_us.items():
        cost = floors.get(key)
        count = cost.workload.count if cost else 1
        floor = cost.floor_us if cost else 0.0
        peak = f"{100 * floor / us:.0f} %" if floor and us else "–"
        share = f"{count * us / measured.latency_us:.0%}" if cost and measured.latency_us else "–"
        yield f"| {cell(key, 100)} | {micro(us)} | {micro(floor)} | {peak} | {share} |"


def evidence(found: Mapping[str, Any]) -> str:
    """What the compiler and the profiler reported of each kernel."""
    lines: list[str] = []
    for kernel, figures in sorted(found.items()):
        if isinstance(figures, Mapping):
            lines.append(f"{cell(str(kernel), 80)}: " + ", ".join(_figures(figures, "")))
        else:
            lines.append(f"{cell(str(kernel), 80)}: {_figure(figures)}")
    if not lines:
        return ""
    cut = lines[:EVIDENCE_LINES] + ([f"({len(lines) - EVIDENCE_LINES} more)"] if len(lines) > EVIDENCE_LINES else [])
    spilled = [figures.get("spill_bytes") for figures in found.values() if isinstance(figures, Mapping)]
    spills = any(isinstance(size, (int, float)) and size > 0 for size in spilled)
    told = "\nRegisters are spilled to local memory: fewer live values a thread, or more threads.\n" if spills else ""
    return "## What compiler and profiler report of it\n\n" + fenced("\n".join(cut)) + "\n" + told


def _figures(figures: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _figures(value, f"{prefix}{name}.")
        else:
            yield f"{cell(prefix + str(name), 60)} {_figure(value)}"


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else cell(str(value), 200)


def shown(history: Sequence[Experiment]) -> list[Experiment]:
    """The experiments that the table lists: all but A/A repetitions."""
    return [e for e in history if e.decision != "aa"]


def experiments(history: Sequence[Experiment], rows: int | None) -> str:
    """A line an experiment, the newest last, and a sum of them by tier."""
    listed = shown(history)
    if not ideas(history):
        return "## Experiments so far\n\nNone yet but the baseline.\n" if listed else ""
    kept = [e for e in ideas(history) if e.decision == "keep"]
    by_tier = ", ".join(
        f"tier {tier}: {sum(e.decision == 'keep' for e in group)} of {len(group)}"
        for tier in TIERS
        if (group := [e for e in ideas(history) if tier_of(e) == tier])
    )
    lines = [f"{len(ideas(history))} ideas tried, {len(kept)} kept" + (f" ({by_tier})." if by_tier else ".")]
    visible = listed if rows is None else listed[len(listed) - rows :]
    if len(visible) < len(listed):
        lines.append(f"The oldest {len(listed) - len(visible)} are not shown.")
    if visible:
        lines += ["", "| # | tier | idea | outcome | change [interval] | why |", "|---|---|---|---|---|---|"]
        lines += [_row(e) for e in visible]
    return "## Experiments so far\n\n" + "\n".join(lines) + "\n"


def _row(e: Experiment) -> str:
    passed = e.verdict.status is Status.PASS
    outcome = {"keep": "kept", "revert": "reverted", "baseline": "baseline"}.get(e.decision, e.decision)
    if not passed:
        outcome = e.verdict.status.value
    if e.attempts > 1:
        outcome += f", attempt {e.attempts}"
    change = "–"
    if e.comparison is not None:
        c = e.comparison
        low, high = (percent(bound).removesuffix(" %") for bound in (c.ci_low, c.ci_high))
        change = f"{percent(c.log_ratio)} [{low}, {high}]"
    reason = "" if e.decision in ("keep", "baseline") and passed else _why(e)
    tier = "" if e.decision == "baseline" else str(tier_of(e) or "?")
    return f"| {e.number} | {tier} | {cell(e.candidate.idea, IDEA_CHARS)} | {outcome} | {change} | {reason} |"


def _why(e: Experiment) -> str:
    if e.verdict.status is not Status.PASS:
        return cell(f"at {e.verdict.stage}: {short_paths(e.verdict.reason)}", REASON_CHARS)
    return cell(e.comparison.reason.partition(":")[0] if e.comparison else "", REASON_CHARS)


def percent(log_ratio: float) -> str:
    """A log ratio as a percentage of speed; what is beyond a hundredfold either way is only called so."""
    if log_ratio > 4.6:
        return "> +10,000 %"
    return "< -99 %" if log_ratio < -4.6 else f"{100 * math.expm1(log_ratio):+.1f} %"


def tier_due(due: Due, spare: str) -> str:
    """The tier to work in now, and its text where the prefix had no room for it."""
    if due.tier is None:
        told = (
            f"None: {due.reason}. Do what the section on being stuck says: another algorithm or data layout, two near "
            "misses together, or the reverse of an early decision."
        )
    else:
        told = f"Tier {due.tier}, {TIERS[due.tier]}: {due.reason}. A better idea from another tier is welcome."
    return f"## The tier that is due\n\n{told}\n" + (f"\n{spare}" if spare else "")


def notes(every: Sequence[str], count: int | None) -> str:
    if not every:
        return ""
    kept = every if count is None else every[len(every) - count :]
    return "## What became of proposals that were not judged\n\n" + fenced("\n".join(kept)) + "\n"


def hints(text: str) -> str:
    """The owner's words for this night, set apart from everything else."""
    if not text.strip():
        return ""
    return (
        "## Hints of the owner\n\n"
        "Written for this run by the person whose model it is. Follow them where the rules allow it; they outrank the "
        "tier that is due.\n\n" + fenced(text.strip()) + "\n"
    )


def language(brief: Brief) -> str:
    """What a fence around the kernel file is labelled with."""
    return {".py": "python", ".cu": "cuda"}.get(brief.target.suffix, brief.target.suffix.lstrip("."))


def failed(attempt: Attempt, log_chars: int, label: str) -> str:
    """A candidate that did not pass, with all that is known of why."""
    verdict = attempt.verdict
    log = f"\n\nIts log:\n\n{fenced(excerpt(verdict.log_tail, log_chars))}" if verdict.log_tail.strip() else ""
    return (
        f"## The attempt to mend: number {attempt.number}\n\n"
        f"Idea: {cell(attempt.idea, IDEA_CHARS)}\n\n"
        f"Verdict: {verdict.status.value} at {verdict.stage}: {cell(short_paths(verdict.reason), 600)}{log}\n\n"
        f"Its source:\n\n{fenced(attempt.source, label)}\n"
    )


def ask(brief: Brief, due: Due) -> str:
    if brief.failed:
        return (
            "## What is asked now\n\n"
            "Mend the attempt above: find the one cause of its verdict, and change no more than that takes. Edits "
            "apply to the attempt's source, not to the file as it stands. Keep the idea unless the verdict shows that "
            "it cannot work; then give up the part that cannot. State the cause in one line.\n"
        )
    where = f"tier {due.tier}" if due.tier else "any tier"
    return (
        "## What is asked now\n\n"
        f"One edit of the file above, for one idea, in {where} unless you know better, which no row of the table has "
        'tried. State the idea in one line that begins with its tier ("tier 2: ..."), says what changes, and why the '
        "figures above make you expect a gain and of what size. The file stays complete and self-contained.\n"
    )
