"""What a broken or hostile candidate does costs one runner and gives one typed verdict; the next honest one passes.

The reading of the source is switched off here: these files must be stopped by processes, not by advice.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest

from autokernel.evaluate.client import Assignment, JudgeClient, JudgeFailed, JudgeOptions
from autokernel.types import Status, Verdict

from .conftest import HONEST, cpp_source, target, torch_source

FAULTS = {
    "segfault": (torch_source("import ctypes\nctypes.string_at(0)"), Status.CRASH, "SIGSEGV"),
    "abort": (torch_source("import os\nos.abort()"), Status.CRASH, "SIG"),
    "exit 0 early": (torch_source("import os\nos._exit(0)"), Status.CRASH, "exit status 0"),
    "exit while loading": (torch_source("return x", "import os\nos._exit(0)"), Status.CRASH, "exit status 0"),
    "sys.exit": (torch_source("import sys\nsys.exit(0)"), Status.CRASH, "exit status 0"),
    "raises": (torch_source("raise ValueError('no')"), Status.SMOKE, "ValueError: no"),
    "syntax error": (torch_source("return ("), Status.BUILD, "not Python"),
    "no kernel_fn": (torch_source("return x").replace("kernel_fn", "other"), Status.BUILD, "kernel_fn"),
    "returns no tensor": (torch_source("return 3"), Status.SMOKE, "torch.Tensor"),
    "wrong shape": (torch_source("return x[:, :1]"), Status.SMOKE, "expected shape"),
    "wrong dtype": (torch_source("return x.double()"), Status.SMOKE, "float64"),
    "writes its input": (torch_source("x[0] = 1\nreturn x"), Status.CRASH, "SIGSEGV"),
    "returns its input": (torch_source("return x"), Status.SMOKE, "exceeds the budget"),
    "asks for a petabyte": (torch_source("return torch.empty(10**15)"), Status.SMOKE, "memory"),
    "forges the channel": (torch_source("import os\nos.write(3, b'\\xff' * 64)\nreturn x"), Status.CRASH, "forged"),
    "closes the channel": (torch_source("import os\nos.close(3)\nreturn x"), Status.CRASH, "ended"),
    "writes outside": (torch_source("open('/tmp/autokernel-was-here', 'w')\nreturn x"), Status.SMOKE, "Permission"),
    "uses the network": (
        torch_source("import socket\nsocket.create_connection(('127.0.0.1', 22), 2)\nreturn x"),
        Status.SMOKE,
        "unreachable",
    ),
    "prints without end": (torch_source("while True:\n    print('x' * 10**7)"), Status.SMOKE, "File too large"),
}


def judged(judge: JudgeClient, source: str) -> Verdict:
    return judge.evaluate(Assignment(target("torch"), source, baselines=False)).verdict


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_typed_verdict(judge_without_policy: JudgeClient, name: str) -> None:
    source, status, told = FAULTS[name]
    verdict = judged(judge_without_policy, source)
    assert verdict.status is status, verdict
    assert told in verdict.reason, verdict
    assert verdict.measurements is None


def test_an_honest_candidate_passes_after_all_of_them(judge_without_policy: JudgeClient) -> None:
    verdict = judged(judge_without_policy, HONEST)
    assert verdict.status is Status.PASS, verdict
    assert verdict.measurements is not None
    assert verdict.measurements.latency_us > 0


def test_a_hang_is_killed_at_the_deadline(judge_without_policy: JudgeClient) -> None:
    started = time.monotonic()
    verdict = judged(judge_without_policy, torch_source("while True: pass"))
    assert verdict.status is Status.TIMEOUT, verdict
    assert time.monotonic() - started < 20


def test_what_a_candidate_forked_ends_with_it(judge_without_policy: JudgeClient, tmp_path: Path) -> None:
    forks = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(10**6)\n"
    orphan = forks + "    os._exit(0)\n"
    before = set(psutil.pids())
    verdict = judged(judge_without_policy, HONEST.replace("\n\ndef", "\n" + orphan + "\n\ndef"))
    judge = psutil.Process(judge_without_policy.pid)
    deadline = time.monotonic() + 5
    while True:
        left = [p for p in set(psutil.pids()) - before if _is_runner(p)]
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    assert verdict.status in (Status.PASS, Status.CRASH), verdict
    assert not left
    assert judge.is_running()


def _is_runner(pid: int) -> bool:
    try:
        return "autokernel.evaluate.nursery" in " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def test_no_key_reaches_a_runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    monkeypatch.setenv("MY_TOKEN", "also-secret")
    with JudgeClient(tmp_path / "scratch") as judge:
        verdict = judge.evaluate(
            Assignment(target("torch"), torch_source("import os\nraise ValueError(sorted(os.environ.items()))"))
        ).verdict
        assert verdict.status is Status.POLICY
    with JudgeClient(tmp_path / "scratch", JudgeOptions(policy=False)) as judge:
        verdict = judged(judge, torch_source("import os\nraise ValueError(sorted(os.environ.items()))"))
    assert "PATH" in verdict.log_tail + verdict.reason
    assert "secret" not in verdict.log_tail + verdict.reason


def test_a_killed_judge_is_replaced_and_a_killed_client_leaves_nothing(tmp_path: Path) -> None:
    with JudgeClient(tmp_path / "scratch") as judge:
        os.kill(judge.pid, 9)
        assert judged(judge, HONEST).status is Status.PASS
        family = [psutil.Process(judge.pid), *psutil.Process(judge.pid).children(recursive=True)]
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive
    assert not (tmp_path / "scratch").exists()


def test_verdicts_neither_leak_descriptors_nor_memory(judge_without_policy: JudgeClient) -> None:
    judge = psutil.Process(judge_without_policy.pid)
    sources = [torch_source("return x"), torch_source("raise ValueError"), torch_source("import os\nos._exit(1)")]
    judged(judge_without_policy, sources[0])
    descriptors, memory = judge.num_fds(), judge.memory_info().rss
    for source in sources * 5:
        judged(judge_without_policy, source)
    assert judge.num_fds() <= descriptors + 1
    assert judge.memory_info().rss < memory + (64 << 20)


def test_a_compiler_error_is_told_in_one_line_with_its_log(judge: JudgeClient) -> None:
    source = cpp_source().replace("1.0f / std::sqrt", "nothing / std::sqrt")
    verdict = judge.evaluate(Assignment(target("cpp"), source, baselines=False)).verdict
    assert verdict.status is Status.BUILD
    assert "nothing" in verdict.reason
    assert "\n" not in verdict.reason
    assert "nothing" in verdict.log_tail


def test_an_incumbent_that_breaks_is_no_verdict_on_the_candidate(tmp_path: Path) -> None:
    breaks = "import os\ncalls = []\n"
    incumbent = HONEST.replace("\n\ndef", f"\n{breaks}\n\ndef").replace(
        "    wide =", "    calls.append(1)\n    if len(calls) > 3:\n        os.abort()\n    wide ="
    )
    with JudgeClient(tmp_path / "scratch", JudgeOptions(policy=False)) as judge:
        with pytest.raises(JudgeFailed, match="the incumbent failed: CRASH"):
            judge.evaluate(Assignment(target("torch"), HONEST, incumbent=incumbent, baselines=False))
        assert judge.evaluate(Assignment(target("torch"), HONEST, baselines=False)).verdict.status is Status.PASS
