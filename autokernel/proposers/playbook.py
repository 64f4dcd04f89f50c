"""The proposer that needs no language model: it turns the knobs of a file, then edits its structure by recipe.

Tier 1 changes one ``# tune:`` constant at a time, the most telling ones first, and goes on in a direction that won; one
that surely does nothing for the calls at hand is left until all else is tried.
Tier 2 applies the structural recipes of the backend. Tier 3 changes two constants together: optuna's TPE sampler
proposes their values, its study rebuilt from the history each time, so that nothing is remembered here and a resumed
run goes on where it was. When all three have nothing new, there is nothing left to try.
"""

from __future__ import annotations

import dataclasses
import math
import random
import warnings
from collections.abc import Iterator, Sequence

from autokernel.extension import Brief, Proposal, ProposerOptions
from autokernel.proposers import _tune
from autokernel.proposers._tune import Constant, Value
from autokernel.proposers.recipes import recipes
from autokernel.types import Comparison, Experiment, source_id

_WORSE = -0.01  # log ratio under which a direction is given up
_SAME = 0.004  # log ratio within which a constant seems not to matter
_SURE = 0.01  # and the interval about it, within which one trial is enough to say so
_VECTORS = ("VEC", "LANES", "WIDTH")  # how starters name the floats of a vector
_PATIENCE = 12  # tier 3 proposals in a row that were not kept, and at least three for each constant


@dataclasses.dataclass(frozen=True)
class Trial:
    """One past experiment as the knobs see it: what it changed (name -> old and new value) and what that did.

    ``effect`` is the log of the speedup over its parent, None where the candidate failed; ``level`` is the log of the
    speedup over the first version of this file, None likewise. ``idle``: it surely did nothing.
    """

    values: dict[str, Value]
    changed: dict[str, tuple[Value, Value]]
    effect: float | None
    level: float | None
    kept: bool
    idle: bool


class Playbook:
    name = "playbook"
    in_flight = 1
    fix_attempts = 0

    def propose(self, brief: Brief) -> Proposal | None:
        tried = {experiment.candidate.id for experiment in brief.history} | {source_id(brief.source)}
        trials = list(_trials(brief.history))
        for proposal in (
            _single(brief, trials, tried, least=-1.5),
            _recipe(brief, tried),
            _joint(brief, trials, tried, telling=True),
            _single(brief, trials, tried, least=-math.inf),
            _joint(brief, trials, tried, telling=False),
        ):
            if proposal is not None:
                return proposal
        return None


def create(options: ProposerOptions) -> Playbook:
    return Playbook()


# ------------------------------------------------------------------------------------------------- what was learnt


def _trials(history: Sequence[Experiment]) -> Iterator[Trial]:
    """The experiments of a target that differ from a known parent, or start a line; A/A repetitions teach nothing."""
    known: dict[str, tuple[dict[str, Value], float]] = {}
    for experiment in history:
        if experiment.decision == "aa":
            continue
        values = {constant.name: constant.value for constant in _tune.constants(experiment.candidate.source)}
        parent_values, parent_level = known.get(experiment.candidate.parent, ({}, 0.0))
        changed = {n: (v, values[n]) for n, v in parent_values.items() if n in values and values[n] != v}
        effect = experiment.comparison.log_ratio if experiment.comparison else None
        if experiment.decision == "baseline":
            effect = 0.0 if experiment.verdict.measurements else None
        level = None if effect is None else parent_level + effect
        if level is not None:
            known[experiment.candidate.id] = values, level
        yield Trial(values, changed, effect, level, experiment.decision == "keep", _idle(experiment.comparison))


def _idle(seen: Comparison | None) -> bool:
    return seen is not None and abs(seen.log_ratio) < _SAME and -_SURE < seen.ci_low <= seen.ci_high < _SURE


# ------------------------------------------------------------------------------------------------- tier 1


def _single(brief: Brief, trials: Sequence[Trial], tried: set[str], least: float) -> Proposal | None:
    """The most promising change of one constant whose score is at least ``least``."""
    moves = [
        (_score(constant, choice, position, trials, last_resort=least == -math.inf), constant, choice)
        for position, constant in enumerate(_tune.constants(brief.source))
        for choice in constant.choices
        if choice != constant.value
    ]
    for score, constant, choice in sorted(moves, key=lambda move: -move[0]):
        source = _tune.with_values(brief.source, {constant.name: choice})
        if score < least or math.isinf(score) or source_id(source) in tried:
            continue
        again = ", further the way that won" if _won_this_way(constant, choice, trials) else ""
        why = f" ({constant.note})" if constant.note else ""
        return Proposal(source, f"tier 1: {constant.name} {constant.value} -> {choice}{again}{why}")
    return None


def _score(constant: Constant, choice: Value, position: int, trials: Sequence[Trial], last_resort: bool) -> float:
    """How promising a move is: by what kind of constant it is, and by what the trials of this constant taught."""
    step = constant.choices.index(choice) - constant.index
    mine = [trial for trial in trials if set(trial.changed) == {constant.name}]
    score = 2.0 - 0.05 * position
    if constant.ordered:
        score += (0.1 if step > 0 else 0.0) - 0.6 * (abs(step) - 1)
        if not last_resort and any(_given_up(constant, trial, step) for trial in mine):
            return -math.inf
        if constant.name in _VECTORS:  # the machine's vectors decide more than any blocking
            score += 0.5
        if constant.name == "GRAIN":  # matters for small calls only
            score -= 1.0
    elif str(constant.value).startswith("-"):  # compiler flags: more of them before fewer
        score += 0.5 if str(choice).startswith(str(constant.value)) else -1.0
    else:
        score -= 0.8
    score -= len(mine)
    if not last_resort and _does_nothing(constant, trials):
        return -math.inf
    return score + (5.0 if _won_this_way(constant, choice, trials) else 0.0)


