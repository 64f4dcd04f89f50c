"""The night, as an algorithm."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from autokernel.evaluate.client import Assignment, Evaluation, Judge, JudgeFailed
from autokernel.run import orchestrator
from autokernel.run.brief import Desk
from autokernel.run.events import ExperimentDone, ExperimentStarted, JudgeStage, MovedOn, Note, Observer, TargetChosen
from autokernel.run.ledger import Ledger, Proposed
from autokernel.run.limits import Limits, StopReason
from autokernel.run.orchestrator import Choice, MoveOn
from autokernel.types import Decision, Status, Target, Verdict


def run(
    ledger: Ledger,
    targets: Sequence[Target],
    desk: Desk,
    judge: Judge,
    limits: Limits,
    rules: MoveOn,
    observer: Observer,
) -> StopReason:
    """Runs experiments until a limit is reached or nobody has an idea left.

    A candidate's failure is a verdict. What is raised from here (AutokernelError, an interruption) leaves the
    workspace consistent: the experiment in flight is committed and will be judged when the run comes back.
    """
    exhausted: set[str] = set()
    current: Choice | None = None
    while True:
        if reason := limits.reached(ledger.rows):
            return reason

        # 1. The target with the most expected gain; a proposal that an earlier process left unjudged comes first.
        proposed = ledger.pending
        if proposed is None:
            choice = orchestrator.choose(targets, ledger.rows, exhausted, rules)
            if choice is None:
                return StopReason("exhausted", "nothing is left to try on any target")
            if current is None or (choice.target.name, choice.visit) != (current.target.name, current.visit):
                observer.on_event(TargetChosen(choice.target, choice.visit, choice.gain))
            current = choice

            # 2. Ask the strategy, propose, commit.
            move = desk.next(choice.target)
            if move is None and limits.reached(ledger.rows):
                continue
            if move is None:
                exhausted.add(choice.target.name)
                observer.on_event(MovedOn(choice.target, "the proposer has nothing left to try"))
                continue
            proposed = ledger.propose(choice.target, move.candidate, move.kind, move.cost, move.spent_s)

        # 3. Judge, and decide by the comparison alone.
        observer.on_event(ExperimentStarted(proposed.number, proposed.target, proposed.kind, proposed.candidate.idea))
        evaluation = _judge(ledger, judge, proposed, observer)
        decision = _decide(proposed, evaluation)

        # 4. Keep (the branch advances) or reset; append the row.
        experiment = ledger.record(proposed, evaluation.verdict, evaluation.comparison, decision, evaluation.seconds)
        desk.tell(experiment)
        reason_told = evaluation.comparison.reason if evaluation.comparison else evaluation.verdict.reason
        projected = orchestrator.projected_speedup(targets, ledger.rows)
        observer.on_event(ExperimentDone(ledger.rows[-1], reason_told, projected))

        # 5. Move on when a criterion says so.
        if left := orchestrator.visits(ledger.rows, rules)[-1].left:
            observer.on_event(MovedOn(proposed.target, left))


def _judge(ledger: Ledger, judge: Judge, proposed: Proposed, observer: Observer) -> Evaluation:
    """The judge's answer. A candidate that kills the judge twice has crashed; twice in a row, the judge is broken."""
    baseline = proposed.kind == "baseline"
    assignment = Assignment(
        target=proposed.target,
        source=proposed.candidate.source,
        incumbent=None if baseline else ledger.incumbent(proposed.target),
    )
    started_s = time.monotonic()

    def on_event(event: Mapping[str, Any]) -> None:
        if event.get("event") == "stage":
            observer.on_event(JudgeStage(proposed.number, event["stage"], event["done"], event["of"]))

    try:
        return judge.evaluate(assignment, on_event)
    except JudgeFailed as error:
        last = ledger.rows[-1] if ledger.rows else None
        if proposed.kind != "candidate" or (last and last.stage == "judge"):
            raise
        observer.on_event(Note(f"experiment {proposed.number}: {error}; recorded as a crash"))
        verdict = Verdict(Status.CRASH, "judge", f"the judge did not survive this candidate: {error}")
        return Evaluation(verdict, None, time.monotonic() - started_s)


def _decide(proposed: Proposed, evaluation: Evaluation) -> Decision:
    if proposed.kind != "candidate":
        return proposed.kind
    return "keep" if evaluation.comparison and evaluation.comparison.keep else "revert"
