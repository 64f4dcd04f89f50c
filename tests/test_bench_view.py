"""What ``autokernel bench`` shows of a verdict, and what it refuses before anything runs. No process is started."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from autokernel import cli
from autokernel.commands import _common
from autokernel.commands._verdict import Floor, show, to_json
from autokernel.evaluate.client import Evaluation
from autokernel.isolation import LEVELS
from autokernel.types import AutokernelError, Comparison, Measurements, Status, Verdict

ALL = dict.fromkeys(LEVELS, True)
MEASURED = Measurements(
    latency_us=65.0,
    baselines_us={"eager": 130.0, "library": 60.0},
    pct_peak=68.0,
    workloads_us={"R512xC768_fp32": 40.0, "R64xC768_fp32": 25.0},
    noise_pct=1.2,
)
PASS = Verdict(
    Status.PASS,
    "done",
    "",
    errors={"shapes": 0.4},
    measurements=MEASURED,
    environment={"isolation": ALL, "turns": 40, "disturbed_turns": 1, "baselines_missing": {"compile": "no compiler"}},
    evidence={"rms_kernel": {"registers": 40, "spill_bytes": 0, "occupancy": 0.75}},
)
FASTER = Comparison(
    log_ratio=math.log(1.043), ci_low=math.log(1.021), ci_high=math.log(1.065), blocks=12, keep=True,
    reason="+4.3 % faster over 4 fresh pairs", incumbent_us=68.0, candidate_us=65.0,
)  # fmt: skip


def shown(verdict: Verdict, comparison: Comparison | None = None, floor: Floor | None = None) -> str:
    stream = io.StringIO()
    show(Evaluation(verdict, comparison, 3.0), floor or Floor(44.2, "memory"), Console(file=stream, width=140))
    return stream.getvalue()


def test_a_passing_verdict_shows_time_roofline_baselines_evidence_and_isolation() -> None:
    text = shown(PASS)
    for told in ("PASS in 3.0 s", "65.0 us ±1.2 %", "25.0 us  R64xC768_fp32", "68 % of peak", "the floor is 44.2 us",
                 "bound by memory", "0.92× library (60.0 us) the best of them", "2.00× eager",
                 "no compile: no compiler",
                 "rms_kernel: 40 registers, 0 bytes spilled, 75% of the SM's warps resident",
                 f"all {len(LEVELS)} levels"):  # fmt: skip
        assert told in text, text
    assert "doubts" not in text
    assert text.index("library (") < text.index("eager (")


def test_what_a_profiler_and_a_sanitizer_found_is_shown_beside_the_compilers_report() -> None:
    ncu = {"sm_pct": 22.0, "dram_pct": 81.25, "achieved_occupancy": 0.705, "dram_read_bytes": 33_554_432.0,
           "top_stall": "long_scoreboard", "registers": 40.0}  # fmt: skip
    found = {"sanitizer": {"memcheck": "0 errors in 30 calls"}, "ncu": {"workload": "R512xC768_fp32"}}
    verdict = dataclasses.replace(
        PASS,
        evidence={"rms_kernel": {"registers": 40, "occupancy_at_bounds": 0.75, "ncu": ncu}, "copy": {"ncu": ncu}},
        environment={**PASS.environment, **found},
    )
    text = " ".join(shown(verdict).split())
    for told in (
        "rms_kernel: 40 registers, 75% of the SM's warps resident in full blocks",
        "rms_kernel, ncu: 22 % of the SMs' peak, 81 % of DRAM's peak, 70% of its warps active on average, 33.55 MB",
        "waits on long_scoreboard",
        "copy, ncu: 22 %",
        "memcheck: 0 errors in 30 calls",
        "of one call of R512xC768_fp32, with cold caches",
    ):
        assert told in text, text
    assert to_json(Evaluation(verdict, None, 1.0), Floor())["evidence"]["rms_kernel"]["ncu"] == ncu
    none = {**PASS.environment, "ncu": {"workload": "R512xC768_fp32", "missing": "ncu may not read counters"}}
    assert "none: ncu may not read counters" in shown(dataclasses.replace(PASS, environment=none))


def test_an_unknown_ceiling_is_empty_and_not_wrong() -> None:
    verdict = dataclasses.replace(PASS, measurements=dataclasses.replace(MEASURED, pct_peak=None))
    assert "unknown: this device's ceilings could not be measured" in shown(verdict, floor=Floor())
    assert to_json(Evaluation(verdict, None, 1.0), Floor())["pct_peak"] is None


def test_the_interval_is_drawn_to_scale() -> None:
    text = shown(PASS, FASTER)
    line = next(line for line in text.splitlines() if "●" in line)
    assert "+4.3 % from +2.1 to +6.5: faster" in line
    zero, low, mean, high = (line.index(mark) for mark in "│├●┤")
    assert zero < low < mean < high
    assert abs((mean - low) - (high - mean)) <= 1  # as far to either side, up to a column
    assert abs((low - zero) - (mean - low)) <= 2  # 2.1 % is as far from zero as from 4.3 %


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"keep": False, "ci_low": math.log(0.99), "reason": "ambiguous: +4.3 %"},
            "ambiguous: the interval holds both",
        ),
        (
            {"keep": False, "log_ratio": -0.02, "ci_low": -0.03, "ci_high": -0.01, "reason": "not faster"},
            "not shown to",
        ),
        ({"keep": False, "ci_low": -math.inf, "ci_high": math.inf, "reason": "screened out"}, "+4.3 %, not shown to"),
    ],
)
def test_what_is_not_kept_says_so(changes: Mapping[str, Any], told: str) -> None:
    comparison = dataclasses.replace(FASTER, **changes)
    assert told in shown(PASS, comparison)
    answer = to_json(Evaluation(PASS, comparison, 1.0), Floor())
    assert answer["comparison"]["ambiguous"] is changes["reason"].startswith("ambiguous")


def test_doubts_and_missing_levels_are_said_plainly() -> None:
    environment = {
        "isolation": {**ALL, "net": False, "pid": False},
        "turns": 40,
        "disturbed_turns": 30,
        "isolation_off": ["net"],
    }
    noisy = dataclasses.replace(MEASURED, noise_pct=31.0)
    verdict = dataclasses.replace(PASS, environment=environment, measurements=noisy)
    text = shown(verdict)
    for told in ("missing: pid, net", "30 of 40 timed turns were disturbed", "±31 %", "judged with net switched off"):
        assert told in text, text
    answer = to_json(Evaluation(verdict, None, 1.0), Floor(44.2, "memory"))
    assert answer["isolation_missing"] == ["pid", "net"]
    assert len(answer["doubts"]) == 3
    json.dumps(answer)


def test_a_failing_verdict_shows_its_log_and_no_figures() -> None:
    text = shown(Verdict(Status.CRASH, "smoke", "SIGSEGV", log_tail="[red]printed[/] by the kernel\n"))
    assert "[red]printed[/] by the kernel" in text  # what a kernel prints is no markup
    assert "FAIL in 3.0 s" in text
    assert "roofline" not in text


def test_a_required_level_that_is_missing_is_one_clear_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    levels = {**ALL, "landlock": False, "reads": False}
    monkeypatch.setattr(_common, "ask_device", lambda *_: {"levels": levels})
    with pytest.raises(AutokernelError, match=r"'landlock' was required.*kernel >= 5\.13.*--require-isolation"):
        _common.check_isolation(frozenset({"landlock", "net"}), "cpu")
    _common.check_isolation(frozenset({"net"}), "cpu")
    assert "isolation degraded: no landlock, reads on this machine" in capsys.readouterr().err
    levels.update(ALL)
    _common.check_isolation(frozenset(LEVELS), "cpu")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", [["bench", "kernel.py"], ["run", "model.py"]])
def test_an_unknown_level_is_refused_with_the_known_ones(command: list[str]) -> None:
    result = CliRunner().invoke(cli.main, [*command, "--require-isolation=network"])
    assert result.exit_code == 2
    assert "expected levels of isolation among pid, proc, net" in result.output
    assert "got 'network'" in result.output
