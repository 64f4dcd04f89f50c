"""The night, as an algorithm."""

from __future__ import annotations

from collections.abc import Sequence

from autokernel.evaluate.client import Judge
from autokernel.extension import ProposerFailed
from autokernel.redact import redact
from autokernel.run import orchestrator
from autokernel.run.desk import Desk, Leave
from autokernel.run.events import MovedOn, Observer, TargetChosen
from autokernel.run.experiment import run_one
from autokernel.run.ledger import Ledger
from autokernel.run.limits import Limits, StopReason
from autokernel.run.orchestrator import Choice, MoveOn, Roster
from autokernel.types import Target


def run(
    ledger: Ledger,
    targets: Sequence[Target],
    desk: Desk,
    judge: Judge,
    limits: Limits,
    rules: MoveOn,
    observer: Observer,
) -> StopReason:
    """Runs experiments until a limit is reached, nobody has an idea left, or the proposer fails for good.

    A candidate's failure is a verdict. What is raised from here (AutokernelError, an interruption) leaves the
    workspace consistent: the experiment in flight is committed and will be judged when the run comes back.
    """
    roster = Roster(targets, rules)
    current: Choice | None = None
    while True:
        if reason := limits.reached(ledger.rows, ledger.beside()):
            return reason

        # 1. The target with the most expected gain; a proposal that an earlier process left unjudged comes first.
        proposed = ledger.pending
        if proposed is None:
            choice = roster.choose(ledger.rows)
            if choice is None:
                return StopReason("exhausted", "nothing is left to try on any target")
            if current is None or (choice.target.name, choice.visit) != (current.target.name, current.visit):
                observer.on_event(TargetChosen(choice.target, choice.visit, choice.gain))
            current = choice

            # 2. Ask the strategy, propose, commit.
            try:
                move = desk.next(choice.target)
            except ProposerFailed as error:
                return StopReason("proposer", redact(str(error)))
            if isinstance(move, Leave):
                if not limits.reached(ledger.rows, ledger.beside()):
                    observer.on_event(MovedOn(choice.target, move.reason))
                    roster.leave(choice.target, move.for_good)
                    current = None
                continue
            proposed = ledger.propose(choice.target, move.candidate, move.kind, move.spent_s)

        # 3. Judge; mend what failed; keep (the branch advances) or reset by the comparison alone; append the row.
        experiment = run_one(ledger, judge, proposed, observer, desk.mend)
        desk.tell(experiment)
        roster.worked(experiment.target)

        # 4. Move on when a criterion says so.
        if left := orchestrator.visits(ledger.rows, rules)[-1].left:
            observer.on_event(MovedOn(proposed.target, left))
