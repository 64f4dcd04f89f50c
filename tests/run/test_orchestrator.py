"""Which target is next, and when one is left: by hand-made rows."""

from __future__ import annotations

import dataclasses

import pytest
from sample_rows import row
from scripted_night import target

from autokernel.run.orchestrator import (
    MoveOn,
    choose,
    expected_gain,
    projected_speedup,
    visits,
)

BIG, SMALL = target("big", 0.6), target("small", 0.2)  # each 100 us eager, floor 10 us
TARGETS = (SMALL, BIG)


def test_the_largest_expected_gain_comes_first():
    choice = choose(TARGETS, [])
    assert choice.target is BIG and choice.visit == 1
    assert choice.gain == pytest.approx(0.6 * 0.9)
    near_floor = dataclasses.replace(BIG, floor_us=99.0)
    assert choose((SMALL, near_floor), []).target is SMALL


def test_a_champion_slower_than_eager_counts_as_eager():
    slow = [row(1, "big", "baseline", vs_eager=0.25)]
    assert expected_gain(BIG, slow) == expected_gain(BIG, [])
    fast = [row(1, "big", "baseline", vs_eager=4.0)]
    assert expected_gain(BIG, fast) == pytest.approx(0.6 * (0.25 - 0.1))
    past_floor = [row(1, "big", "baseline", vs_eager=20.0)]
    assert expected_gain(BIG, past_floor) == 0.0


def test_what_a_model_spells_out_counts_as_it_stands_in_the_model():
    """PyTorch's operator takes 100 us and the kernel 125; but the model's own products around a softmax take 500."""
    slower_than_the_operator = [row(1, "big", "baseline", vs_eager=0.8)]
    own = dataclasses.replace(BIG, eager_us=500.0)
    assert projected_speedup([own], slower_than_the_operator) == pytest.approx(1 / (1 - 0.6 * 0.75))
    assert expected_gain(own, slower_than_the_operator) == pytest.approx(0.6 * (0.25 - 0.02))
    about_the_same = dataclasses.replace(BIG, eager_us=140.0)  # a profile and a judge differ by as much
    assert projected_speedup([about_the_same], slower_than_the_operator) == 1.0


def test_five_reverts_in_a_row_and_not_four():
    rows = [row(1, "big", "baseline"), *(row(n, "big", "revert") for n in range(2, 6))]
    assert choose(TARGETS, rows).target is BIG
    rows.append(row(6, "big", "revert"))
    assert choose(TARGETS, rows).target is SMALL
    assert "5 experiments in a row" in visits(rows, MoveOn())[-1].left


def test_a_keep_starts_the_count_anew_and_an_aa_does_not_count():
    decisions = [
        "baseline",
        "revert",
        "revert",
        "revert",
        "revert",
        "keep",
        "revert",
        "revert",
        "aa",
        "revert",
        "revert",
    ]
    rows = [row(n, "big", decision) for n, decision in enumerate(decisions, start=1)]
    assert choose(TARGETS, rows).target is BIG
    rows.append(row(len(rows) + 1, "big", "revert"))
    assert choose(TARGETS, rows).target is SMALL


@pytest.mark.parametrize(
    ("fields", "told"),
    [({"peak": 91.0}, "of peak"), ({"vs_best": 2.5}, "over its best baseline"), ({"seconds": 7201.0}, "min spent")],
)
def test_the_other_three_criteria(fields, told):
    assert not visits([row(1, "big", "baseline")], MoveOn())[-1].left
    rows = [row(1, "big", "baseline", **fields)]
    assert told in visits(rows, MoveOn())[-1].left
    assert choose(TARGETS, rows).target is SMALL


def test_every_option_is_heard():
    rows = [row(1, "big", "baseline", peak=50.0, vs_best=1.5, seconds=100.0), row(2, "big", "revert")]
    assert [visit.left for visit in visits(rows, MoveOn())] == [""]
    for rules in (MoveOn(reverts=1), MoveOn(peak_pct=40), MoveOn(speedup=1.4), MoveOn(seconds=100)):
        assert visits(rows, rules)[0].left, rules


def test_return_visits_come_after_every_first_visit_with_fresh_counters():
    rows = [row(1, "big", "baseline", vs_best=2.5), row(2, "small", "baseline", vs_best=2.5)]
    choice = choose(TARGETS, rows)
    assert (choice.target, choice.visit) == (BIG, 2)
    rows += [row(n, "big", "revert") for n in range(3, 7)]
    assert choose(TARGETS, rows).target is BIG  # 2.5x was reached on the first visit: it does not end this one
    rows.append(row(7, "big", "revert"))
    assert choose(TARGETS, rows).target is SMALL


def test_a_single_target_is_revisited_and_not_left_for_ever():
    rows = [row(1, "big", "baseline"), *(row(n, "big", "revert") for n in range(2, 7))]
    choice = choose((BIG,), rows)
    assert (choice.target, choice.visit) == (BIG, 2)
    rows.append(row(7, "big", "revert"))
    assert choose((BIG,), rows).visit == 2


def test_targets_without_a_passing_kernel_or_without_ideas_are_not_chosen():
    rows = [row(1, "big", "baseline", status="BUILD")]
    assert "does not pass" in visits(rows, MoveOn())[-1].left
    assert choose(TARGETS, rows).target is SMALL
    assert choose(TARGETS, rows, exhausted={"small"}) is None


def test_projection_is_amdahls_law_and_never_takes_a_slower_kernel():
    assert projected_speedup(TARGETS, []) == 1.0
    rows = [row(1, "big", "baseline", vs_eager=0.5), row(2, "small", "baseline", vs_eager=2.0)]
    assert projected_speedup(TARGETS, rows) == pytest.approx(1 / 0.9)
    rows.append(row(3, "big", "keep", vs_eager=3.0))
    assert projected_speedup(TARGETS, rows) == pytest.approx(1 / (1 - 0.1 - 0.4))


def test_a_short_night_is_shared_evenly():
    assert MoveOn().within(300, 6).seconds == 50
    assert MoveOn().within(36_000 * 9, 6).seconds == 7200
    assert MoveOn(seconds=20).within(300, 6).seconds == 20
    assert MoveOn(seconds=7200).within(300, 6).seconds == 50
    assert MoveOn(seconds=7200).within(36_000, 6).seconds == 7200
    assert MoveOn().within(None, 6).seconds is None
