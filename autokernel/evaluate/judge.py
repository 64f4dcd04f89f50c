"""The trusted process, warm, one a device: it draws inputs, asks runners, compares, times, and says a verdict.

Run by __main__.py. A candidate's failure is a verdict; an exception here ends the process, and the client starts
another.
"""

from __future__ import annotations

import ast
import gc
import os
import secrets
import statistics
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import wait
from typing import Any

import torch

from autokernel import hardware, registry
from autokernel.evaluate.contest import Contest
from autokernel.evaluate.pool import Handle, Nursery, close_all
from autokernel.evaluate.protocol import Channel
from autokernel.evaluate.sides import Side
from autokernel.evaluate.stages import Examination, Failed
from autokernel.evaluate.workshop import Workshop
from autokernel.types import Comparison, Problem, Status, Target, Verdict

HELPERS = 11  # further runners that share the stages on a GPU: each builds what its cases need

OnEvent = Callable[[Mapping[str, Any]], None]


class Judge:
    """Judges candidates on one device. Holds the contest of the target at hand, whose rivals stay warm between
    candidates.
    """

    def __init__(
        self,
        nursery: Nursery,
        min_gain: float,
        *,
        policy: bool,
        spares: int | None = None,
    ) -> None:
        device, threads = nursery.device, nursery.threads
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.min_gain = min_gain
        self.policy = policy
        self._device = device
        on_cpu = device == "cpu"  # whose cores the candidate itself uses
        self._helpers = 0 if on_cpu else max(0, min(HELPERS, len(os.sched_getaffinity(0)) - 2))
        if spares is None:  # on a CPU a runner is forked in 10 ms, and has nothing to open
            spares = 0 if on_cpu else 1 + self._helpers + 1  # of the first stage, of the others, and to be timed
        self._workshop = Workshop(nursery, spares)
        self.hardware = hardware.measure(device)  # once the nursery is up, which is work for a core
        self.isolation = self._workshop.isolation
        self._backend = ""  # of the last candidate
        self._contest: Contest | None = None
        self._described: dict[str, Any] = {
            "device": self.hardware.name, "threads": threads, "torch": torch.__version__, "isolation": self.isolation
        }  # fmt: skip
        if nursery.off:
            self._described["isolation_off"] = sorted(nursery.off)

    def evaluate(
        self,
        target: Target,
        source: str,
        incumbent: str | None,
        *,
        baselines: bool,
        thorough: bool,
        on_event: OnEvent,
        disabled: frozenset[str] = frozenset(),
    ) -> tuple[Verdict, Comparison | None]:
        """The verdict on one file and, when there is an incumbent and the verdict is PASS, their comparison."""
        off = disabled | (frozenset() if self.policy else {"policy", "audit"})
        clock = Clock(on_event)
        self._backend = target.backend
        problem: Problem = registry.load("problems", target.problem)
        environment: dict[str, Any] = dict(self._described)
        if off:
            environment["disabled"] = sorted(off)
        handle: Handle | None = None
        exam: Examination | None = None
        team: list[Examination] = []
        side: Side | None = None
        measurements = comparison = None
        status, reason, log_tail = Status.PASS, "", ""
        try:
            clock.stage("policy", 0, 1)
            check_file(target, source, policy="policy" not in off)
            clock.stage("build", 0, 1)
            handle = self._workshop.start(source, target.backend)
            environment["isolation"] = dict(handle.levels)
            aten = registry.load("backends", target.backend).aten
            exam = Examination(problem, handle, self._device, aten, off)

            def helpers() -> list[Examination]:
                started = self._workshop.start_all([source] * self._helpers, target.backend)
                team.extend(Examination(problem, each, self._device, aten, off) for each in started)
                return team

            def dismiss(other: Examination) -> None:
                self._workshop.let_go([other.handle])

            exam.run_all(target.workloads, secrets.randbits(60), clock.stage, helpers, dismiss)
            clock.stage("timing", 0, 1)
            contest = self._contest_of(target, problem, off)
            self._workshop.let_go([handle])  # one that holds a GPU takes its time to end
            side = contest.admit(source)
            self._workshop.settle()
            contest.calibrate(side)
            measurements = contest.measure(side, baselines=baselines, thorough=thorough)
            if incumbent is not None:
                comparison = contest.compare(side, source, incumbent, self.min_gain, clock.stage)
            clock.stage("recheck", 0, 1)
            contest.check(side)
            environment |= contest.conditions()
        except Failed as failure:
            status, reason, log_tail = failure.status, failure.reason, failure.log_tail
            measurements = comparison = None
        finally:
            if exam is not None:
                environment |= conditions(exam, side)
                exam.close()
            close_all([*(each.handle for each in team), *([handle] if handle else [])])
            for each in team:
                each.close()
            if side is not None:
                side.close()
            evidence = self._workshop.evidence(source, target.backend)
            if source != incumbent:
                self._workshop.forget(source)
            gc.collect()
        if self._contest is not None and self._contest.baselines_missing:
            environment["baselines_missing"] = dict(self._contest.baselines_missing)
        errors = dict(exam.errors) if exam else {}
        stage = "done" if status is Status.PASS else clock.current
        verdict = Verdict(status, stage, reason, errors, measurements, log_tail, environment, clock.finish(), evidence)
        return verdict, comparison

    def _contest_of(self, target: Target, problem: Problem, off: frozenset[str]) -> Contest:
        """The contest over this target's workloads; that of another target is closed with all its runners."""
        current = self._contest
        wanted = (target.problem, target.backend, target.workloads, off)
        if current is None or wanted != (
            current.target.problem,
            current.target.backend,
            current.target.workloads,
            current.off,
        ):
            if current is not None:
                current.close()
            self._contest = Contest(target, problem, self._workshop, self.hardware, off)
        assert self._contest is not None
        return self._contest

    def idle(self, channel: Channel) -> None:
        """Make runners ahead for the next candidate, one small step after the other, until there is a request or
        nothing left to do.
        """
        while self._backend and (pending := self._workshop.prepare(self._backend)) is not None:
            if channel.fileno() in wait([channel.fileno(), pending]):
                break

    def close(self) -> None:
        if self._contest is not None:
            self._contest.close()
        self._workshop.close()


