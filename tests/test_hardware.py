"""Ceilings: measured once, cached per device, read without torch; floors that no figure can undercut."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from autokernel import hardware
from autokernel.hardware import Hardware

RATES = {"1000": 50.0, "10000": 80.0, "100000": 10.0}
KNOWN = Hardware("cpu", "a processor", 2, 2, 1 << 20, RATES, {"fp32": 0.2, "fp16": 0.01, "bf16": 0.8})


def test_json_round_trip() -> None:
    assert Hardware.from_json(json.loads(json.dumps(KNOWN.to_json()))) == KNOWN


def test_bandwidth_is_the_best_seen_at_this_working_set_or_a_larger_one() -> None:
    assert KNOWN.bandwidth_gbps(10) == 80
    assert KNOWN.bandwidth_gbps(5_000) == 80
    assert KNOWN.bandwidth_gbps(99_999) == 80
    assert KNOWN.bandwidth_gbps(100_000) == 10
    assert KNOWN.bandwidth_gbps(10**9) == 10


def test_floor_is_the_larger_of_both_times() -> None:
    assert KNOWN.floor_us(0, 10**6, "fp32") == pytest.approx(100)
    assert KNOWN.floor_us(10**9, 0, "fp32") == pytest.approx(5000)
    assert KNOWN.floor_us(10**9, 10**6, "bf16") == pytest.approx(1250)
    assert KNOWN.floor_us(10**9, 0, "fp16") == pytest.approx(5000)  # a kernel may convert to fp32


def test_measured_once_then_read_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOKERNEL_CACHE", str(tmp_path))
    monkeypatch.setattr(hardware, "CPU_BUDGET_S", 0.01)
    monkeypatch.setattr(hardware, "CPU_MATMUL_BUDGET_S", dict.fromkeys(("fp32", "fp16", "bf16"), 0.01))
    assert hardware.cached("cpu") is None
    measured = hardware.measure("cpu")
    assert measured.cores >= 1 and measured.name
    assert all(rate > 0 for rate in (*measured.copy_gbps.values(), *measured.tflops.values()))
    assert hardware.cached("cpu") == measured
    code = "import sys; from autokernel import hardware; h = hardware.cached(); print(h.name, 'torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == f"{measured.name} False"


def test_a_disturbed_measurement_never_lowers_a_ceiling() -> None:
    worse = Hardware.from_json({**KNOWN.to_json(), "copy_gbps": dict.fromkeys(RATES, 20.0)})
    assert hardware._better(KNOWN, worse).copy_gbps == {"1000": 50, "10000": 80, "100000": 20}


def test_a_torn_cache_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOKERNEL_CACHE", str(tmp_path))
    hardware._store(Hardware.from_json({**KNOWN.to_json(), "name": hardware._identity("cpu")[0]}))
    assert hardware.cached("cpu") is not None
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text()[:40])
    assert hardware.cached("cpu") is None
