"""From a choice of target to a candidate: what a proposer is told, and what becomes of its answer."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autokernel.extension import Brief, Proposal, Proposer, ProposerUnavailable, Strategy
from autokernel.run.events import ExperimentKind, Note, Observer, Waiting
from autokernel.run.ledger import Ledger
from autokernel.run.limits import Limits
from autokernel.types import Candidate, Cost, Experiment, Measurements, Target, source_id

_DUPLICATES = 3  # in a row: then the proposer has nothing new for this target


@dataclasses.dataclass(frozen=True)
class Move:
    """A candidate that is about to be committed. ``spent_s`` is what proposing it took."""

    candidate: Candidate
    kind: ExperimentKind
    cost: Cost
    spent_s: float


class Desk:
    """Where candidates are written: baselines, A/A repetitions, and whatever the proposer says."""

    def __init__(
        self,
        ledger: Ledger,
        proposer: Proposer,
        strategy_for: Callable[[Target], Strategy],
        hardware: Mapping[str, Any],
        limits: Limits,
        observer: Observer,
        *,
        seed: int = 0,
        aa_rate: float = 0.05,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._ledger, self._proposer, self._strategy_for = ledger, proposer, strategy_for
        self._hardware, self._limits, self._observer = hardware, limits, observer
        self._seed, self._aa_rate, self._sleep = seed, aa_rate, sleep
        self._strategies: dict[str, Strategy] = {}

    def next(self, target: Target) -> Move | None:
        """The next candidate for this target; None when the proposer has nothing left, or the budget ended."""
        number, incumbent = len(self._ledger.rows) + 1, self._ledger.incumbent(target)
        if position(self._ledger.experiments(target.name)) is None:
            idea = "baseline: the starter as extracted from the model"
            return Move(Candidate(target.name, incumbent, "", idea, "starter"), "baseline", Cost(), 0.0)
        if random.Random(f"{self._seed}:{number}").random() < self._aa_rate:
            source = f"{incumbent.rstrip()}\n# A/A {number}: the same kernel again\n"
            idea = "A/A: the incumbent against itself, to count what the judge keeps by chance"
            return Move(Candidate(target.name, source, source_id(incumbent), idea, "autokernel"), "aa", Cost(), 0.0)
        return self._proposed(target)

    def tell(self, experiment: Experiment) -> None:
        if experiment.target.name in self._strategies:  # one that is made later is told of the whole history then
            self._strategies[experiment.target.name].tell(experiment)

    def _strategy(self, target: Target) -> Strategy:
        """This target's strategy, told all that happened before it was made."""
        if target.name not in self._strategies:
            strategy = self._strategies[target.name] = self._strategy_for(target)
            for experiment in self._ledger.experiments(target.name):
                strategy.tell(experiment)
        return self._strategies[target.name]

    def _proposed(self, target: Target) -> Move | None:
        started_s, cost, notes = time.monotonic(), Cost(), list[str]()
        while len(notes) < _DUPLICATES:
            history = self._ledger.experiments(target.name)
            source = self._strategy(target).ask(history)
            brief = Brief(target, source, position(history), history, self._hardware, self._seed, tuple(notes))
            proposal = self._ask(brief)
            if proposal is None:
                return None
            cost = _sum(cost, proposal.cost)
            text, idea = (_utf8(part) for part in (proposal.source, proposal.idea))
            if not self._ledger.judged(target, text):
                candidate = Candidate(target.name, text, source_id(source), idea, self._proposer.name)
                return Move(candidate, "candidate", cost, time.monotonic() - started_s)
            notes.append(f"'{idea}' is, character for character, a file that was judged before: {_told(history, text)}")
            self._observer.on_event(Note(f"{target.name}: a duplicate was proposed and not judged again; {notes[-1]}"))
        return None

    def _ask(self, brief: Brief) -> Proposal | None:
        """Asks until there is an answer; a proposer that is unavailable costs time and no experiment."""
        while True:
            try:
                return self._proposer.propose(brief)
            except ProposerUnavailable as error:
                pause_s = max(0.0, min(error.retry_after_s, self._limits.left_s()))
                self._observer.on_event(Waiting(str(error), pause_s))
                self._sleep(pause_s)
                if self._limits.left_s() <= 0:
                    return None


def position(history: Sequence[Experiment]) -> Measurements | None:
    """The incumbent's last measurements: of the experiment that made it the champion. None before the baseline."""
    for experiment in reversed(history):
        if experiment.decision in ("keep", "baseline") and experiment.verdict.measurements:
            return experiment.verdict.measurements
    return None


def _told(history: Sequence[Experiment], source: str) -> str:
    past = next(experiment for experiment in history if experiment.candidate.id == source_id(source))
    return f"experiment {past.number}, {past.verdict.status.value}, {past.decision}: {past.verdict.reason}"


def _sum(a: Cost, b: Cost) -> Cost:
    return Cost(a.tokens_in + b.tokens_in, a.tokens_out + b.tokens_out, a.cost_usd + b.cost_usd)


def _utf8(text: str) -> str:
    """The text without lone surrogates, which no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
