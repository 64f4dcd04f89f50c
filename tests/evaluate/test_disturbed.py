"""When a turn does not count: its thread was without a processor, as told by the time it ran."""

from __future__ import annotations

import pytest

from autokernel.evaluate.clocks import disturbed


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
