"""The clock of table4.py: the median of single calls, each after the cache was overwritten."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from autokernel import hardware

if TYPE_CHECKING:
    import torch

ROUND_S = 0.075  # of a contender on CUDA
BATCH = 20  # calls
PAUSE_CYCLES = 2_000_000  # a millisecond
PAUSED_US = 100.0  # calls shorter than this


def median_us(call: Callable[[], Any], device: str) -> float:
    """Median time of one call in one round, the cache overwritten before each, in microseconds."""
    if device != "cpu":
        return on_cuda(call)
    flush = flushing()
    call()
    samples: list[float] = []
    started = time.perf_counter()
    while len(samples) < 3 or (time.perf_counter() - started < 0.2 and len(samples) < 40):
        flush.fill_(len(samples) & 1)
        begin = time.perf_counter()
        call()
        samples.append((time.perf_counter() - begin) * 1e6)
    return statistics.median(samples)


def on_cuda(call: Callable[[], Any]) -> float:
    """As triton.testing.do_bench times, between events and behind its overwriting of the cache. But where calls are
    short the device pauses first, so that a batch is queued before it begins: on a busy host what is between the events
    would else be the host's time to launch.
    """
    import torch
    from triton.runtime import driver

    cache = driver.active.get_empty_cache_for_benchmark()
    samples: list[float] = []
    pause, warm, until = True, False, time.perf_counter() + ROUND_S
    while not samples or time.perf_counter() < until:
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(BATCH)]
        if pause:
            torch.cuda._sleep(PAUSE_CYCLES)
        for start, end in pairs:
            cache.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        times = [1e3 * start.elapsed_time(end) for start, end in pairs]
        samples += times if warm else []
        # Long calls leave the host behind by themselves, and products should not rest: they live by the power limit.
        pause, warm = statistics.median(times) < PAUSED_US, True
    return statistics.median(samples)


@functools.cache
def flushing() -> torch.Tensor:
    """As many bytes as overwrite the processor's last-level cache."""
    import torch

    return torch.empty(2 * hardware.measure("cpu").llc_bytes, dtype=torch.uint8)
