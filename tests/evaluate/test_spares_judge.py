"""A judge with runners made ahead: they change no verdict, serve one source, and are gone while anything is timed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from autokernel.evaluate.client import Assignment, JudgeClient, JudgeOptions
from autokernel.types import Status, Verdict

from .conftest import HONEST, cpp_source, target, torch_source
from .test_spares import SPARES, another

TELLS = torch_source("raise ValueError(os.environ['HOME'], os.environ['XDG_CACHE_HOME'])", before="import os")
WRONG = torch_source("return torch.zeros_like(x)")


@pytest.fixture(scope="module")
def ahead(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JudgeClient]:
    options = JudgeOptions(policy=False, spares=SPARES)
    with JudgeClient(tmp_path_factory.mktemp("ahead") / "scratch", options) as client:
        yield client


def judged(judge: JudgeClient, source: str, backend: str = "torch") -> Verdict:
    return judge.evaluate(Assignment(target(backend), source, baselines=False)).verdict


def idle(judge: JudgeClient) -> set[str]:
    """Names of the spare runners' folders, once they all run."""
    deadline = time.monotonic() + 30
    while len(found := {path.name for path in judge._scratch.glob("judge-*/runner-*")}) != SPARES or (
        len(runners(judge)) != SPARES
    ):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def runners(judge: JudgeClient) -> list[psutil.Process]:
    """The last in each chain judge, nursery (two), reaper, runner."""
    family = [(process, len(process.parents())) for process in psutil.Process(judge.pid).children(recursive=True)]
    return [process for process, depth in family if depth == max(each for _, each in family)]


def told(judge: JudgeClient) -> tuple[str, str]:
    """Scratch and build folder of the runner that a candidate is given."""
    verdict = judged(judge, another(TELLS))
    assert verdict.status is Status.SMOKE
    scratch, cache = verdict.reason.split("ValueError: ")[1].strip("()").split(", ")
    return Path(scratch.strip("'")).name, Path(cache.strip("'")).name


def test_a_verdict_is_the_same_with_and_without(ahead: JudgeClient, judge_without_policy: JudgeClient) -> None:
    judged(ahead, WRONG)
    for source, backend in ((HONEST, "torch"), (cpp_source(), "cpp"), (WRONG, "torch"), ("def", "torch")):
        if backend == "torch":
            idle(ahead)
        made_ahead, made_then = judged(ahead, another(source), backend), judged(judge_without_policy, source, backend)
        for verdict in (made_ahead, made_then):
            assert verdict.status is {WRONG: Status.SMOKE, "def": Status.BUILD}.get(source, Status.PASS), verdict
        assert made_ahead.stage == made_then.stage
        assert made_ahead.reason.split(":")[0] == made_then.reason.split(":")[0]
        assert made_ahead.errors.keys() == made_then.errors.keys()
        assert made_ahead.environment.keys() == made_then.environment.keys()
        assert made_ahead.environment["isolation"] == made_then.environment["isolation"]


def test_two_candidates_share_no_runner_and_no_folder_after_an_early_failure(ahead: JudgeClient) -> None:
    judged(ahead, WRONG)
    seen = []
    for _ in range(3):
        made = idle(ahead)
        scratch, cache = told(ahead)
        assert scratch in made
        seen += [scratch, cache]
    assert len(set(seen)) == len(seen)
    idle(ahead)
    assert judged(ahead, HONEST).status is Status.PASS


def test_requests_in_a_row_find_what_is_there(ahead: JudgeClient) -> None:
    """Nobody waits between them: some find a runner that is waking, some find none."""
    seen = [each for _ in range(8) for each in told(ahead)]
    assert len(set(seen)) == len(seen)


def test_spare_runners_that_are_killed_cost_nothing(ahead: JudgeClient) -> None:
    judged(ahead, WRONG)
    made, pid = idle(ahead), ahead.pid
    for runner in runners(ahead):
        runner.kill()
    scratch, _ = told(ahead)
    assert scratch not in made
    assert ahead.pid == pid
    assert judged(ahead, HONEST).status is Status.PASS


def test_while_anything_is_timed_no_spare_runner_is_left(tmp_path: Path) -> None:
    slow = HONEST.replace("    wide =", "    for _ in range(30):\n        x = x.clone()\n    wide =")
    timed: list[set[str]] = []
    with JudgeClient(tmp_path / "scratch", JudgeOptions(policy=False, spares=SPARES)) as judge:
        judged(judge, WRONG)
        made = idle(judge)

        def look(event: Mapping[str, Any]) -> None:
            if event.get("stage") == "screen":
                timed.append({path.name for path in judge._scratch.glob("judge-*/runner-*")})

        judge.evaluate(Assignment(target("torch"), slow, incumbent=HONEST, baselines=False), look)
    assert timed
    for found in timed:
        assert len(found) == 2  # the candidate's and the incumbent's
        assert len(found & made) == 1  # of which the first was made ahead


def test_a_closed_judge_leaves_nothing(tmp_path: Path) -> None:
    with JudgeClient(tmp_path / "scratch", JudgeOptions(policy=False, spares=SPARES)) as judge:
        judged(judge, WRONG)
        idle(judge)
        family = [psutil.Process(judge.pid), *psutil.Process(judge.pid).children(recursive=True)]
    assert not psutil.wait_procs(family, timeout=5)[1]
    assert not (tmp_path / "scratch").exists()


@pytest.mark.gpu
def test_on_a_gpu_they_are_made_unasked(tmp_path: Path) -> None:
    with JudgeClient(tmp_path / "scratch", JudgeOptions(device="cuda", policy=False)) as judge:
        assert judged(judge, WRONG).status is Status.SMOKE
        deadline = time.monotonic() + 60
        while len(runners(judge)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        made = {path.name for path in judge._scratch.glob("judge-*/runner-*")}
        assert told(judge)[0] in made
        verdict = judged(judge, HONEST)
        assert verdict.status is Status.PASS, verdict
