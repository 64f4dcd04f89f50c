"""What the experiments so far say: which tier each belonged to, and which is due. Plain rules without a memory."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Sequence

from autokernel.guide.figures import Bound
from autokernel.types import Experiment

TIERS = {
    1: "block sizes and tunable constants",
    2: "memory access",
    3: "compute",
    4: "advanced structure",
    5: "the architecture's own instructions",
    6: "what only this kernel allows",
}
PATIENCE = 3  # attempts in a tier, after its last win, until the next one is due
ORDER: dict[Bound, tuple[int, ...]] = {  # the order in which tiers pay, by what bounds the target
    "memory": (1, 2, 6, 4, 5, 3),
    "compute": (1, 3, 2, 5, 4, 6),
    "launch": (6, 1, 4, 2, 3, 5),
    "": (1, 2, 3, 4, 5, 6),
}
_SAID = re.compile(r"\btier\s*([1-6])\b", re.IGNORECASE)
_WORDS = (  # the first pattern that is found decides; specific ones come first
    (5, r"\b(tma|wgmma|mma\.sync|ldmatrix|cp\.async|mbarrier|setmaxnreg|tcgen05|tensor ?map|descriptor|mfma|avx\w*|"
        r"amx|vnni|warp.?speciali[sz]\w*|-march\S*)\b"),
    (4, r"\b(split.?k|stream.?k|persistent|double.?buffer\w*|pipelin\w*|producer|consumer|grid.?stride|cluster\w*)\b"),
    (2, r"\b(coalesc\w*|vectori[sz]ed (?:load|store)s?|prefetch\w*|swizzl\w*|evict\w*|cache|streaming|non.?temporal|"
        r"shared memory|bank\w*|layout|padd\w*|pack\w*|alignment|aligned|one pass|fewer passes|l2)\b"),
    (6, r"\b(online|welford|fus\w+|epilogue|masked? blocks?|causal|skip\w*|rescal\w*|two.?pass|logsumexp|"
        r"recompute\w*)\b"),
    (1, r"\b(block\w*|tile\w*|num_warps|num_stages|constant|unroll\w*|grain|schedule|\w+ \S+ -> \S+)"),
    (3, r"\b(exp2?|fma|rsqrt|reciprocal|simd|accumulat\w*|precision|instruction|polynomial|ilp|register\w*|"
        r"branch\w*)\b"),
)  # fmt: skip


def tier_of(experiment: Experiment) -> int | None:
    """The tier of an idea: what it says of itself, else what its words tell; None where they tell nothing.

    The playbook's own third tier moves two constants together: block sizes again.
    """
    idea = experiment.candidate.idea
    said = _SAID.search(idea)
    if experiment.candidate.author == "playbook" or " values by TPE" in idea:
        if said and said[1] in "13":
            return 1
        said = None
    if said:
        return int(said[1])
    lowered = idea.lower()
    return next((tier for tier, words in _WORDS if re.search(words, lowered)), None)


@dataclasses.dataclass(frozen=True)
class Due:
    """The tier to work in now; ``tier`` is None when every tier was tried and gave nothing more."""

    tier: int | None
    reason: str


def ideas(history: Sequence[Experiment]) -> list[Experiment]:
    """The experiments that tried something: neither baselines nor A/A repetitions."""
    return [e for e in history if e.decision in ("keep", "revert")]


def due(history: Sequence[Experiment], bound: Bound, tiers: Collection[int] = tuple(TIERS)) -> Due:
    """The tier that won last as long as it wins, else the first of the bound's order that has attempts left.

    ``tiers`` are those that make sense for this target: some backends have no architecture's instructions to offer.
    """
    tried = ideas(history)
    order = [tier for tier in ORDER[bound] if tier in tiers]
    since = dict.fromkeys(TIERS, 0)  # attempts of each tier since its last win
    for experiment in tried:
        tier = tier_of(experiment)
        if tier is not None:
            since[tier] = 0 if experiment.decision == "keep" else since[tier] + 1
    wins = [e for e in tried if e.decision == "keep"]
    last = tier_of(wins[-1]) if wins else None
    if last is not None and since[last] < PATIENCE:
        return Due(last, f"experiment {wins[-1].number} won in it and {since[last]} attempts since then did not")
    for tier in order:
        if since[tier] < PATIENCE:
            why = f"the first in the order for a {bound}-bound kernel" if bound else "the first in order"
            done = order[: order.index(tier)]
            spent = (
                f"; spent: tier {', '.join(map(str, done))} ({PATIENCE} attempts without a win each)" if done else ""
            )
            return Due(tier, f"{why} with attempts left ({since[tier]} of {PATIENCE} used){spent}")
    return Due(None, f"every tier has had {PATIENCE} attempts since its last win")
