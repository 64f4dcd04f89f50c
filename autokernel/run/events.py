"""What a run tells whoever watches it: small frozen records, in the order in which things happen.

The loop and the session emit them through an ``Observer``; a display renders them, a test collects them. Nothing in
the run depends on what an observer does with an event, except that an exception it raises ends the run.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, Protocol

from autokernel.run.history import Row
from autokernel.types import Target

ExperimentKind = Literal["baseline", "candidate", "aa"]


@dataclasses.dataclass(frozen=True)
class ProfileProgress:
    """One line of a device process: ``phase`` is the profiler's ("capture", "time", "match", "levers", "extract"), or
    "verify"; ``of`` is 0 when unknown.
    """

    phase: str
    message: str
    done: int = 0
    of: int = 0


@dataclasses.dataclass(frozen=True)
class RunStarted:
    """The workspace is open. ``rows`` are those of earlier invocations (empty on a new run), ``targets`` in rank
    order; limits are None where there is none.
    """

    name: str
    folder: str
    model: str
    device: str
    proposer: str
    strategy: str
    targets: tuple[Target, ...]
    rows: tuple[Row, ...]
    budget_s: float | None
    max_experiments: int | None
    max_cost_usd: float | None = None


@dataclasses.dataclass(frozen=True)
class TargetChosen:
    """The orchestrator turned to this target. ``visit`` is 1 the first time; ``gain`` is the expected gain: the
    fraction of the model's time (0 to 1) that is left to win here.
    """

    target: Target
    visit: int
    gain: float


@dataclasses.dataclass(frozen=True)
class ExperimentStarted:
    """A candidate goes to the judge; ``attempt`` counts from 1, one more for each time that it was mended."""

    number: int
    target: Target
    kind: ExperimentKind
    idea: str
    attempt: int = 1


@dataclasses.dataclass(frozen=True)
class Mending:
    """A candidate failed and goes back to the proposer before it counts: the ``asked``-th time of at most ``of``."""

    number: int
    target: Target
    status: str
    reason: str
    asked: int
    of: int


@dataclasses.dataclass(frozen=True)
class JudgeStage:
    """Where the judge is: "smoke", "shapes", "stability", "determinism", "edges", "timing", "confirm"."""

    number: int
    stage: str
    done: int
    of: int


@dataclasses.dataclass(frozen=True)
class ExperimentDone:
    """One row more. ``reason`` is the judge's own sentence; ``projected_speedup`` is the model's by Amdahl's law."""

    row: Row
    reason: str
    projected_speedup: float


@dataclasses.dataclass(frozen=True)
class MovedOn:
    """The orchestrator leaves this target, and why."""

    target: Target
    reason: str


@dataclasses.dataclass(frozen=True)
class Waiting:
    """The proposer cannot answer now; the run waits without spending an experiment."""

    reason: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class Note:
    """Something a person should know and need not act on at once."""

    message: str


@dataclasses.dataclass(frozen=True)
class HeadlineStarted:
    """The champion of this target is measured against its baselines on fresh inputs, for publication."""

    target: Target
    done: int
    of: int


@dataclasses.dataclass(frozen=True)
class Stopped:
    """The loop has ended; ``message`` is a sentence for a person."""

    message: str


Event = (
    ProfileProgress
    | RunStarted
    | TargetChosen
    | ExperimentStarted
    | JudgeStage
    | Mending
    | ExperimentDone
    | MovedOn
    | Waiting
    | Note
    | HeadlineStarted
    | Stopped
)


class Observer(Protocol):
    def on_event(self, event: Event) -> None: ...


class Silent:
    """An observer that looks away."""

    def on_event(self, event: Event) -> None:
        del event
