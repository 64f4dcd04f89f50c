"""Where a GPU waits for its host: arithmetic on the intervals that a profiler saw. Times are in microseconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

Interval = tuple[float, float]  # start, end

WAITS = 0.25  # a forward that waits for more of its time than this is told what to do about it first


@dataclasses.dataclass(frozen=True)
class Waiting:
    """One forward on a GPU. ``busy_us``: at least one kernel or copy runs. The rest of its wall time is
    ``launching_us``, while the host is inside a launch, and ``idle_us``, while it does something else (Python, a
    synchronisation). ``launch_us`` is what ``launches`` launches cost the host, hidden behind kernels or not.
    """

    busy_us: float
    launching_us: float
    idle_us: float
    launch_us: float
    launches: float

    @property
    def advice(self) -> str | None:
        """What to do before any kernel is written, where waiting is much of the time."""
        waits = self.launching_us + self.idle_us
        total = self.busy_us + waits
        if total <= 0 or waits / total < WAITS:
            return None
        much = f"the GPU waits for its host {waits / total:.0%} of the time"
        if self.launch_us >= self.busy_us or self.launching_us >= self.idle_us:
            return (
                f"launch-bound: {much}, {self.launches:.0f} launches a forward: CUDA graphs first "
                '(torch.compile(mode="reduce-overhead")), then kernels that do more at once'
            )
        return (
            f'host-bound: {much}, mostly in Python or in synchronisations: torch.compile(mode="reduce-overhead") first'
        )

    def times(self, factor: float) -> Waiting:
        return Waiting(*(getattr(self, field.name) * factor for field in dataclasses.fields(self)))

    def plus(self, other: Waiting) -> Waiting:
        return Waiting(*(getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(self)))


def union(intervals: Sequence[Interval]) -> list[Interval]:
    """The same time as disjoint intervals, in order."""
    found: list[Interval] = []
    for start, end in sorted(i for i in intervals if i[1] > i[0]):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def between(disjoint: Sequence[Interval], start: float, end: float) -> list[Interval]:
    """What disjoint, ordered intervals leave open from ``start`` to ``end``."""
    edges = [start, *(edge for interval in disjoint for edge in interval), end]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b > a]


def overlap(left: Sequence[Interval], right: Sequence[Interval]) -> float:
    """The time that two sets of disjoint, ordered intervals share."""
    shared, i, j = 0.0, 0, 0
    while i < len(left) and j < len(right):
        shared += max(0.0, min(left[i][1], right[j][1]) - max(left[i][0], right[j][0]))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return shared


def length(disjoint: Sequence[Interval]) -> float:
    return sum(end - start for start, end in disjoint)


def waiting(
    kernels: Sequence[Interval], launches: Sequence[Interval], forwards: int, forward_us: float
) -> Waiting | None:
    """From the intervals of ``forwards`` profiled forwards and the wall time of one without a profiler; None where no
    kernel ran. The profiler slows the host down, so that it only tells how the waiting divides: how much there is
    follows from ``forward_us``.
    """
    busy = union(kernels)
    if not busy:
        return None
    calls = union(launches)
    open_ = between(busy, min(busy[0][0], calls[0][0]) if calls else busy[0][0], busy[-1][1])
    waits = max(forward_us - length(busy) / forwards, 0.0)
    launching = waits * overlap(open_, calls) / length(open_) if open_ else 0.0
    spent = sum(end - start for start, end in launches)
    return Waiting(length(busy) / forwards, launching, waits - launching, spent / forwards, len(launches) / forwards)
