"""What a person sees while a run goes on: a live panel on a terminal, one line an experiment everywhere else.

``Board`` is the state that events build; ``Live`` and ``Plain`` show it. Both are observers of a run and context
managers.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live as RichLive
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autokernel.run import events, history
from autokernel.run.history import Row
from autokernel.types import Target
from autokernel.wording import clock, outcome, times, verdict_line

STAGES = (
    "policy",
    "build",
    "smoke",
    "shapes",
    "stability",
    "determinism",
    "edges",
    "timing",
    "screen",
    "confirm",
    "recheck",
)
REFRESH_HZ = 1  # drawing costs a few ms of a core that the judge may be timing on


class Display(events.Observer, Protocol):
    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclasses.dataclass
class Board:
    """Everything that the events so far say."""

    now: Callable[[], float] = time.monotonic
    started_s: float = 0.0
    run: events.RunStarted | None = None
    rows: list[Row] = dataclasses.field(default_factory=list)
    target: Target | None = None
    activity: str = "starting"
    idea: str = ""
    stage: str = ""
    progress: tuple[int, int] = (0, 0)
    projected: float | None = None

    def __post_init__(self) -> None:
        self.started_s = self.now()

    def take(self, event: events.Event) -> None:
        if isinstance(event, events.ProfileProgress):
            self.activity, self.idea, self.stage = phase(event), event.message, ""
            self.progress = (event.done, event.of)
        elif isinstance(event, events.RunStarted):
            self.run, self.rows = event, list(event.rows)
            self.activity, self.idea = "starting the judge", ""
        elif isinstance(event, events.TargetChosen):
            self.target = event.target
        elif isinstance(event, events.ExperimentStarted):
            self.target, self.activity = event.target, f"#{event.number} {event.target.name}"
            self.idea, self.stage, self.progress = event.idea, "", (0, 0)
        elif isinstance(event, events.Mending):
            self.activity, self.stage = f"#{event.number} {event.target.name}: asking for a fix", ""
            self.idea, self.progress = f"{event.status}: {event.reason}", (event.asked, event.of)
        elif isinstance(event, events.JudgeStage):
            self.stage, self.progress = event.stage, (event.done, event.of)
        elif isinstance(event, events.ExperimentDone):
            self.rows.append(event.row)
            self.projected, self.activity, self.stage = event.projected_speedup, "thinking", ""
            self.idea, self.progress = "", (0, 0)
        elif isinstance(event, events.HeadlineStarted):
            self.target, self.stage = event.target, ""
            self.activity = f"measuring the champion of {event.target.name}"
            self.idea, self.progress = "against its baselines, for the report", (event.done, event.of)
        elif isinstance(event, events.Waiting):
            self.activity, self.idea = f"waiting {clock(event.seconds)}", event.reason

    @property
    def elapsed_s(self) -> float:
        return self.now() - self.started_s

    def budget(self) -> tuple[float, str]:
        """(fraction spent, what is left in words) of the limit that is nearer; (0, "") without limits."""
        if self.run is None:
            return 0.0, ""
        limits = []
        if self.run.budget_s:
            left = self.run.budget_s - self.elapsed_s
            limits.append(
                (min(self.elapsed_s / self.run.budget_s, 1.0), f"{clock(left)} of {clock(self.run.budget_s)} left")
            )
        if self.run.max_experiments:
            left_n = max(self.run.max_experiments - len(self.rows), 0)
            spent = min(len(self.rows) / self.run.max_experiments, 1.0)
            limits.append((spent, f"{left_n} of {self.run.max_experiments} experiments left"))
        if self.run.max_cost_usd:
            cost = sum(row.cost_usd for row in self.rows)
            share = min(cost / self.run.max_cost_usd, 1.0)
            limits.append((share, f"{cost:.2f} of {self.run.max_cost_usd:.2f} USD spent"))
        return max(limits, default=(0.0, ""))

    def counts(self) -> dict[str, int]:
        """Experiments by outcome."""
        found = [outcome(row) for row in self.rows]
        return {word: found.count(word) for word in ("kept", "reverted", "failed", "A/A")}


class Plain:
    """One line an experiment, and a line where something changes: for logs, pipes and --plain."""

    def __init__(self, console: Console, board: Board | None = None) -> None:
        self.console, self.board = console, board or Board()
        self._said = ""

    def __enter__(self) -> Plain:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def on_event(self, event: events.Event) -> None:
        self.board.take(event)
        if isinstance(event, events.ProfileProgress):
            said = f"{phase(event)}: {event.message}" if event.phase == "verify" else phase(event)
            if said != self._said:
                self._said = said
                self.say(f"{phase(event)}: {event.message}")
        elif isinstance(event, events.ExperimentDone):
            left = self.board.budget()[1]
            self.say(verdict_line(event.row, event.reason) + (f" ({left})" if left else ""))
        else:
            for line in announcement(event):
                self.say(line)


def phase(event: events.ProfileProgress) -> str:
    """What the device process is at: the profiler in one of its phases, or the verification."""
    return event.phase if event.phase == "verify" else f"profile: {event.phase}"


def announcement(event: events.Event) -> list[str]:
    """The lines that stay on the screen for an event that is not an experiment's end."""
    if isinstance(event, events.RunStarted):
        earlier = f", resumed after {len(event.rows)} experiments" if event.rows else ""
        ranked = ", ".join(f"{t.name} {t.share:.0%}" for t in event.targets)
        return [f"run {event.name} in {event.folder}: {event.model} on {event.device}{earlier}", f"targets: {ranked}"]
    if isinstance(event, events.TargetChosen):
        again = f", visit {event.visit}" if event.visit > 1 else ""
        return [f"target {event.target.name}{again}: {event.gain:.1%} of the time left to win"]
    if isinstance(event, events.MovedOn):
        return [f"leaving {event.target.name}: {event.reason}"]
    if isinstance(event, events.HeadlineStarted):
        return [f"measuring the champion of {event.target.name} ({event.done + 1} of {event.of})"]
    if isinstance(event, events.Mending):
        reason = " ".join(event.reason.split())[:90]
        return [f"#{event.number}: {event.status}: {reason}; asking for a fix ({event.asked} of {event.of})"]
    if isinstance(event, events.Waiting):
        return [f"waiting {clock(event.seconds)}: {event.reason}"]
    if isinstance(event, (events.Note, events.Stopped)):
        return [event.message]
    return []


