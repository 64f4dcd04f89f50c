"""When a turn does not count: its thread was without a processor, or its device had not finished."""

from __future__ import annotations

import pytest

from autokernel.evaluate.clocks import LEAST_RIVAL_TURNS, busy_s, claimed, disturbed


@pytest.mark.parametrize(
    ("ran_ms", "turn_ms", "expected"),
    [
        (15.9, 16.0, False),
        (15.0, 16.0, False),  # a request takes its time, too
        (14.0, 16.0, True),
        (0.2, 0.5, False),  # of a very short turn the request is most
        (0.0, 16.0, True),
    ],
)
def test_a_turn_without_a_processor_is_disturbed(ran_ms: float, turn_ms: float, expected: bool) -> None:
    before_ns = 10**12
    assert disturbed(before_ns, before_ns + int(ran_ms * 1e6), turn_ms * 1e-3) is expected


def test_what_cannot_be_told_is_not_claimed() -> None:
    assert not disturbed(None, 5, 1.0) and not disturbed(5, None, 1.0)


def test_a_busy_device_is_told_by_what_it_takes_after_rivals() -> None:
    idle, left_behind = 2.5e-4, 7.7e-4  # measured on an H200: nothing left to do, and half a millisecond of it
    rivals = [idle] * LEAST_RIVAL_TURNS
    assert idle < busy_s(rivals) < left_behind
    assert busy_s([each + 1e-3 for each in rivals]) > left_behind, "a slow device is not a busy one"
    assert busy_s([*rivals, 5e-3]) == busy_s(rivals), "one slow turn of a rival's hides nothing"


def test_before_rivals_had_turns_only_much_is_busy() -> None:
    assert 7.7e-4 < busy_s([]) < 2.2e-3  # milliseconds of work left behind are seen from the start
    assert busy_s([1e-5] * (LEAST_RIVAL_TURNS - 1)) == busy_s([])


def test_a_runner_that_says_no_time_is_taken_by_the_judges() -> None:
    assert claimed({}, 0.5) == 0.5
    assert claimed({"claim_ns": 250_000_000}, 0.5) == 0.25
