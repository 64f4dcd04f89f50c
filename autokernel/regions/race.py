"""Whole forwards against each other: interleaved blocks in one process, the owner's wall clock, no stored number."""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from autokernel.evaluate.decision import Interval, interval

BLOCK_S = 0.05  # a block's calls of one contestant take about this long, and one call at least
WARM_CALLS = 3


@dataclasses.dataclass(frozen=True)
class Race:
    """``times_us`` maps each contestant to the time of one forward in each block; blocks are in the same order."""

    times_us: Mapping[str, Sequence[float]]

    def median_us(self, name: str) -> float:
        return statistics.median(self.times_us[name])

    def gain(self, name: str, over: str) -> Interval:
        """log(t_over / t_name) over the blocks, with its 96 % interval: above 0 where ``name`` is faster."""
        return interval([math.log(b / a) for a, b in zip(self.times_us[name], self.times_us[over], strict=True)])


def race(
    contestants: Mapping[str, Callable[[], Any]], device: torch.device, blocks: int, rng: random.Random, least_s: float
) -> Race:
    """Times every contestant in every block, in an order drawn anew each time. At least ``blocks`` blocks, and more
    until ``least_s`` seconds are spent.
    """
    calls = {}
    for name, call in contestants.items():
        for _ in range(WARM_CALLS):
            timed(call, 1, device)
        calls[name] = max(1, round(BLOCK_S / max(timed(call, 1, device), 1e-6)))
    found: dict[str, list[float]] = {name: [] for name in contestants}
    started = time.perf_counter()
    done = 0
    while done < blocks or time.perf_counter() - started < least_s:
        order = list(contestants)
        rng.shuffle(order)
        for name in order:
            found[name].append(timed(contestants[name], calls[name], device) / calls[name] * 1e6)
        done += 1
    return Race(found)


def timed(call: Callable[[], Any], calls: int, device: torch.device) -> float:
    """Seconds for ``calls`` calls, the device's work included."""
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        call()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
