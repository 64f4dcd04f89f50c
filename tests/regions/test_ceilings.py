"""Ceilings that were measured on a busy machine are measured again when a region beats them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from autokernel import hardware
from autokernel.regions import worker

MODEL = Path(__file__).parents[1] / "models" / "small_decoder.py"


def test_a_region_that_beats_its_ceiling_has_it_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = hardware.measure("cpu")
    monkeypatch.setenv("AUTOKERNEL_CACHE", str(tmp_path / "cache"))
    slow = {dtype: rate * 1e-4 for dtype, rate in real.tflops.items()}
    hardware._store(dataclasses.replace(real, tflops=slow))
    out = tmp_path / "out"
    arguments = ["--model", str(MODEL), "--out", str(out), "--warmup", "1", "--iters", "1", "--backend", "torch"]
    assert worker.main(arguments) == 0
    profile = json.loads((out / "profile.json").read_text())
    assert profile["hardware"]["tflops"]["fp32"] > 100 * slow["fp32"]
    # by the ceilings that were there, a ten-thousandth
    assert all(row["headroom"] > 0.01 for row in profile["rows"] if row["headroom"])
