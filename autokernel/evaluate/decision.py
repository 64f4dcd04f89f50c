"""Is it faster? Paired blocks, screened and confirmed; no torch, no clock, no processes: numbers in, decision out.

The unit of evidence is a *pair*: one freshly started runner of the incumbent and one of the candidate, compared over
a few interleaved blocks. Blocks of one pair share where their memory lies and how their threads were placed, so they
are not independent, and a test over blocks alone keeps too many null candidates. The confirmation is therefore a
t-interval over the means of several pairs, and the screen before it only spares hopeless candidates the cost.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

from scipy.special import stdtrit

CONFIDENCE = 0.95  # two-sided
SLOWER_LIMIT = math.log(0.98)  # no real workload may be confirmed more than 2 % slower


@dataclasses.dataclass(frozen=True)
class Block:
    """One interleaved block: log(t_incumbent / t_candidate) of the weighted work, and of each workload by key."""

    log_ratio: float
    by_workload: Mapping[str, float]
    incumbent_us: float
    candidate_us: float
    disturbed: bool = False  # other processes took the processor, and did so again when the block was repeated


@dataclasses.dataclass(frozen=True)
class Interval:
    mean: float
    low: float
    high: float


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Two-sided t-interval of the mean; unbounded for fewer than two values."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, -math.inf, math.inf)
    half = float(stdtrit(len(values) - 1, 0.5 + confidence / 2)) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def screen(blocks: Sequence[Block], min_gain: float) -> Literal["hopeless", "promising"]:
    """Is a confirmation worth its cost? Hopeless once even the optimistic end of the evidence misses the gain."""
    values = [block.log_ratio for block in blocks]
    if len(values) < 2:
        return "promising"
    optimistic = statistics.fmean(values) + statistics.stdev(values) / math.sqrt(len(values))
    return "hopeless" if optimistic < math.log1p(min_gain) else "promising"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The decision over several pairs. ``spread`` is the standard deviation between the pairs' means."""

    keep: bool
    reason: str
    overall: Interval
    spread: float


def confirm(pairs: Sequence[Sequence[Block]], min_gain: float) -> Outcome:
    """Keep iff the lower bound over the pairs' means exceeds the gain, and no workload is confirmed slower."""
    means = [statistics.fmean(block.log_ratio for block in pair) for pair in pairs]
    overall = interval(means)
    spread = statistics.stdev(means) if len(means) > 1 else math.inf
    for key in pairs[0][0].by_workload:
        each = interval([statistics.fmean(block.by_workload[key] for block in pair) for pair in pairs])
        if each.high < SLOWER_LIMIT:
            return Outcome(False, f"workload {key} is {percent(-each.mean)} slower", overall, spread)
    needed = math.log1p(min_gain)
    bounds = f"[{percent(overall.low)}, {percent(overall.high)}] over {len(pairs)} fresh pairs"
    if overall.low > needed:
        return Outcome(True, f"{percent(overall.mean)} faster, {bounds}", overall, spread)
    if overall.high < needed:
        return Outcome(False, f"not faster: {percent(overall.mean)}, {bounds}", overall, spread)
    return Outcome(False, f"ambiguous: {percent(overall.mean)}, {bounds}", overall, spread)


def percent(log_ratio: float) -> str:
    """A log ratio as a signed percentage of speed, "+3.1 %"."""
    if math.isinf(log_ratio):
        return "-inf" if log_ratio < 0 else "+inf"
    return f"{math.expm1(log_ratio) * 100:+.1f} %"
