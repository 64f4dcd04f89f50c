"""One experiment: a committed candidate goes to the judge, is mended or not, is decided on, and becomes one row.

The night, ``autokernel try`` and whoever else wants a verdict on an edit call ``run_one``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from autokernel.evaluate.client import Assignment, Evaluation, Judge, JudgeFailed
from autokernel.run import orchestrator
from autokernel.run.desk import Move
from autokernel.run.events import ExperimentDone, ExperimentStarted, JudgeStage, Note, Observer
from autokernel.run.ledger import Ledger
from autokernel.run.proposed import Proposed
from autokernel.types import Decision, Experiment, Status, Verdict

# What its author can mend with the log in hand. Not POLICY and IMPLAUSIBLE: whoever broke a rule and is told how it was
# found would be asked to try again until it is not found; such a candidate costs its experiment.
MENDABLE = frozenset(
    (
        Status.BUILD,
        Status.SMOKE,
        Status.SHAPES,
        Status.STABILITY,
        Status.DETERMINISM,
        Status.EDGES,
        Status.TIMEOUT,
        Status.CRASH,
    )
)
_JUDGE = "judge"  # the stage of a verdict on a candidate that the judge did not survive

Mend = Callable[[Proposed, Verdict], Move | None]


def run_one(
    ledger: Ledger, judge: Judge, proposed: Proposed, observer: Observer, mend: Mend | None = None
) -> Experiment:
    """Judges a committed candidate and records the outcome: one experiment, one row.

    ``mend`` is asked for a mended version of a candidate that failed, again and again until it gives None; without it
    the first verdict counts. A candidate's failure is a verdict; JudgeFailed is raised when the judge itself fails, and
    the candidate then waits in ``ledger.pending``.
    """
    while True:
        observer.on_event(
            ExperimentStarted(
                proposed.number,
                proposed.target,
                proposed.kind,
                proposed.candidate.idea,
                len(proposed.attempts) + 1,
            )
        )
        evaluation = _judge(ledger, judge, proposed, observer)
        verdict = evaluation.verdict
        mendable = proposed.kind == "candidate" and verdict.status in MENDABLE and verdict.stage != _JUDGE
        asked_s = time.monotonic()
        mended = mend(proposed, verdict) if mend and mendable else None
        if mended is None:
            break
        proposed = ledger.mend(proposed, verdict, mended.candidate, evaluation.seconds + mended.spent_s)
    judging_s = evaluation.seconds + (time.monotonic() - asked_s if mend and mendable else 0.0)
    decision = _decide(proposed, evaluation)
    experiment = ledger.record(proposed, verdict, evaluation.comparison, decision, judging_s)
    reason = evaluation.comparison.reason if evaluation.comparison else verdict.reason
    projected = orchestrator.projected_speedup(ledger.targets, ledger.rows)
    observer.on_event(ExperimentDone(ledger.rows[-1], reason, projected))
    return experiment


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
        if proposed.kind != "candidate" or (last and last.stage == _JUDGE):
            raise
        observer.on_event(Note(f"experiment {proposed.number}: {error}; recorded as a crash"))
        verdict = Verdict(Status.CRASH, _JUDGE, f"the judge did not survive this candidate: {error}")
        return Evaluation(verdict, None, time.monotonic() - started_s)


def _decide(proposed: Proposed, evaluation: Evaluation) -> Decision:
    if proposed.kind != "candidate":
        return proposed.kind
    return "keep" if evaluation.comparison and evaluation.comparison.keep else "revert"
