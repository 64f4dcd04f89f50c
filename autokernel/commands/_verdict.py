"""A verdict as a person reads it: stages as they pass, the comparison drawn, roofline, evidence, isolation, doubts."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from autokernel import isolation
from autokernel.types import Comparison, Measurements, Status, Verdict

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from autokernel.evaluate.client import Evaluation

BAR, SCALE = 24, 41  # columns of a bar; of the drawn interval
DISTURBED_SHARE = 0.1  # of the timed turns: above it the figures deserve a doubt
NOISY_PCT = 5.0


@dataclasses.dataclass(frozen=True)
class Floor:
    """The least time of the judged work on this device: microseconds, and what bounds it ("memory" or "compute";
    both None where the ceilings are unknown)."""

    floor_us: float | None = None
    bound_by: str | None = None


class Stages:
    """Says of each stage when it has passed and how long it took, and of the one that did not pass."""

    def __init__(self, to_stderr: bool) -> None:
        self.to_stderr = to_stderr
        self.current = ""
        self._since = time.monotonic()
        self._stream = sys.stderr if to_stderr else sys.stdout
        self._live = self._stream.isatty()

    def on_event(self, event: Mapping[str, Any]) -> None:
        if event.get("event") != "stage":
            return
        if event["stage"] != self.current:
            self._passed()
            self.current, self._since = event["stage"], time.monotonic()
        if self._live:
            steps = f" {event['done']}/{event['of']}" if event["of"] > 1 else ""
            self._stream.write(f"\r\x1b[2K· {self.current}{steps}")
            self._stream.flush()

    def end(self, evaluation: Evaluation) -> None:
        verdict = evaluation.verdict
        if verdict.status is Status.PASS or self.current != verdict.stage:
            self._passed()
        if verdict.status is not Status.PASS:
            self._say(f"{click.style('✗', fg='red')} {verdict.stage}: {verdict.status.value}: {verdict.reason}")

    def undone(self, reason: str) -> None:
        """The current stage came to nothing, which is not the file's fault."""
        self._say(f"{click.style('!', fg='yellow')} {self.current}: {reason}")
        self.current = ""

    def _passed(self) -> None:
        if self.current:
            took = click.style(f"{time.monotonic() - self._since:6.2f} s", dim=True)
            self._say(f"{click.style('✓', fg='green')} {self.current:<12}{took}")

    def _say(self, line: str) -> None:
        if self._live:
            self._stream.write("\r\x1b[2K")
        click.echo(line, err=self.to_stderr)


# ---------------------------------------------------------------------------------------------- as JSON


def failure(status: Status, stage: str, reason: str, seconds: float = 0.0) -> dict[str, Any]:
    numbers = dict.fromkeys(("latency_us", "speedup_vs_eager", "speedup_vs_best", "pct_peak"))
    return {"status": status.value, "stage": stage, "reason": reason, **numbers, "seconds": seconds}


def to_json(evaluation: Evaluation, floor: Floor) -> dict[str, Any]:
    """The one object of --json; ``comparison`` (ratios; above 1 the file is faster than --against) only where asked."""
    verdict, comparison = evaluation.verdict, evaluation.comparison
    answer = failure(verdict.status, verdict.stage, verdict.reason, round(evaluation.seconds, 3))
    measured = verdict.measurements
    if measured:
        for key in ("latency_us", "speedup_vs_eager", "speedup_vs_best", "pct_peak", "noise_pct"):
            answer[key] = getattr(measured, key)
        answer |= {"baselines_us": dict(measured.baselines_us), "workloads_us": dict(measured.workloads_us)}
        answer |= {"floor_us": floor.floor_us, "bound_by": floor.bound_by}
    if comparison:
        answer["comparison"] = {
            "speedup": math.exp(comparison.log_ratio),
            "ci_low": math.exp(comparison.ci_low),
            "ci_high": math.exp(comparison.ci_high),
            "blocks": comparison.blocks,
            "keep": comparison.keep,
            "ambiguous": ambiguous(comparison),
            "reason": comparison.reason,
        }
    levels = verdict.environment.get("isolation", {})
    answer |= {
        "stages_s": dict(verdict.seconds),
        "errors": dict(verdict.errors),
        "evidence": {name: dict(figures) for name, figures in verdict.evidence.items()},
        "isolation": dict(levels),
        "isolation_missing": isolation.missing(levels),
        "doubts": list(doubts(verdict)),
        "environment": dict(verdict.environment),
    }
    return answer


