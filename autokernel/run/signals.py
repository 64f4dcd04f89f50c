"""SIGINT, SIGTERM and SIGHUP end a run, and never in the middle of a write."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP came; not an Exception, so that nothing on the way takes it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Signals:
    """Turns the signals that end a run into ``Interrupted``; inside ``held`` they wait until the write is whole.

    Python drops what is raised inside a finaliser, wherever that happens to run: so a signal that was raised, and of
    which nobody is on the way out, is raised again at the next write.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._waiting: int | None = None
        self._raised: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python has no signal handlers
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                before = signal.getsignal(number)
                if before is not signal.SIG_IGN:  # nohup asked for it
                    self._before[number] = before
                    signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._depth:
            self._waiting = number
        else:
            self._raise(number)

    def _raise(self, number: int) -> NoReturn:
        self._raised = number
        raise Interrupted(number)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        if self._raised is not None and not on_the_way_out():
            raise Interrupted(self._raised)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if not self._depth and self._waiting is not None:
            number, self._waiting = self._waiting, None
            self._raise(number)


def on_the_way_out() -> bool:
    """Whether an ``Interrupted`` is being handled, or something that came up while one was."""
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, Interrupted):
            return True
        error = error.__context__
    return False