def _does_nothing(constant: Constant, trials: Sequence[Trial]) -> bool:
    """Whether this constant, changed alone, did nothing, surely or twice, as one for longer rows does: it waits."""
    mine = [trial for trial in trials if set(trial.changed) == {constant.name}]
    effects = [abs(trial.effect) for trial in mine if trial.effect is not None]
    return (any(trial.idle for trial in mine) or len(effects) > 1) and max(effects) < _SAME


def _given_up(constant: Constant, trial: Trial, step: int) -> bool:
    """Whether this trial went from the present value in the direction of ``step`` and failed or was slower."""
    before, after = trial.changed[constant.name]
    if before != constant.value or after not in constant.choices:
        return False
    went = constant.choices.index(after) - constant.index
    return went * step > 0 and abs(went) <= abs(step) and (trial.effect is None or trial.effect < _WORSE)


def _won_this_way(constant: Constant, choice: Value, trials: Sequence[Trial]) -> bool:
    """Whether the last kept trial moved this constant, to its present value, in the direction of ``choice``."""
    kept = [trial for trial in trials if trial.kept]
    if not kept or constant.name not in kept[-1].changed or not constant.ordered:
        return False
    before, after = kept[-1].changed[constant.name]
    if after != constant.value or before not in constant.choices:
        return False
    return (constant.index - constant.choices.index(before)) * (constant.choices.index(choice) - constant.index) > 0


# ------------------------------------------------------------------------------------------------- tier 2


def _recipe(brief: Brief, tried: set[str]) -> Proposal | None:
    """The most promising recipe that was not tried on this target."""
    ideas = [experiment.candidate.idea for experiment in brief.history]
    for recipe in recipes(brief.target.backend):
        if any(idea.startswith(f"tier 2: {recipe.name}: ") for idea in ideas):
            continue
        source = recipe.apply(brief.source, brief)
        if source is not None and source_id(source) not in tried:
            return Proposal(source, f"tier 2: {recipe.name}: {recipe.why}")
    return None


# ------------------------------------------------------------------------------------------------- tier 3


def _joint(brief: Brief, trials: Sequence[Trial], tried: set[str], telling: bool) -> Proposal | None:
    """Two constants together, their values by TPE over all trials; the other constants stay as they are. ``telling``:
    one of the two at least does something alone. Else any two, if some do not: a row length and the block of longer
    rows may do so together.
    """
    constants = _tune.constants(brief.source)
    first = [c for c in constants if not _does_nothing(c, trials)]
    if not telling:
        if len(first) == len(constants):
            return None
        first = list(constants)
    ours = [e for e in brief.history if e.candidate.idea.startswith("tier 3: ")]
    kept_at = max((e.number for e in brief.history if e.decision == "keep"), default=0)
    patience = max(_PATIENCE, 3 * len(first)) * (1 if telling else 2)
    if not first or len(constants) < 2 or sum(e.number > kept_at for e in ours) >= patience:
        return None
    import optuna  # not before it is needed: it weighs more than the rest of the daemon

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space: dict[str, optuna.distributions.BaseDistribution] = {
        c.name: optuna.distributions.IntDistribution(0, len(c.choices) - 1)
        if c.ordered
        else optuna.distributions.CategoricalDistribution(range(len(c.choices)))
        for c in constants
    }
    levels = [trial.level for trial in trials if trial.level is not None]
    past = []
    for trial in trials:
        if all(trial.values.get(c.name) in c.choices for c in constants):
            level = trial.level if trial.level is not None else min(levels, default=0.0) - 0.5
            at = {c.name: c.choices.index(trial.values[c.name]) for c in constants}
            past.append(optuna.trial.create_trial(params=at, distributions=space, value=level))
    for attempt in range(40):
        seed = f"{brief.seed} {len(brief.history)} {attempt}"
        pair = _pair(random.Random(seed), [c.name for c in first], [c.name for c in constants])
        with warnings.catch_warnings():  # the multivariate sampler, which some versions call experimental
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            number = random.Random(seed).randrange(2**31)
            sampler = optuna.samplers.TPESampler(seed=number, n_startup_trials=5, multivariate=True)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.add_trials(past)
        asked = study.ask({name: space[name] for name in pair}).params
        values = {c.name: c.choices[asked[c.name]] for c in constants if c.name in pair}
        source = _tune.with_values(brief.source, values)
        if source_id(source) not in tried:
            changes = ", ".join(f"{c.name} {c.value} -> {values[c.name]}" for c in constants if c.name in values)
            return Proposal(source, f"tier 3: {changes}: two constants together, values by TPE over {len(past)} trials")
    return None


def _pair(draw: random.Random, first: Sequence[str], names: Sequence[str]) -> tuple[str, str]:
    """One of ``first``, and another of ``names``."""
    one = draw.choice(first)
    return one, draw.choice([name for name in names if name != one])
