"""A night without kernels: a judge and a proposer that follow a script, for tests of what surrounds them.

A candidate is a text whose ``LATENCY_US`` and ``STATUS`` lines say what the judge will find. Run as a program, this
file opens a workspace and works in it until its limit: ``scripted_night.py FOLDER EXPERIMENTS [KILLED_AT]``. Its
proposer then is one that costs, fails to answer, and mends.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import random
import re
import secrets
import signal
import sys
import time
from pathlib import Path

from autokernel.evaluate.client import Assignment, Evaluation
from autokernel.extension import Brief, NothingUsable, Proposal
from autokernel.registry import load
from autokernel.run import loop, workspace
from autokernel.run.desk import Desk
from autokernel.run.events import Event
from autokernel.run.ledger import Ledger
from autokernel.run.limits import Limits, StopReason
from autokernel.run.orchestrator import MoveOn
from autokernel.run.signals import Interrupted, Signals
from autokernel.types import Comparison, Cost, Measurements, Status, Target, Verdict, Workload, source_id

EAGER_US, FLOOR_US, STARTER_US = 100.0, 10.0, 120.0


def target(name: str = "softmax", share: float = 0.4) -> Target:
    workload = Workload({"R": 4, "C": 8}, "fp32")
    return Target(name, "softmax", "cpp", (workload,), share, eager_us=EAGER_US, floor_us=FLOOR_US)


TARGETS = (target("softmax", 0.4), target("rmsnorm", 0.3))


def source(latency_us: float, status: str = "PASS", remark: str = "") -> str:
    return f'"""A candidate."""\nLATENCY_US = {latency_us!r}\nSTATUS = "{status}"\n# {remark}\n'


def starters() -> dict[str, str]:
    return {t.file: source(STARTER_US) for t in TARGETS}


def latency_us(text: str) -> float:
    return float(re.search(r"LATENCY_US = (\S+)", text)[1])


class ScriptedJudge:
    """Keeps what is more than 1 % faster; writes each verdict it gave to ``journal``."""

    def __init__(self, journal: Path | None = None, pause_s: float = 0.0) -> None:
        self.assignments: list[Assignment] = []
        self._journal, self._pause_s = journal, pause_s

    def evaluate(self, assignment: Assignment, on_event=lambda event: None) -> Evaluation:
        self.assignments.append(assignment)
        on_event({"event": "stage", "stage": "smoke", "done": 1, "of": 5})
        time.sleep(self._pause_s)
        status = Status(re.search(r'STATUS = "(\w+)"', assignment.source)[1])
        comparison = None
        if status is not Status.PASS:
            verdict = Verdict(status, "smoke", "as the script says")
        else:
            now = latency_us(assignment.source)
            best = {"eager": EAGER_US, "compile": 80.0}
            measured = Measurements(now, best, 100 * FLOOR_US / now, {"R4xC8_fp32": now}, 0.2)
            verdict = Verdict(status, "done", "passes", measurements=measured, evidence={"kernel": {"registers": now}})
            if assignment.incumbent is not None:
                before = latency_us(assignment.incumbent)
                ratio = math.log(before / now)
                keep = ratio > 0.01
                comparison = Comparison(ratio, ratio - 0.004, ratio + 0.004, 8, keep, "scripted", before, now)
        if self._journal:
            with self._journal.open("a") as file:
                file.write(f"{source_id(assignment.source)}\n")
        return Evaluation(verdict, comparison, 0.01)


class ScriptedProposer:
    """Its n-th proposal for a target depends on n alone: some are faster, some slower, some fail."""

    name = "scripted"
    in_flight = 1
    fix_attempts = 0

    def __init__(self, least_us: float = 15.0) -> None:
        self._least_us = least_us

    def propose(self, brief: Brief) -> Proposal | None:
        number = len(brief.history)
        dice = random.Random(f"{brief.target.name} {number}")
        now = latency_us(brief.source) * dice.choice([0.9, 0.97, 1.1, 1.3])
        if now < self._least_us:
            return None
        status = dice.choice(["PASS", "PASS", "PASS", "SMOKE", "CRASH"])
        idea = f"idea {number}\twith a tab,\na newline and a \\"
        return Proposal(source(now, status, f"{brief.target.name} {number}"), idea, Cost(10, 5, 0.001))


class Mender(ScriptedProposer):
    """Costs 10 tokens an answer, and says nothing usable every fifth time; mends what failed at the second attempt.

    Writes the id of each exchange into ``journal`` right before it answers.
    """

    fix_attempts = 2

    def __init__(self, journal: Path | None = None) -> None:
        super().__init__(least_us=0.0)
        self._journal, self._calls = journal, 0

    def propose(self, brief: Brief) -> Proposal | None:
        self._calls += 1
        exchange = {"id": secrets.token_hex(8), "asked": brief.target.name}
        if self._journal:
            with self._journal.open("a") as file:
                file.write(f"{exchange['id']}\n")
        cost = Cost(6, 4, 0.01)
        if self._calls % 5 == 0:
            raise NothingUsable("no edit", cost, [exchange])
        if brief.failed is None:
            proposal = super().propose(brief)
            assert proposal is not None
            return Proposal(proposal.source, proposal.idea, cost, [exchange])
        dice = random.Random(f"{brief.target.name} {len(brief.history)} {brief.failed.number}")
        status = "PASS" if brief.failed.number == 2 else dice.choice(["PASS", "BUILD"])
        text = brief.failed.source.replace(f'"{brief.failed.verdict.status.value}"', f'"{status}"')
        return Proposal(f"{text}# mended {brief.failed.number}\n", f"mend {brief.failed.number}", cost, [exchange])


class Watcher:
    """Collects what the run says."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_event(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]


def night(
    folder: Path,
    experiments: int | None,
    *,
    judge=None,
    proposer=None,
    watcher: Watcher | None = None,
    held=contextlib.nullcontext,
    aa_rate: float = 0.1,
    rules: MoveOn | None = None,
    sleep=time.sleep,
    budget_s: float | None = None,
    model: str = "",
    **limited: float,
) -> StopReason:
    watcher = watcher or Watcher()
    limits = Limits(budget_s=budget_s, max_experiments=experiments, **limited)
    with workspace.lock(folder):
        ledger = Ledger(folder, TARGETS, starters, held=held)
        with contextlib.closing(ledger):
            desk = Desk(
                ledger,
                proposer or ScriptedProposer(),
                lambda _: load("strategies", "greedy")(),
                {},
                limits,
                watcher,
                model=model,
                aa_rate=aa_rate,
                sleep=sleep,
            )
            rules = rules or MoveOn(speedup=1e9, peak_pct=1e9)
            return loop.run(ledger, TARGETS, desk, judge or ScriptedJudge(), limits, rules, watcher)


def kill_at(moment: int, folder: Path) -> None:
    """Has this process killed (SIGKILL) right before it touches the disk under ``folder`` for the moment-th time."""
    touches = itertools.count(1)

    def hook(event: str, arguments: tuple) -> None:
        touching = event in ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate", "shutil.rmtree")
        if touching and str(arguments[0]).startswith(str(folder)) and next(touches) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    place, count = Path(sys.argv[1]), int(sys.argv[2])
    if len(sys.argv) > 3:
        kill_at(int(sys.argv[3]), place)
    print("ready", flush=True)
    with Signals() as signals:
        try:
            judge = ScriptedJudge(place.parent / "journal", 0.002)
            night(place, count, judge=judge, proposer=Mender(place.parent / "asked"), held=signals.held)
        except Interrupted as stop:
            sys.exit(128 + stop.number)
