"""Where a GPU waits, on intervals written by hand."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
from torch._C._autograd import DeviceType

from autokernel.hardware import Hardware
from autokernel.regions import gaps, profiler, rank
from autokernel.regions.gaps import Waiting, waiting
from autokernel.regions.profiler import OpTime, Timing
from autokernel.regions.rank import Row

CPU = Hardware("cpu", "x", 1, 1, 0, {"1000": 1.0}, {"fp32": 1.0, "fp16": 1.0, "bf16": 1.0})


def test_overlapping_intervals_count_once() -> None:
    assert gaps.union([(5, 6), (0, 2), (1, 3), (3, 4), (9, 9)]) == [(0, 4), (5, 6)]
    assert gaps.between([(1, 2), (4, 5)], 0, 5) == [(0, 1), (2, 4)]
    assert gaps.overlap([(0, 4), (6, 9)], [(1, 2), (3, 7), (8, 20)]) == 1 + 1 + 1 + 1
    assert gaps.overlap([], [(0, 1)]) == 0


def test_the_wall_time_divides_into_working_launching_and_idle() -> None:
    """Two kernels that overlap, one alone; a launch before the first, one hidden, one in the gap of 6."""
    found = waiting([(10, 20), (15, 24), (30, 36)], [(6, 10), (11, 14), (25, 28)], 1, 40.0)
    assert found is not None
    assert found.busy_us == 20
    assert found.launching_us + found.idle_us == pytest.approx(20)
    assert found.launching_us == pytest.approx(20 * (4 + 3) / (4 + 6))
    assert (found.launch_us, found.launches) == (10, 3)


def test_it_is_of_one_forward_and_never_negative() -> None:
    found = waiting([(0, 10), (20, 30)], [], 2, 4.0)
    assert found == Waiting(10.0, 0.0, 0.0, 0.0, 0.0)
    assert waiting([], [(0, 1)], 1, 5.0) is None


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (Waiting(10, 60, 30, 80, 40), "launch-bound: the GPU waits for its host 90% of the time, 40 launches"),
        (Waiting(100, 5, 95, 20, 4), "host-bound: the GPU waits for its host 50%"),
    ],
)
def test_advice(found: Waiting, word: str) -> None:
    assert word in (found.advice or "")
    assert dataclasses.replace(found, busy_us=1000.0).advice is None


def event(name: str, start: float, end: float, parent: Any = None, device: Any = DeviceType.CPU, **more: Any) -> Any:
    span = SimpleNamespace(start=start, end=end)
    return SimpleNamespace(
        name=name, device_type=device, cpu_parent=parent, time_range=span, cpu_time_total=end - start, **more
    )


def test_events_are_kernels_launches_or_neither() -> None:
    node = event("autokernel::0::mm", 0, 9)
    op = event("aten::mm", 1, 8, node)
    launch, outside = event("cudaLaunchKernel", 2, 5, op), event("cudaLaunchKernelExC", 20, 22)
    kernel = event("gemm", 6, 16, device=DeviceType.CUDA)
    mark = event("a range of the model's", 0, 40, device=DeviceType.CUDA, is_user_annotation=True)
    events = [node, op, launch, outside, kernel, mark, event("cudaDeviceSynchronize", 22, 40)]
    assert profiler._launches(events, 2) == {(0, "mm"): 1.5}
    found = profiler._waiting(events, 1, 30.0)
    assert found is not None
    assert (found.busy_us, found.launch_us, found.launches) == (10, 5, 2)


def test_waiting_has_rows_of_its_own_and_shares_still_add_up() -> None:
    timing = Timing({}, (OpTime("aten::mm", 40.0, 2.0),), 100.0, {}, Waiting(40.0, 25.0, 35.0, 50.0, 7.0))
    rows = rank.rows((), (), timing, CPU)
    assert {row.name: row.share for row in rows} == {"aten::mm": 0.4, "(launch overhead)": 0.25, "(idle GPU)": 0.35}
    assert [row.to_json()["kind"] for row in rows] == ["op", "wait", "wait"]
    assert rows[1].calls == 7


def test_a_region_whose_kernels_are_shorter_than_their_launches_is_launch_bound() -> None:
    row = Row("x", "softmax", (), 1, 5.0, 0.5, floor_us=2.0, compute_floor_us=1.0, memory_floor_us=2.0, launch_us=6.0)
    assert row.bound == "launch"
    assert dataclasses.replace(row, launch_us=4.0).bound == "memory"
