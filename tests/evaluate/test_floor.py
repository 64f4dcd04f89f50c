"""The roofline floor refuses nobody because of ceilings that were measured on a busy machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from autokernel import hardware
from autokernel.evaluate.client import Assignment, JudgeClient, JudgeOptions
from autokernel.types import Status

from .conftest import HONEST, target


def test_ceilings_are_measured_again_before_they_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = hardware.measure("cpu")
    monkeypatch.setenv("AUTOKERNEL_CACHE", str(tmp_path / "cache"))
    slow = {size: rate * 1e-4 for size, rate in real.copy_gbps.items()}
    hardware._store(dataclasses.replace(real, copy_gbps=slow))
    with JudgeClient(tmp_path / "judge", JudgeOptions(policy=False)) as judge:
        verdict = judge.evaluate(Assignment(target("torch"), HONEST, baselines=False)).verdict
    assert verdict.status is Status.PASS, verdict
    assert verdict.measurements is not None and verdict.measurements.pct_peak is not None
    assert verdict.measurements.pct_peak < 1000  # by the ceilings that were there it is a hundred times that
    mended = hardware.cached("cpu")
    assert mended is not None
    assert all(rate > 100 * slow[size] for size, rate in mended.copy_gbps.items())