def ambiguous(comparison: Comparison) -> bool:
    """Whether the comparison could say neither faster nor not faster."""
    return comparison.reason.startswith("ambiguous")


def doubts(verdict: Verdict) -> Iterator[str]:
    """What speaks against relying on the figures of a passing verdict."""
    measured, environment = verdict.measurements, verdict.environment
    if measured is None:
        return
    turns, disturbed = environment.get("turns", 0), environment.get("disturbed_turns", 0)
    if turns and disturbed > DISTURBED_SHARE * turns:
        yield f"{disturbed} of {turns} timed turns were disturbed: other processes keep this machine busy"
    if math.isfinite(measured.noise_pct) and measured.noise_pct > NOISY_PCT:
        yield f"its own repeats spread by ±{measured.noise_pct:.0f} %"
    if off := environment.get("isolation_off"):
        yield f"judged with {', '.join(off)} switched off"
    if disabled := environment.get("disabled"):
        yield f"judged without these defences: {', '.join(disabled)}"


# ---------------------------------------------------------------------------------------------- on the terminal


def show(evaluation: Evaluation, floor: Floor, console: Console) -> None:
    """The whole verdict."""
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    verdict, comparison = evaluation.verdict, evaluation.comparison
    measured = verdict.measurements
    if measured is None:
        if verdict.log_tail:
            console.print(Text(verdict.log_tail.rstrip(), style="dim"))
        console.print(f"[bold red]FAIL[/] in {evaluation.seconds:.1f} s")
    else:
        console.print(f"[bold green]PASS[/] in {evaluation.seconds:.1f} s")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column(overflow="fold")
    if measured is not None:
        _add(table, "time", _times(measured))
        _add(table, "roofline", [_roofline(measured, floor)])
        _add(table, "baselines", list(_baselines(measured, verdict.environment)))
    if comparison is not None:
        _add(table, "compared", [_interval(comparison), f"[dim]{escape(comparison.reason)}[/]"])
    _add(table, "evidence", [escape(line) for line in _evidence(verdict.evidence)])
    if ncu := verdict.environment.get("ncu"):
        told = f"none: {ncu['missing']}" if "missing" in ncu else f"of one call of {ncu['workload']}, with cold caches"
        _add(table, "counters", [escape(told)])
    _add(table, "sanitizer", [escape(f"{k}: {v}") for k, v in verdict.environment.get("sanitizer", {}).items()])
    if verdict.environment.get("isolation"):
        _add(table, "isolation", [_levels(verdict.environment["isolation"])])
    _add(table, "doubts", [f"[yellow]{escape(doubt)}[/]" for doubt in doubts(verdict)])
    console.print(table)


def _add(table: Table, name: str, lines: list[RenderableType]) -> None:
    for position, line in enumerate(lines):
        table.add_row("" if position else name, line)


def _times(measured: Measurements) -> list[RenderableType]:
    from autokernel.wording import span

    noise = f" ±{measured.noise_pct:.1f} %" if math.isfinite(measured.noise_pct) else ""
    lines: list[RenderableType] = [f"[bold]{span(measured.latency_us)}[/][dim]{noise}[/]"]
    if len(measured.workloads_us) > 1:
        lines += [f"[dim]{span(each):>9}  {key}[/]" for key, each in measured.workloads_us.items()]
    return lines


def _roofline(measured: Measurements, floor: Floor) -> str:
    from autokernel.wording import span

    if measured.pct_peak is None:
        return "[dim]unknown: this device's ceilings could not be measured[/]"
    floor_us = floor.floor_us or measured.latency_us * measured.pct_peak / 100
    bound = f", bound by {floor.bound_by}" if floor.bound_by else ""
    return f"{_bar(measured.pct_peak / 100)} {measured.pct_peak:.0f} % of peak; the floor is {span(floor_us)}{bound}"


def _baselines(measured: Measurements, environment: Mapping[str, Any]) -> Iterator[str]:
    """Fastest first: a headline is against the best of them."""
    from autokernel.wording import span

    ordered = sorted(measured.baselines_us.items(), key=lambda pair: pair[1])
    longest = max([measured.latency_us, *measured.baselines_us.values()])
    if ordered:
        yield f"{_bar(measured.latency_us / longest)}        this file ({span(measured.latency_us)})"
    for position, (name, baseline_us) in enumerate(ordered):
        ratio = baseline_us / measured.latency_us
        colour = "green" if ratio > 1 else "yellow"
        best = " [dim]the best of them[/]" if position == 0 and len(ordered) > 1 else ""
        yield f"{_bar(baseline_us / longest)} [{colour}]{ratio:5.2f}×[/] {name} ({span(baseline_us)}){best}"
    for name, reason in environment.get("baselines_missing", {}).items():
        yield f"[dim]no {name}: {reason}[/]"


