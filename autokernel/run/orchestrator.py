"""Which target next, by Amdahl's law, and when to leave one.

Everything here is derived from the rows and the profile's targets: a resumed run needs no other memory.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Sequence

from autokernel import amdahl
from autokernel.run import history
from autokernel.run.history import Row
from autokernel.types import Target

VISIT_S = 7200.0


@dataclasses.dataclass(frozen=True)
class MoveOn:
    """When to leave a target. ``peak_pct`` is percent of the roofline ceiling, ``seconds`` is time spent on one visit,
    ``speedup`` is against the best baseline. On a return visit ``peak_pct`` and ``speedup`` count only if they are
    reached during that visit. ``seconds`` None is two hours; see ``within`` for a short night.
    """

    reverts: int = 5
    peak_pct: float = 90.0
    seconds: float | None = None
    speedup: float = 2.0

    def within(self, budget_s: float | None, targets: int) -> MoveOn:
        """These rules for a budget: where ``seconds`` would not end a visit before the night ends, every target gets
        an even share of it, so that a short night reaches them all.
        """
        if budget_s is None or (self.seconds is not None and self.seconds < budget_s):
            return self
        return dataclasses.replace(self, seconds=min(VISIT_S, budget_s / max(1, targets)))


@dataclasses.dataclass(frozen=True)
class Choice:
    """The target to work on; ``visit`` counts from 1; ``gain`` is the fraction of the model's time left to win."""

    target: Target
    visit: int
    gain: float


@dataclasses.dataclass(frozen=True)
class Visit:
    """A stretch of experiments on one target. ``left`` says why it ended; "" while it goes on."""

    target: str
    rows: tuple[Row, ...]
    left: str = ""


class Roster:
    """Which targets this invocation still works on. One for which no candidate came is passed over until another
    target had its turn, and given up when none comes the second time, or never will.
    """

    def __init__(self, targets: Sequence[Target], rules: MoveOn) -> None:
        self._targets, self._rules = targets, rules
        self._given_up: set[str] = set()
        self._resting: set[str] = set()
        self._empty: collections.Counter[str] = collections.Counter()  # visits in a row without an experiment

    def choose(self, rows: Sequence[Row]) -> Choice | None:
        """The target of the next experiment, or None when every target is given up or dropped."""
        choice = choose(self._targets, rows, self._given_up | self._resting, self._rules)
        if choice is None and self._resting:
            self._resting.clear()
            choice = choose(self._targets, rows, self._given_up, self._rules)
        return choice

    def leave(self, target: Target, for_good: bool) -> None:
        """No candidate came for this target."""
        self._empty[target.name] += 1
        (self._given_up if for_good or self._empty[target.name] > 1 else self._resting).add(target.name)

    def worked(self, target: Target) -> None:
        """An experiment was made on this target."""
        self._empty[target.name] = 0
        self._resting.clear()


def choose(
    targets: Sequence[Target], rows: Sequence[Row], exhausted: Collection[str] = (), rules: MoveOn | None = None
) -> Choice | None:
    """The target of the next experiment, or None when every target is exhausted or was dropped.

    A visit that no criterion ended goes on. Otherwise: among the targets with the fewest visits (so that each is
    visited before any is revisited), the one with the largest expected gain. ``exhausted`` names the targets for which
    the proposer has nothing left.
    """
    done = visits(rows, rules or MoveOn())
    usable = [t for t in targets if t.name not in exhausted and not dropped(rows, t.name)]
    if not usable:
        return None
    counts = {t.name: sum(v.target == t.name for v in done) for t in usable}
    if done and not done[-1].left and done[-1].target in counts:
        target = next(t for t in usable if t.name == done[-1].target)
        return Choice(target, counts[target.name], expected_gain(target, rows))
    target = min(usable, key=lambda t: (counts[t.name], -expected_gain(t, rows)))
    return Choice(target, counts[target.name] + 1, expected_gain(target, rows))


def visits(rows: Sequence[Row], rules: MoveOn) -> list[Visit]:
    """The run so far, cut into visits."""
    cut: list[Visit] = []
    for index, row in enumerate(rows):
        if cut and cut[-1].target == row.target and not cut[-1].left:
            visit = dataclasses.replace(cut[-1], rows=(*cut[-1].rows, row))
            cut[-1] = visit
        else:
            if cut and not cut[-1].left:
                cut[-1] = dataclasses.replace(cut[-1], left="the proposer had nothing left to try")
            visit = Visit(row.target, (row,))
            cut.append(visit)
        before = history.champion(rows[: index + 1 - len(visit.rows)], row.target)
        cut[-1] = dataclasses.replace(visit, left=_why_leave(visit, before, rules))
    return cut


def _why_leave(visit: Visit, before: Row | None, rules: MoveOn) -> str:
    """Why a visit ends here, or "". ``before`` is the champion that stood when it began."""
    now = history.champion(visit.rows, visit.target) or before
    if now is None:
        return "its starter does not pass"
    reverts = 0
    for row in visit.rows:
        reverts = {"revert": reverts + 1, "aa": reverts}.get(row.decision, 0)
    spent_s = sum(row.seconds for row in visit.rows)
    peak, peak_before = now.pct_peak or 0.0, (before.pct_peak or 0.0) if before else 0.0
    speedup, speedup_before = now.speedup_vs_best or 0.0, (before.speedup_vs_best or 0.0) if before else 0.0
    if peak >= rules.peak_pct > peak_before:
        return f"at {peak:.0f} % of peak"
    if speedup >= rules.speedup > speedup_before:
        return f"{speedup:.2f}x over its best baseline"
    if reverts >= rules.reverts:
        return f"{reverts} experiments in a row reverted"
    if spent_s >= (VISIT_S if rules.seconds is None else rules.seconds):
        return f"{spent_s / 60:.0f} min spent on it" if spent_s >= 120 else f"{spent_s:.0f} s spent on it"
    return ""


def dropped(rows: Sequence[Row], target: str) -> bool:
    """Whether this target was tried and has no kernel that passes."""
    return any(row.target == target for row in rows) and history.champion(rows, target) is None


def expected_gain(target: Target, rows: Sequence[Row]) -> float:
    """The fraction of the model's time that would be won if this target reached its floor, 0 to 1.

    Counted from the champion's time, or from what the model runs today where that is faster (as it is before the
    first experiment): a kernel slower than eager is not put into the model.
    """
    floor = min(1.0, target.floor_us / target.eager_us) if target.eager_us > 0 else 1.0
    return target.share * max(0.0, 1.0 / _gain(target, rows) - floor)


def projected_speedup(targets: Sequence[Target], rows: Sequence[Row]) -> float:
    """The whole model's speedup by Amdahl's law if every champion that beats eager is put into it."""
    return amdahl.projected((t.share, _gain(t, rows)) for t in targets)


def _gain(target: Target, rows: Sequence[Row]) -> float:
    champion = history.champion(rows, target.name)
    return amdahl.model_gain(target, champion.latency_us, champion.speedup_vs_eager) if champion else 1.0
