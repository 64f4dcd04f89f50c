"""Runners made ahead of the next candidate, while nothing is judged: forked, confined, awake, and nothing loaded.

To open a GPU takes a process 0.2 s, and the driver lets processes do it one after the other: the runners that
share a verdict's stages would wait two seconds for it. A *batch* is for one source. Its runners share a folder for what
they build, where that source's code may write whatever it likes, so none of them is ever given to another.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from multiprocessing.connection import wait
from pathlib import Path

import torch

from autokernel.evaluate.pool import Handle, RunnerFailed

WAKE_S = 10.0
CONTEXT_BYTES = 512 << 20  # of device memory, about what a process takes that has opened a GPU and does nothing
MEMORY_SHARE = 0.125  # of the device memory that is free: so much at most is held for what may not be needed


class Batch:
    """Spare runners of one backend, over one folder of build products; ``spawn`` starts one. Not thread-safe."""

    def __init__(self, backend: str, folder: Path, size: int, spawn: Callable[[], Handle]) -> None:
        self.backend = backend
        self.folder = folder
        self.owner = ""  # id of the source whose they are; there is none at first
        self._missing = size
        self._spawn = spawn
        self._awake: deque[Handle] = deque()
        self._waking: Handle | None = None
        self._since = 0.0  # when that one was asked to wake

    def step(self) -> int | None:
        """Do what can be done at once to have one more: fork it, or see that it is awake. The descriptor to wait for
        before the next step; None when there is nothing left to do. They wake one after the other, so that the first is
        there soonest: most candidates fail before they need a second.
        """
        if self._waking is None:
            if not self._missing:
                return None
            self._missing -= 1
            try:
                self._waking, self._since = self._spawn(), time.monotonic()
            except RuntimeError:  # it did not come up: whoever needs a runner will be told why
                self._missing = 0
                return None
            self._waking.post("wake")
        elif wait([self._waking.fileno()], 0):
            self._see_awake()
            return self.step()
        return self._waking.fileno()

    def take(self) -> Handle | None:
        """A runner that is awake, or will be soon; None when there is none. What died meanwhile is passed over."""
        while self._awake or self._waking is not None:
            if not self._awake:
                self._see_awake()
                continue
            handle = self._awake.popleft()
            if answers(handle):
                return handle
        return None

    def rest(self) -> list[Handle]:
        """All that were not taken, which are the caller's from now on; no more are made."""
        left = [*self._awake, *([self._waking] if self._waking else [])]
        self._awake.clear()
        self._waking, self._missing = None, 0
        return left

    def _see_awake(self) -> None:
        """Wait for the one that is waking."""
        handle, self._waking = self._waking, None
        assert handle is not None
        try:
            handle.wait("wake", max(0.1, self._since + WAKE_S - time.monotonic()))
        except RunnerFailed:
            handle.close()
        else:
            self._awake.append(handle)


def answers(handle: Handle) -> bool:
    """Whether a runner still answers; one that does not is gone after this."""
    try:
        handle.ask("wake", deadline_s=WAKE_S)
    except RunnerFailed:
        handle.close()
        return False
    return True


def greet(fresh: Iterable[Handle]) -> None:
    """Open the device of runners that were not made ahead, by what spare ones hear before they load: "wake" when they
    are made, and when they are taken. Messages leave traces in the heap: with others, memory would lie elsewhere.
    """
    for handle in fresh:
        for _ in range(2):
            handle.post("wake")


def await_greeted(fresh: Iterable[Handle], deadline_s: float) -> None:
    """Their answers, each within the deadline: many may be opening the device. Raises RunnerFailed."""
    for handle in fresh:
        for _ in range(2):
            handle.wait("wake", deadline_s)


def affordable(wanted: int, device: torch.device) -> int:
    """How many spare runners the device has the memory for, at most ``wanted``."""
    if device.type == "cpu":
        return wanted
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return min(wanted, int(free_bytes * MEMORY_SHARE) // CONTEXT_BYTES)