def _interval(comparison: Comparison) -> str:
    """The interval on a line, with zero marked: [───●───] of the gain in percent."""
    low, mean, high = (math.expm1(c) * 100 for c in (comparison.ci_low, comparison.log_ratio, comparison.ci_high))
    word = "[green]faster[/]" if comparison.keep else "[yellow]not shown to be faster[/]"
    if ambiguous(comparison):
        word = "[yellow]ambiguous: the interval holds both a gain and none[/]"
    if not (math.isfinite(low) and math.isfinite(high)):
        return f"{mean:+.1f} %, {word}"
    reach = max(abs(low), abs(high), 1.0) * 1.05
    cells = ["·"] * SCALE

    def column(percent: float) -> int:
        return min(SCALE - 1, max(0, round((percent + reach) / (2 * reach) * (SCALE - 1))))

    for at in range(column(low), column(high) + 1):
        cells[at] = "─"
    cells[column(0)] = "┼" if column(low) <= column(0) <= column(high) else "│"
    cells[column(low)], cells[column(high)], cells[column(mean)] = "├", "┤", "●"
    drawn = "".join(cells)
    return f"{-reach:+.0f} {drawn} {reach:+.0f} %   [bold]{mean:+.1f} %[/] from {low:+.1f} to {high:+.1f}: {word}"


def _evidence(evidence: Mapping[str, Any]) -> Iterator[str]:
    """A line a kernel in the words of whoever reads a compiler's report, and one of what a profiler counted."""
    for kernel, figures in evidence.items():
        if not isinstance(figures, Mapping):
            yield f"{kernel}: {figures}"
            continue
        compiled = {name: value for name, value in figures.items() if not isinstance(value, Mapping)}
        if compiled:
            yield f"{kernel}: {', '.join(_figure(name, value) for name, value in compiled.items())}"
        for profiler, counted in figures.items():
            if isinstance(counted, Mapping):
                yield f"{kernel}, {profiler}: {', '.join(_figure(name, value) for name, value in counted.items())}"


UNITS = {
    "registers": "registers", "spill_bytes": "bytes spilled", "shared_bytes": "bytes of shared memory",
    "warps": "warps", "variants": "variants", "threads": "threads at most", "time_us": "µs", "waves": "waves",
}  # fmt: skip
SHARES = {
    "occupancy": "of the SM's warps resident", "occupancy_at_bounds": "of the SM's warps resident in full blocks",
    "achieved_occupancy": "of its warps active on average", "top_stall_share": "of the time between two instructions",
}  # fmt: skip
PERCENTAGES = {
    "sm_pct": "of the SMs' peak", "dram_pct": "of DRAM's peak", "l1_hit_pct": "hits in L1",
    "l2_hit_pct": "hits in L2",
}  # fmt: skip
TRAFFIC = {"dram_read_bytes": "read from DRAM", "dram_written_bytes": "written to DRAM"}


def _figure(name: str, value: Any) -> str:
    if isinstance(value, (int, float)):
        if name in SHARES:
            return f"{value:.0%} {SHARES[name]}"
        if name in PERCENTAGES:
            return f"{value:.0f} % {PERCENTAGES[name]}"
        if name in TRAFFIC:
            return f"{value / 1e6:,.2f} MB {TRAFFIC[name]}"
        return f"{value:,.10g} {UNITS.get(name, name)}"
    return f"waits on {value}" if name == "top_stall" else f"{value} {UNITS.get(name, name)}"


def _levels(levels: Mapping[str, Any]) -> str:
    lacking = isolation.missing(levels)
    granted = [name for name in isolation.LEVELS if name not in lacking]
    if not lacking:
        return f"[green]all {len(granted)} levels[/] [dim]{' '.join(granted)}[/]"
    return (
        f"[yellow]missing: {', '.join(lacking)}[/] (autokernel doctor) [dim]granted: {' '.join(granted) or 'none'}[/]"
    )


def _bar(share: float) -> str:
    filled = round(min(max(share, 0.0), 1.0) * BAR)
    return f"[cyan]{'█' * filled}[/][dim]{'░' * (BAR - filled)}[/]"
