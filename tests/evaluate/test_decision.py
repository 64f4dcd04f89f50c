"""The decision rule on simulated measurements: what it keeps of nothing, and of something."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from autokernel.evaluate.decision import FIRST_LOOK, LAST_LOOK, Block, Outcome, confirm, interval, screen


def blocks(rng: random.Random, gain: float, noise: float, bias: float, count: int) -> list[Block]:
    """Blocks of one pair: the gain, a bias that all of the pair's blocks share, and noise of each block."""
    shared = rng.gauss(0, bias)
    values = [math.log1p(gain) + shared + rng.gauss(0, noise) for _ in range(count)]
    return [Block(v, {"w": v}, 100.0 * math.exp(v), 100.0) for v in values]


def decided(pairs: Callable[[], list[Block]]) -> Outcome:
    """As the judge asks: after the first look and, unless that was final, after the last."""
    seen = [pairs() for _ in range(FIRST_LOOK)]
    outcome = confirm(seen, min_gain=0.005)
    if not outcome.final:
        seen += [pairs() for _ in range(LAST_LOOK - FIRST_LOOK)]
        outcome = confirm(seen, min_gain=0.005)
        assert outcome.final
    return outcome


def share_kept(gain: float, noise: float, bias: float, trials: int = 400) -> float:
    rng = random.Random(1)
    return sum(decided(lambda: blocks(rng, gain, noise, bias, 3)).keep for _ in range(trials)) / trials


@pytest.mark.parametrize("bias", [0.0, 0.01, 0.03])
def test_nothing_is_rarely_kept_even_when_blocks_of_a_pair_share_a_bias(bias: float) -> None:
    assert share_kept(gain=0.0, noise=0.01, bias=bias) <= 0.03  # before the screen, which spares half of them


def test_a_gain_of_five_percent_is_kept() -> None:
    assert share_kept(gain=0.05, noise=0.02, bias=0.01) >= 0.9


def test_a_slower_candidate_is_never_kept() -> None:
    assert share_kept(gain=-0.03, noise=0.01, bias=0.01) == 0.0


def test_a_gain_below_the_least_gain_is_not_kept() -> None:
    assert share_kept(gain=0.002, noise=0.0005, bias=0.0005) <= 0.03


def test_one_workload_confirmed_slower_vetoes_the_whole() -> None:
    def block(noise: float) -> Block:
        return Block(0.1 + noise, {"big": 0.12 + noise, "small": math.log(0.9) + noise}, 110.0, 100.0)

    outcome = confirm([[block(n), block(-n)] for n in (0.001, 0.002, 0.003, 0.001)], min_gain=0.005)
    assert not outcome.keep
    assert "small" in outcome.reason


def test_ambiguous_says_so() -> None:
    def block(value: float) -> Block:
        return Block(value, {"w": value}, 100.0, 100.0)

    values = (0.08, -0.04, 0.07, 0.0)
    first = confirm([[block(v)] for v in values], min_gain=0.005)
    last = confirm([[block(v)] for v in values * 2], min_gain=0.005)
    assert not first.final
    assert last.final
    assert not last.keep
    assert last.reason.startswith("ambiguous")


def test_one_burst_in_a_pair_changes_nothing() -> None:
    def block(value: float) -> Block:
        return Block(value, {"w": value}, 100.0, 100.0)

    calm = [[block(v), block(v + 0.001), block(v - 0.001)] for v in (0.050, 0.052, 0.049, 0.051)]
    burst = [*calm[:3], [*calm[3][:2], block(-0.6)]]
    assert confirm(calm, min_gain=0.005).keep
    assert confirm(burst, min_gain=0.005).keep


def test_the_screen_ends_hopeless_candidates_and_spares_promising_ones() -> None:
    rng = random.Random(2)
    assert screen(blocks(rng, -0.1, 0.01, 0.0, 3), 0.005) == "hopeless"
    assert screen(blocks(rng, 0.1, 0.01, 0.0, 3), 0.005) == "promising"


def test_the_interval_is_the_t_interval() -> None:
    found = interval([1.0, 2.0, 3.0], 0.95)  # mean 2, s = 1, t(0.975, 2) = 4.302653
    assert found.mean == pytest.approx(2.0)
    assert found.high - found.mean == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert math.isinf(interval([1.0]).high)


def claims(rng: random.Random, claimed: float, true: float, coarse: float) -> list[Block]:
    """Blocks of one pair by two clocks: a fine one that may lie, and a coarse one that does not."""
    fine = [math.log1p(claimed) + rng.gauss(0, 0.002) for _ in range(3)]
    own = [math.log1p(true) + rng.gauss(0, coarse) for _ in range(3)]
    return [Block(f, {"w": f}, 100.0, 100.0, own_log_ratio=o) for f, o in zip(fine, own, strict=True)]


def share_believed(claimed: float, true: float, trials: int = 300) -> float:
    rng = random.Random(2)
    return sum(decided(lambda: claims(rng, claimed, true, 0.015)).keep for _ in range(trials)) / trials


def test_a_gain_that_both_clocks_see_is_kept() -> None:
    assert share_believed(claimed=0.02, true=0.02) >= 0.95


def test_what_the_judges_own_clock_does_not_see_is_not_kept() -> None:
    assert share_believed(claimed=0.02, true=0.0) <= 0.02
    assert share_believed(claimed=0.5, true=0.0) == 0.0
    assert share_believed(claimed=0.5, true=0.1) == 0.0


def test_the_reason_says_that_the_clocks_disagree() -> None:
    rng = random.Random(3)
    outcome = decided(lambda: claims(rng, claimed=0.1, true=0.0, coarse=0.005))
    assert not outcome.keep
    assert "judge's own clock" in outcome.reason