class Live:
    """A panel at the bottom of the terminal; finished experiments scroll by above it."""

    def __init__(self, console: Console, board: Board | None = None) -> None:
        self.console, self.board = console, board or Board()
        self._live = RichLive(
            get_renderable=self.render, console=console, refresh_per_second=REFRESH_HZ, transient=True
        )

    def __enter__(self) -> Live:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def on_event(self, event: events.Event) -> None:
        self.board.take(event)
        if isinstance(event, events.ExperimentDone):
            colour = {"kept": "green", "failed": "red", "starter": "cyan"}.get(outcome(event.row), "dim")
            finished = Text(verdict_line(event.row, event.reason), style=colour)
            self.console.print(finished, overflow="ellipsis", no_wrap=True)
        elif not isinstance(event, events.TargetChosen):
            for line in announcement(event):
                self.console.print(Text(line))
        if not isinstance(event, events.JudgeStage):
            self._live.refresh()

    def render(self) -> RenderableType:
        board = self.board
        parts: list[RenderableType] = []
        if board.run is not None:
            parts += [self._head(), self._targets(), Text("")]
        parts.append(self._activity())
        title = f"autokernel · {board.run.name}" if board.run else "autokernel"
        subtitle = f"{board.run.proposer} · {board.run.strategy}" if board.run else None
        return Panel(Group(*parts), title=title, subtitle=subtitle, title_align="left", subtitle_align="right")

    def _head(self) -> RenderableType:
        counts = self.board.counts()
        spent, left = self.board.budget()
        words = [
            f"[bold]{len(self.board.rows)}[/] experiments",
            f"[green]{counts['kept']} kept[/]",
            f"[dim]{counts['reverted']} reverted[/]",
            f"[red]{counts['failed']} failed[/]",
        ]
        if cost := sum(row.cost_usd for row in self.board.rows):
            words.append(f"{cost:.2f} USD")
        if self.board.projected:
            words.append(f"whole model [bold]{times(self.board.projected)}[/] projected")
        bar = Table.grid(padding=(0, 2))
        bar.add_row(ProgressBar(total=1.0, completed=spent, width=40), left or clock(self.board.elapsed_s))
        return Group(bar, Text.from_markup("  ".join(words)), Text(""))

    def _targets(self) -> RenderableType:
        assert self.board.run is not None  # render() asks only then
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for name in ("", "target", "share", "tried", "kept", "starter", "now", "of peak"):
            table.add_column(name, justify="left" if name in ("", "target") else "right", no_wrap=True)
        for target in self.board.run.targets:
            rows = [r for r in self.board.rows if r.target == target.name]
            first = next((r.speedup_vs_best for r in rows if r.decision == "baseline"), None)
            champion = history.champion(self.board.rows, target.name)
            now = champion.speedup_vs_best if champion else None
            colour = "green" if now and now >= 1 else "default"
            peak = f"{champion.pct_peak:.0f} %" if champion and champion.pct_peak is not None else "–"
            here = "▶" if self.board.target and self.board.target.name == target.name else " "
            kept = sum(r.decision == "keep" for r in rows)
            table.add_row(here, escape(target.name), f"{target.share:.0%}", str(len(rows)), str(kept), times(first),
                          f"[{colour}]{times(now)}[/]", peak)  # fmt: skip
        return table

    def _activity(self) -> RenderableType:
        board = self.board
        line = Text(board.activity, style="bold")
        line.append(f"  {' '.join(board.idea.split())}", style="default")
        line.no_wrap, line.overflow = True, "ellipsis"
        done, of = board.progress
        if board.stage in STAGES:
            steps = Text()
            at = STAGES.index(board.stage)
            for index, stage in enumerate(STAGES):
                mark, style = ("✓", "green") if index < at else ("▸", "bold cyan") if index == at else ("·", "dim")
                count = f" {done}/{of}" if index == at and of else ""
                steps.append(f"{mark} {stage}{count}  ", style=style)
            return Group(line, steps)
        return Group(line, Text(f"{done} of {of}" if of else "", style="dim"))


def open_display(plain: bool = False, quiet: bool = False) -> Display:
    """The live panel on a terminal; plain lines where there is none or they are asked for; nothing when quiet."""
    console = Console(quiet=quiet)
    if plain or quiet or not console.is_terminal or console.is_dumb_terminal:
        return Plain(console)
    return Live(console)
