"""The judge of an owner's bench command: what a run may tell, what it may not do, and who is blamed for a failure."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from pathlib import Path

import pytest

from autokernel.evaluate.bench_command import BenchJudge, open_judge
from autokernel.evaluate.bench_metric import BenchCommand, RunFailed, metric_us, read
from autokernel.evaluate.client import Assignment, JudgeFailed, JudgeOptions
from autokernel.types import AutokernelError, Status, Target


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("metric: 3\n", 3.0),
        ("noise\nmetric: 1.5 ms\nmore", 1500.0),
        ("metric:2e-3s\r\n", 2000.0),
        ("metric: .5 µs", 0.5),
        ("metric:\t250 ns\n", 0.25),
        ("the metric: 9\nmetric: 1 us\n", 1.0),
    ],
)
def test_a_metric_is_one_line_of_its_own(text, us):
    assert metric_us(text, BenchCommand("x"), "") == pytest.approx(us)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "none"),
        ("metric: fast\n", "none"),
        ("metric: 1 ms\nmetric: 2 ms\n", "2 such lines"),
        ("metric: 0 ms\n", "above zero"),
        ("metric: 1e999 ms\n", "above zero"),
        ("metric: 12 tokens/s\n", "--higher-is-better"),
    ],
)
def test_anything_else_is_told(text, reason):
    with pytest.raises(RunFailed, match=reason):
        metric_us(text, BenchCommand("x"), "")


def test_of_a_rate_one_over_the_number_counts():
    assert metric_us("metric: 200 GB/s\n", BenchCommand("x", higher_is_better=True), "") == pytest.approx(5000.0)


@pytest.mark.parametrize("text", ["{", "[]", '{"time_limit_s": 3}', '{"command": 3}', '{"command": "x", "colour": 1}'])
def test_a_file_that_is_no_bench_command_is_one_line(tmp_path, text):
    path = tmp_path / "bench.json"
    path.write_text(text)
    with pytest.raises(AutokernelError, match=r"was expected to be a bench command like") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def judged(tmp_path: Path, command: str, source: str, incumbent: str | None = None, **more: object):
    """One evaluation by this command."""
    context = tmp_path / "context"
    context.mkdir(exist_ok=True)
    (context / "k.json").write_text(json.dumps({"command": command, **more}))
    (context / "data.txt").write_text("given")
    target = Target("k", str(context / "k.json"), "any", (), 1.0, 0.0, 0.0, ".sh")
    with open_judge(target, tmp_path / "scratch", JudgeOptions()) as judge:
        assert isinstance(judge, BenchJudge)
        found = judge.evaluate(Assignment(target, source, incumbent))
    assert not (tmp_path / "scratch").exists()
    return found


def test_the_command_runs_beside_its_files_confined_and_without_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "secret-of-the-owner")
    outside = tmp_path / "outside"
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        probe = (
            f"echo x > {outside} 2>/dev/null && echo wrote; echo y > here || echo cannot write here; env | grep secret;"
            f" python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", {port}), 2)' 2>&1 | tail -1;"
            ' cat context/data.txt "$KERNEL"; exit 1'
        )
        found = judged(tmp_path, probe, "echo metric: 1")
    log = found.verdict.log_tail
    levels = found.verdict.environment["isolation"]
    assert found.verdict.status is Status.SMOKE
    assert "secret-of-the-owner" not in log and "cannot write here" not in log
    assert "given" in log and "echo metric: 1" in log
    if levels["landlock"]:
        assert "wrote" not in log and not outside.exists()
    if levels["net"]:
        assert "unreachable" in log or "refused" in log


@pytest.mark.parametrize(
    ("source", "status", "reason"),
    [
        ("exit 3", Status.SMOKE, "exit status 3"),
        ("kill -SEGV $$", Status.CRASH, "SIGSEGV"),
        ("sleep 30 & sleep 30", Status.TIMEOUT, "longer than 1 s"),
        ("echo metric: 1; echo metric: 2", Status.SMOKE, "2 such lines"),
        ("true", Status.SMOKE, "it printed none"),
    ],
)
def test_a_failing_run_is_a_verdict_with_its_log(tmp_path, source, status, reason):
    started = time.monotonic()
    found = judged(tmp_path, 'echo about to run; sh "$KERNEL"', source, time_limit_s=1)
    assert found.verdict.status is status and reason in found.verdict.reason
    assert found.comparison is None and found.verdict.measurements is None
    assert "about to run" in found.verdict.log_tail
    assert time.monotonic() - started < 20


def test_better_is_kept_and_equal_is_not(tmp_path):
    better = judged(tmp_path, 'sh "$KERNEL"', "echo metric: 2", incumbent="echo metric: 3")
    assert better.comparison is not None and better.comparison.keep
    assert better.verdict.measurements is not None and better.verdict.measurements.latency_us == 2.0
    assert (better.comparison.incumbent_us, better.comparison.candidate_us) == (3.0, 2.0)
    equal = judged(tmp_path, 'sh "$KERNEL"', "echo metric: 3 us", incumbent="echo metric: 3")
    assert equal.comparison is not None and not equal.comparison.keep
    assert "screened out" in equal.comparison.reason


def test_a_version_that_stands_and_fails_is_no_verdict_on_the_candidate(tmp_path):
    with pytest.raises(JudgeFailed, match="the version that stands"):
        judged(tmp_path, 'sh "$KERNEL"', "echo metric: 2", incumbent="exit 1")


def test_a_level_that_is_required_is_asked_for_before_the_candidate_runs(tmp_path):
    context = tmp_path / "context"
    context.mkdir()
    (context / "k.json").write_text(json.dumps({"command": 'sh "$KERNEL"'}))
    assignment = Assignment(Target("k", str(context / "k.json"), "any", (), 1.0, 0.0, 0.0, ".sh"), "echo metric: 1")
    stages: list = []
    with (
        BenchJudge(tmp_path / "scratch", JudgeOptions(require=frozenset({"reads"}))) as judge,
        pytest.raises(AutokernelError, match="'reads' was required"),
    ):
        judge.evaluate(assignment, stages.append)
    assert stages == []
    with BenchJudge(tmp_path / "scratch", JudgeOptions(require=frozenset({"env"}))) as judge:
        assert judge.evaluate(assignment, stages.append).verdict.status is Status.PASS
    assert stages
