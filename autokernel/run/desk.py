"""From a choice of target to a candidate: what a proposer is told, and what becomes of its answer."""

from __future__ import annotations

import collections
import dataclasses
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autokernel.extension import Attempt, Brief, NothingUsable, Proposer, ProposerFailed, ProposerUnavailable, Strategy
from autokernel.redact import redact
from autokernel.run.events import ExperimentKind, Mending, Note, Observer, Waiting
from autokernel.run.gitstore import told
from autokernel.run.inflight import Answer, InFlight
from autokernel.run.ledger import Ledger
from autokernel.run.limits import Limits
from autokernel.run.proposed import Proposed
from autokernel.types import Candidate, Experiment, Target, Verdict, source_id

HINTS = "HINTS.md"
MENDED = "; mended: "  # between the idea of an experiment and that of its mended file
_UNUSABLE = 3  # answers in a row without a new file: then the visit to this target ends
_LEAST_PAUSE_S = 1.0
_SEED_STEP = 1_000_003  # between the seeds of briefs that are in flight together


@dataclasses.dataclass(frozen=True)
class Move:
    """A candidate that is about to be committed. ``spent_s`` is how long the run waited for it."""

    candidate: Candidate
    kind: ExperimentKind
    spent_s: float


@dataclasses.dataclass(frozen=True)
class Leave:
    """No candidate for this target: ``for_good`` when the proposer has nothing left to try on it."""

    reason: str
    for_good: bool


