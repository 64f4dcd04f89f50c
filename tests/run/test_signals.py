"""Signals that end a run: never in the middle of a write, and never lost."""

from __future__ import annotations

import os
import signal

import pytest

from autokernel.run.signals import Interrupted, Signals


class Finalised:
    """Python drops what is raised while this goes."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):  # the handler runs between two of these
            pass


def test_a_signal_waits_for_the_write() -> None:
    written = []
    with Signals() as signals, pytest.raises(Interrupted):
        with signals.held():
            os.kill(os.getpid(), signal.SIGTERM)
            written.append("whole")
        written.append("never")
    assert written == ["whole"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_a_finaliser_swallowed_ends_the_run_at_the_next_write() -> None:
    written = []
    with Signals() as signals:
        something = Finalised()
        del something
        with pytest.raises(Interrupted) as stop, signals.held():
            written.append("never")
    assert written == []
    assert stop.value.number == signal.SIGTERM


def test_what_is_written_on_the_way_out_is_written() -> None:
    written = []
    with Signals() as signals, pytest.raises(Interrupted):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            with signals.held():
                written.append("on the way out")
            try:
                raise KeyError("something else")
            except KeyError:
                with signals.held():
                    written.append("and there")
    assert written == ["on the way out", "and there"]
