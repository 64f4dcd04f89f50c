"""Is it faster? Paired blocks, screened and confirmed; no torch, no clock, no processes: numbers in, decision out.

The unit of evidence is a *pair*: one freshly started runner of the incumbent and one of the candidate, compared over
a few interleaved blocks, of which the median counts: a neighbour's burst of memory traffic slows single turns by half.
Blocks of one pair share where their memory lies and how their threads were placed, so they are not independent, and a
test over blocks alone keeps too many null candidates. The confirmation is therefore a t-interval over pairs: a first
look after FIRST_LOOK of them, with a confidence that leaves room for the second, and a last look after LAST_LOOK. The
screen before it only spares hopeless candidates the cost.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Literal

from scipy.special import stdtrit

FIRST_LOOK, LAST_LOOK = 4, 8  # pairs
FIRST_CONFIDENCE, LAST_CONFIDENCE = 0.99, 0.96  # two-sided; a null candidate passes either with 2.5 % at the most
FUTILE_MARGIN = 0.005  # beyond the least gain: what the mean must show at the first look to be worth the second
AGREEMENT = 0.5  # share of a gain that the judge's own clock must see, where a finer one that is not its own saw it
SLOWER_LIMIT = math.log(0.98)  # no real workload may be confirmed more than 2 % slower


@dataclasses.dataclass(frozen=True)
class Block:
    """One interleaved block: log(t_incumbent / t_candidate) of the weighted work, and of each workload by key.
    ``own_log_ratio`` is the same by the judge's own clock, where that is not the one which counts.
    """

    log_ratio: float
    by_workload: Mapping[str, float]
    incumbent_us: float
    candidate_us: float
    own_log_ratio: float | None = None
    disturbed: bool = False  # other processes took the processor, and did so again when the block was repeated


@dataclasses.dataclass(frozen=True)
class Interval:
    mean: float
    low: float
    high: float


def interval(values: Sequence[float], confidence: float = LAST_CONFIDENCE) -> Interval:
    """Two-sided t-interval of the mean; unbounded for fewer than two values."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, -math.inf, math.inf)
    half = float(stdtrit(len(values) - 1, 0.5 + confidence / 2)) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def middle(blocks: Sequence[Block]) -> float:
    """What the blocks of one pair say together: their median log ratio."""
    return statistics.median(block.log_ratio for block in blocks)


def confirmed(pairs: Sequence[Sequence[Block]], claimed: float) -> bool:
    """Whether the judge's own, coarser clock saw at least AGREEMENT of a gain, on average over the pairs."""
    own = [block.own_log_ratio for pair in pairs for block in pair if block.own_log_ratio is not None]
    return not own or statistics.fmean(own) >= AGREEMENT * claimed


def screen(blocks: Sequence[Block], min_gain: float) -> Literal["hopeless", "promising"]:
    """Is a confirmation worth its cost? Hopeless once even the optimistic end of the evidence misses the gain."""
    if len(blocks) < 2:
        return "promising"
    error = statistics.stdev(block.log_ratio for block in blocks) / math.sqrt(len(blocks))
    return "hopeless" if middle(blocks) + error < math.log1p(min_gain) else "promising"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The state of a confirmation. ``final`` False asks for more pairs."""

    final: bool
    keep: bool
    reason: str
    overall: Interval


def confirm(pairs: Sequence[Sequence[Block]], min_gain: float) -> Outcome:
    """Keep iff the lower bound over the pairs exceeds the gain, and no workload is confirmed slower. To be asked after
    FIRST_LOOK and, unless that was final, after LAST_LOOK pairs.
    """
    last = len(pairs) >= LAST_LOOK
    confidence = LAST_CONFIDENCE if last else FIRST_CONFIDENCE
    middles = [middle(pair) for pair in pairs]
    overall = interval(middles, confidence)
    for key in pairs[0][0].by_workload:
        each = interval([statistics.median(block.by_workload[key] for block in pair) for pair in pairs], confidence)
        if each.high < SLOWER_LIMIT:
            return Outcome(True, False, f"workload {key} is slower: {percent(each.mean)}", overall)
    needed = math.log1p(min_gain)
    bounds = f"[{percent(overall.low)}, {percent(overall.high)}] over {len(pairs)} fresh pairs"
    if overall.low > needed and not confirmed(pairs, overall.mean):
        told = f"ambiguous: {percent(overall.mean)}, {bounds}, of which the judge's own clock saw less than half"
        return Outcome(last, False, told, overall)
    if overall.low > needed:
        return Outcome(True, True, f"{percent(overall.mean)} faster, {bounds}", overall)
    if overall.high < needed or (not last and overall.mean < needed + FUTILE_MARGIN):
        return Outcome(True, False, f"not faster: {percent(overall.mean)}, {bounds}", overall)
    return Outcome(last, False, f"ambiguous: {percent(overall.mean)}, {bounds}", overall)


def percent(log_ratio: float) -> str:
    """A log ratio as a signed percentage of speed, "+3.1 %"."""
    if math.isinf(log_ratio):
        return "-inf" if log_ratio < 0 else "+inf"
    return f"{math.expm1(log_ratio) * 100:+.1f} %"