def check_file(target: Target, source: str, *, policy: bool) -> None:
    """The file must say what it is, and pass its backend's reading of it. Raises Failed."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        line = f"line {error.lineno}: " if isinstance(error, SyntaxError) else ""
        raise Failed(Status.BUILD, f"{line}the file is not Python: {error.args[0]}") from None
    said = {
        name.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for name in node.targets
        if isinstance(name, ast.Name)
    }
    if (said.get("KERNEL_TYPE"), said.get("BACKEND")) != (target.kernel_type, target.backend):
        wanted = f"KERNEL_TYPE = {target.kernel_type!r} and BACKEND = {target.backend!r}"
        raise Failed(
            Status.POLICY, f"expected {wanted}; the file says {said.get('KERNEL_TYPE')!r} and {said.get('BACKEND')!r}"
        )
    refused = registry.load("backends", target.backend).check(tree) if policy else None
    if refused:
        raise Failed(Status.POLICY, refused)


def conditions(exam: Examination, side: Side | None) -> dict[str, Any]:
    """Under what conditions a verdict was reached, for whoever doubts it."""
    found: dict[str, Any] = {"oracle": sorted(exam.precisions)}
    if side is not None:
        found |= {
            "turns": side.turns,
            "disturbed_turns": side.disturbed_turns,
            "outputs": side.outputs,
            "timed": side.timed,
        }
        if side.claims:
            found["claimed_share"] = round(statistics.median(side.claims), 3)
    return found


class Clock:
    """Where the seconds of one verdict went: by stage, each told to ``on_event`` as it begins and advances."""

    def __init__(self, on_event: OnEvent) -> None:
        self.current = "policy"
        self._on_event = on_event
        self._seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def stage(self, name: str, done: int, of: int) -> None:
        self._lap()
        self.current = name
        self._on_event({"event": "stage", "stage": name, "done": done, "of": of})

    def finish(self) -> dict[str, float]:
        self._lap()
        return {name: round(seconds, 4) for name, seconds in self._seconds.items()}

    def _lap(self) -> None:
        now = time.perf_counter()
        self._seconds[self.current] = self._seconds.get(self.current, 0.0) + now - self._since
        self._since = now