class Desk:
    """Where candidates are written: baselines, A/A repetitions, and whatever the proposer says.

    With a proposer that bears several calls at once, others go on while the judge works. ``model`` is the name of the
    owner's model.
    """

    def __init__(
        self,
        ledger: Ledger,
        proposer: Proposer,
        strategy_for: Callable[[Target], Strategy],
        hardware: Mapping[str, Any],
        limits: Limits,
        observer: Observer,
        *,
        model: str = "",
        seed: int = 0,
        aa_rate: float = 0.05,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._ledger, self._proposer, self._strategy_for = ledger, proposer, strategy_for
        self._hardware, self._limits, self._observer, self._model = hardware, limits, observer, model
        self._seed, self._aa_rate, self._sleep = seed, aa_rate, sleep
        self._strategies: dict[str, Strategy] = {}
        self._calls = InFlight(proposer, ledger.unbooked)
        self._asked: collections.Counter[tuple[str, int]] = collections.Counter()  # by target and length of history
        self._fixes: collections.Counter[int] = collections.Counter()  # by experiment
        self._notes: dict[str, list[str]] = collections.defaultdict(list)  # by question: unusable answers in a row
        self._dry: set[str] = set()  # targets for which the proposer has nothing left
        self._blocked: tuple[str, float] | None = None  # why nothing can be asked now, and until when
        self._failed: ProposerFailed | None = None

    def next(self, target: Target) -> Move | Leave:
        """The next candidate for this target, or why there is none. Raises ProposerFailed."""
        number, incumbent = len(self._ledger.rows) + 1, self._ledger.incumbent(target)
        if standing(self._ledger.experiments(target.name)) is None:
            idea = "baseline: the starter as extracted from the model"
            return Move(Candidate(target.name, incumbent, "", idea, "starter"), "baseline", 0.0)
        if random.Random(f"{self._seed}:{number}").random() < self._aa_rate:
            self._ask_ahead(target)
            mark = "#" if target.suffix == ".py" else "//"
            source = f"{incumbent.rstrip()}\n{mark} A/A {number}: the same kernel again\n"
            idea = "A/A: the incumbent against itself, to count what the judge keeps by chance"
            return Move(Candidate(target.name, source, source_id(incumbent), idea, "autokernel"), "aa", 0.0)
        started_s = time.monotonic()
        answered = self._proposed(target)
        if isinstance(answered, Leave):
            return answered
        self._ask_ahead(target, answered)
        return Move(answered, "candidate", time.monotonic() - started_s)

    def mend(self, proposed: Proposed, verdict: Verdict) -> Move | None:
        """A mended version of a candidate that failed; None when its proposer does not mend it: it counts as it is."""
        key, failed = f"{proposed.target.name}#{proposed.number}", proposed.candidate
        attempt = Attempt(failed.source, failed.idea, verdict, len(proposed.attempts) + 1)
        self._fixes[proposed.number] = max(self._fixes[proposed.number], len(proposed.attempts))
        started_s, of = time.monotonic(), self._proposer.fix_attempts
        while self._failed is None and self._fixes[proposed.number] < of and not self._reached():
            if self._blocked:
                self._wait()
                continue
            if self._calls.running >= self._calls.width:
                self._calls.collect(self._limits.left_s())
                continue
            if not self._calls.outstanding(key):
                status = verdict.status.value
                asked = self._fixes[proposed.number] + 1
                event = Mending(proposed.number, proposed.target, status, verdict.reason, asked, of)
                self._observer.on_event(event)
                self._calls.ask(key, self._brief(proposed.target, key, failed=attempt))
            while (answer := self._calls.take(key)) is None:
                if not self._calls.collect(self._limits.left_s()):
                    return None
            mended = self._candidate(proposed.target, answer)
            self._fixes[proposed.number] += not self._blocked
            if answer.proposal is None and answer.error is None:
                return None
            if mended:
                first = proposed.attempts[0].idea if proposed.attempts else failed.idea
                idea = f"{first}{MENDED}{mended.idea}"
                candidate = dataclasses.replace(mended, idea=idea, parent=failed.parent)
                return Move(candidate, "candidate", time.monotonic() - started_s)
        return None

    def tell(self, experiment: Experiment) -> None:
        if experiment.target.name in self._strategies:  # one that is made later is told of the whole history then
            self._strategies[experiment.target.name].tell(experiment)

    def close(self) -> None:
        """Tells a proposer that has something to end (a program that still runs) that nobody listens any more."""
        close = getattr(self._proposer, "close", None)
        if close is not None:
            close()

    # -------------------------------------------------------------------------------------------------- asking

    def _proposed(self, target: Target) -> Candidate | Leave:
        """Asks, waits and asks again until there is a new file, or a reason to leave."""
        notes = self._notes[target.name]
        while self._failed is None or self._calls.outstanding(target.name):  # what was paid for is judged first
            if len(notes) >= _UNUSABLE:
                last = notes[-1]
                notes.clear()
                return Leave(f"{_UNUSABLE} answers in a row held nothing to judge; the last one: {last}", False)
            answer = self._calls.take(target.name)
            if answer is not None:
                candidate = self._candidate(target, answer)
                if candidate:
                    notes.clear()
                    return candidate
                continue
            self._fill(target, self._calls.width)
            if not self._calls.outstanding(target.name):
                if self._failed is not None:
                    break
                if target.name in self._dry:
                    return Leave("the proposer has nothing left to try", True)
                if self._reached():
                    return Leave("a limit is reached", False)
                if self._blocked:
                    self._wait()
                    continue
            if not self._calls.collect(self._limits.left_s()):
                return Leave("the budget ended before an answer came", False)
        raise self._failed  # one that came while something was mended is told here, too

    def _ask_ahead(self, target: Target, judged: Candidate | None = None) -> None:
        """Starts the calls that go on while the judge works, where the proposer bears more than one."""
        if self._calls.width > 1:
            self._fill(target, self._calls.width, judged)

    def _fill(self, target: Target, width: int, judged: Candidate | None = None) -> None:
        if self._blocked and self._calls.outstanding(target.name) and time.monotonic() >= self._blocked[1]:
            self._blocked = None
        while (
            self._failed is None
            and self._blocked is None
            and target.name not in self._dry
            and self._calls.running < self._calls.width
            and self._calls.outstanding(target.name) < width
            and not self._reached()
        ):
            self._calls.ask(target.name, self._brief(target, target.name, judged=judged))

    def _brief(self, target: Target, key: str, failed: Attempt | None = None, judged: Candidate | None = None) -> Brief:
        history = self._ledger.experiments(target.name)
        stands = standing(history)
        assert stands is not None, "a target is baselined before anything is proposed for it"
        source = self._strategy(target).ask(history)
        asked = self._asked[target.name, len(history)]
        self._asked[target.name, len(history)] += 1
        notes = list(self._notes[key])
        if judged:
            notes.append(f"being judged now: '{judged.idea}'")
        notes += [f"waiting to be judged: '{proposal.idea}'" for proposal in self._calls.waiting(target.name)]
        if others := self._calls.running:
            notes.append(f"{others} more proposals are being written at this moment: choose what they hardly will")
        return Brief(
            target=target,
            source=source,
            position=stands.verdict.measurements,
            history=history,
            hardware=self._hardware,
            seed=self._seed + (_SEED_STEP * asked if self._calls.width > 1 else 0),
            notes=tuple(notes),
            evidence=stands.verdict.evidence,
            hints=hints(self._ledger.folder),
            failed=failed,
            model=self._model,
        )

    def _candidate(self, target: Target, answer: Answer) -> Candidate | None:
        """The new file of an answer; None where it held none, which is then noted. Raises what ``propose`` raised."""
        error, proposal = answer.error, answer.proposal
        if isinstance(error, ProposerUnavailable):
            self._blocked = redact(str(error)), time.monotonic() + max(_LEAST_PAUSE_S, error.retry_after_s)
            return None
        if isinstance(error, NothingUsable):
            self._note(target, answer, redact(str(error)))
            return None
        if isinstance(error, ProposerFailed):
            self._failed = error
            return None
        if error is not None:
            raise error
        if proposal is None:
            if answer.brief.failed is None:
                self._dry.add(target.name)
            return None
        source, idea = _utf8(proposal.source), redact(_utf8(proposal.idea))
        if redact(source) != source:
            self._note(target, answer, f"'{idea}' wrote something into the file that looks like a secret")
            return None
        if self._ledger.judged(target, source):
            outcome = self._ledger.outcome(target, source)
            self._note(
                target, answer, f"'{idea}' is, character for character, a file that was judged before: {outcome}"
            )
            return None
        if answer.brief.failed and source == answer.brief.failed.source:
            self._note(target, answer, f"'{idea}' is, character for character, the file that failed")
            return None
        return Candidate(target.name, source, source_id(answer.brief.source), idea, self._proposer.name)

    def _note(self, target: Target, answer: Answer, reason: str) -> None:
        self._notes[answer.key].append(reason)
        self._observer.on_event(Note(f"{target.name}: an answer was not judged: {reason}"))

    def _wait(self) -> None:
        """Sleeps until the proposer may be asked again, or the budget ends."""
        assert self._blocked is not None
        reason, until_s = self._blocked
        pause_s = max(0.0, min(until_s - time.monotonic(), self._limits.left_s()))
        self._observer.on_event(Waiting(reason, pause_s))
        self._sleep(pause_s)
        self._blocked = None

    def _reached(self) -> bool:
        return self._limits.reached(self._ledger.rows, self._ledger.beside()) is not None

    def _strategy(self, target: Target) -> Strategy:
        """This target's strategy, told all that happened before it was made."""
        if target.name not in self._strategies:
            strategy = self._strategies[target.name] = self._strategy_for(target)
            for experiment in self._ledger.experiments(target.name):
                strategy.tell(experiment)
        return self._strategies[target.name]


def standing(history: Sequence[Experiment]) -> Experiment | None:
    """The experiment that made the incumbent the champion: its verdict is the last of it. None before a baseline."""
    for experiment in reversed(history):
        if experiment.decision in ("keep", "baseline") and experiment.verdict.measurements:
            return experiment
    return None


def hints(folder: Path) -> str:
    """What the owner wrote into the workspace's HINTS.md; "" where there is none."""
    path = folder / HINTS
    with told(path):
        return path.read_bytes().decode("utf-8", "replace").strip() if path.is_file() else ""


def _utf8(text: str) -> str:
    """The text without lone surrogates, which no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
