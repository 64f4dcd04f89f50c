"""The trusted process, warm, one a device: it draws inputs, asks runners, compares, times, and says a verdict.

Run as ``python -m autokernel.evaluate.judge FD`` by client.py. Requests and answers pass over the inherited socket FD.
A candidate's failure is a verdict; an exception here ends the process, and the client starts another.
"""

from __future__ import annotations

import ast
import dataclasses
import gc
import math
import secrets
import shutil
import socket
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from autokernel import hardware, registry
from autokernel.assets import cache_folder
from autokernel.evaluate import sandbox
from autokernel.evaluate.decision import Block, confirm, interval, percent, screen
from autokernel.evaluate.pool import Handle, Nursery, RunnerFailed
from autokernel.evaluate.protocol import Channel, PeerGone
from autokernel.evaluate.stages import Examination, Failed, failure_status
from autokernel.evaluate.timing import Bench, Side
from autokernel.types import Comparison, Measurements, Problem, Status, Target, Verdict, source_id

BUILD_S = 120.0
COMPILE_BASELINE_S = 300.0
RUNNER_MEMORY_BYTES = 4 << 30
ROUNDS, THOROUGH_ROUNDS = 3, 15
SCREEN_BLOCKS = 6
PAIRS = 5
PAIR_S = 0.35  # a pair's blocks take about this long, at least one and at most MAX_PAIR_BLOCKS
MAX_PAIR_BLOCKS = 4
IMPLAUSIBLE_SHARE = 0.7  # of the roofline floor: below it a latency is not believed

OnEvent = Callable[[Mapping[str, Any]], None]


class Judge:
    """Judges candidates on one device. Holds, for the target at hand, its input sets and the runners of the incumbent
    and of the baselines, which have long been loaded when a candidate comes.
    """

    def __init__(self, folder: Path, device: str, threads: int, min_gain: float) -> None:
        self.folder = folder
        self.device = device
        self.threads = threads
        self.min_gain = min_gain
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.hardware = hardware.measure(device)
        self.nursery = Nursery(folder, device, threads, {})
        self._key = ""
        self._bench: Bench | None = None
        self._sides: dict[str, Side] = {}
        self._baselines_missing: dict[str, str] = {}

    # ------------------------------------------------------------------------------------------ one assignment

    def evaluate(
        self, target: Target, source: str, incumbent: str | None, baselines: bool, thorough: bool, on_event: OnEvent
    ) -> tuple[Verdict, Comparison | None]:
        """The verdict on one file and, when there is an incumbent and the verdict is PASS, their comparison."""
        problem: Problem = registry.load("problems", target.problem)
        clock = Clock()
        stage = "policy"
        handle: Handle | None = None
        environment: dict[str, Any] = {
            "device": self.hardware.name,
            "threads": self.threads,
            "torch": torch.__version__,
        }
        exam: Examination | None = None
        side: Side | None = None

        def on_stage(name: str, done: int, of: int) -> None:
            nonlocal stage
            stage = name
            on_event({"event": "stage", "stage": name, "done": done, "of": of})
            clock.lap(name)

        try:
            declared = self.check_file(target, source)
            clock.lap("policy")
            stage = "build"
            on_event({"event": "stage", "stage": "build", "done": 0, "of": 1})
            handle = self.spawn(source, declared)
            environment["isolation"] = dict(handle.levels)
            self.load(handle, source)
            clock.lap("build")
            backend = registry.load("backends", declared)
            exam = Examination(problem, handle, self.device, backend.aten)
            exam.run_all(target.workloads, secrets.randbits(60), on_stage)
            handle.ask("poison", {"byte": 0})
            stage = "timing"
            on_stage("timing", 0, 1)
            bench = self.bench_of(target, problem)
            side = bench.admit(handle, exam)
            bench.calibrate(side)
            measurements = self.measure(target, problem, bench, side, baselines, thorough)
            clock.lap("timing")
            comparison = None
            if incumbent is not None:
                comparison = self.compare(target, problem, bench, side, source, incumbent, on_stage)
                clock.lap("confirm")
            for index in range(len(bench.rotations)):
                bench.turn_and_check(side, index)
            environment |= self.conditions(exam, side)
            return Verdict(
                Status.PASS, "done", "", dict(exam.errors), measurements, "", environment, clock.seconds
            ), comparison
        except Failed as failure:
            clock.lap(stage)
            environment |= self.conditions(exam, side) if exam else {}
            errors = dict(exam.errors) if exam else {}
            verdict = Verdict(
                failure.status, stage, failure.reason, errors, None, failure.log_tail, environment, clock.seconds
            )
            return verdict, None
        finally:
            if exam is not None:
                exam.close()
            if handle is not None:
                handle.close()
            if source != incumbent:
                shutil.rmtree(self.cache_of(source), ignore_errors=True)
            gc.collect()

    def check_file(self, target: Target, source: str) -> str:
        """The backend that the file declares, after the policy has read it. Raises Failed."""
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError) as error:
            line = f"line {error.lineno}: " if isinstance(error, SyntaxError) else ""
            raise Failed(Status.BUILD, f"{line}the file is not Python: {error.args[0]}") from None
        constants = {
            t.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for t in node.targets
            if isinstance(t, ast.Name)
        }
        declared = constants.get("BACKEND")
        if constants.get("KERNEL_TYPE") != target.problem or declared != target.backend:
            wanted = f"KERNEL_TYPE = {target.problem!r} and BACKEND = {target.backend!r}"
            got = f"{constants.get('KERNEL_TYPE')!r} and {declared!r}"
            raise Failed(Status.POLICY, f"expected {wanted}; the file says {got}")
        reason = registry.load("backends", target.backend).check(tree)
        if reason:
            raise Failed(Status.POLICY, reason)
        return target.backend

    # ------------------------------------------------------------------------------------------ runners

    def cache_of(self, source: str) -> Path:
        """Build products of one source: its own later runners find them, no other candidate's do."""
        return self.folder / "cache" / source_id(source)[:24]

    def spawn(self, source: str, backend: str) -> Handle:
        cache = self.cache_of(source)
        cache.mkdir(parents=True, exist_ok=True)
        environment = registry.load("backends", backend).environment(str(cache))
        memory = RUNNER_MEMORY_BYTES if self.device == "cpu" else None
        return self.nursery.spawn(cache, environment, memory_bytes=memory)

    def load(self, handle: Handle, source: str) -> None:
        """Load a candidate into its runner. Raises Failed."""
        try:
            handle.ask("load", {"source": source, "threads": self.threads}, deadline_s=BUILD_S)
        except RunnerFailed as failure:
            raise Failed(failure_status(failure, Status.BUILD), failure.reason, failure.log_tail) from None

    def fresh_side(self, target: Target, problem: Problem, bench: Bench, source: str) -> Side:
        """A new runner of a source that has passed before, ready to be timed. Raises Failed."""
        handle = self.spawn(source, target.backend)
        try:
            self.load(handle, source)
            return bench.admit(handle, Examination(problem, handle, self.device, None))
        except RunnerFailed as failure:
            handle.close()
            raise Failed(failure_status(failure, Status.CRASH), failure.reason, failure.log_tail) from None
        except Failed:
            handle.close()
            raise

    def bench_of(self, target: Target, problem: Problem) -> Bench:
        """The input sets of this target; those of another are let go with all runners that mapped them."""
        key = repr((target.problem, target.backend, [(w.key, w.count) for w in target.workloads]))
        if self._bench is None or key != self._key:
            self.forget_target()
            self._bench = Bench(problem, target.workloads, self.hardware.llc_bytes, self.device)
            self._key = key
        return self._bench

    def forget_target(self) -> None:
        for name in list(self._sides):
            self.drop(name)
        if self._bench is not None:
            self._bench.close()
        self._bench, self._key = None, ""
        self._baselines_missing = {}

    def drop(self, name: str) -> None:
        side = self._sides.pop(name)
        side.exam.close()
        side.handle.close()

    # ------------------------------------------------------------------------------------------ timing

    def baselines(self, problem: Problem, bench: Bench) -> dict[str, Side]:
        """Warm runners of eager, torch.compile and the library call; those that cannot run are told as missing."""
        for name in ("eager", "compile", "library"):
            if name in self._sides or name in self._baselines_missing:
                continue
            if name not in problem.baselines and name != "compile":
                self._baselines_missing[name] = "no distinct library call"
                continue
            cache = cache_folder() / "baselines"
            environment = registry.load("backends", "torch").environment(str(cache))
            handle = self.nursery.spawn(cache, environment, confine=False)
            try:
                handle.ask("load", {"baseline": name, "problem": problem.name, "threads": self.threads})
                side = bench.admit(handle, Examination(problem, handle, self.device, None))
                for ids in side.ids:  # the first call of a shape compiles
                    handle.ask("time", {"order": ids[:1]}, deadline_s=COMPILE_BASELINE_S)
                self._sides[name] = side
            except RunnerFailed as failure:
                self._baselines_missing[name] = failure.reason
                handle.close()
        return {name: self._sides[name] for name in ("eager", "compile", "library") if name in self._sides}

    def measure(
        self, target: Target, problem: Problem, bench: Bench, side: Side, baselines: bool, thorough: bool
    ) -> Measurements:
        """Candidate and baselines in interleaved rounds of one session. Raises Failed where it is too good."""
        rivals = self.baselines(problem, bench) if baselines else {}
        samples = bench.measure({"candidate": side, **rivals}, THOROUGH_ROUNDS if thorough else ROUNDS)
        mine = samples.pop("candidate")
        latency_us = bench.weighted_us(mine)
        floor_us = sum(w.count * self.floor_us(problem, w) for w in target.workloads)
        if latency_us < IMPLAUSIBLE_SHARE * floor_us:
            raise Failed(
                Status.IMPLAUSIBLE,
                f"{latency_us:.1f} us is below the roofline floor of {floor_us:.1f} us for this work",
            )
        rounds = [math.log(sum(w.count * s[w.key] for w in target.workloads)) for s in mine]
        spread = interval(rounds)
        return Measurements(
            latency_us=latency_us,
            baselines_us={name: bench.weighted_us(each) for name, each in samples.items()},
            pct_peak=100 * floor_us / latency_us if floor_us > 0 else None,
            workloads_us={w.key: statistics.median(s[w.key] for s in mine) for w in target.workloads},
            noise_pct=100 * math.expm1(min(spread.high - spread.mean, 5.0)),
        )

    def floor_us(self, problem: Problem, work: Any) -> float:
        return self.hardware.floor_us(problem.flops(work), problem.bytes(work), work.dtype)

    def compare(
        self,
        target: Target,
        problem: Problem,
        bench: Bench,
        side: Side,
        source: str,
        incumbent: str,
        on_stage: Callable[[str, int, int], None],
    ) -> Comparison:
        """Screen against the warm incumbent, then confirm over fresh pairs. Raises Failed if the candidate breaks."""
        name = f"incumbent {source_id(incumbent)}"
        for other in [n for n in self._sides if n.startswith("incumbent ") and n != name]:
            self.drop(other)
        if name not in self._sides:
            self._sides[name] = self.fresh_side(target, problem, bench, incumbent)
        blocks: list[Block] = []
        started = time.perf_counter()
        for done in range(SCREEN_BLOCKS):
            on_stage("screen", done, SCREEN_BLOCKS)
            blocks.append(bench.block(self._sides[name], side))
            if done >= 1 and screen(blocks, self.min_gain) == "hopeless":
                overall = interval([b.log_ratio for b in blocks])
                reason = f"screened out: {percent(overall.mean)} over {len(blocks)} blocks"
                return comparison_of(blocks, overall, False, reason)
            if done >= 1 and time.perf_counter() - started > 4 * PAIR_S:
                break
        block_s = (time.perf_counter() - started) / len(blocks)
        each = max(1, min(MAX_PAIR_BLOCKS, round(PAIR_S / block_s)))
        pairs: list[list[Block]] = []
        for done in range(PAIRS):
            on_stage("confirm", done, PAIRS)
            pair: dict[str, Side] = {}
            try:
                for who, text in bench.shuffled([("old", incumbent), ("new", source)]):
                    pair[who] = self.fresh_side(target, problem, bench, text)
                    bench.warm_up(pair[who])
                pairs.append([bench.block(pair["old"], pair["new"]) for _ in range(each)])
            finally:
                for one in pair.values():
                    one.exam.close()
                    one.handle.close()
        outcome = confirm(pairs, self.min_gain)
        flat = [block for pair_blocks in pairs for block in pair_blocks]
        return comparison_of(flat, outcome.overall, outcome.keep, outcome.reason)

    def conditions(self, exam: Examination, side: Side | None) -> dict[str, Any]:
        """Under what conditions a verdict was reached, for whoever doubts it."""
        found: dict[str, Any] = {"oracle": sorted(exam.precisions)}
        if self._baselines_missing:
            found["baselines_missing"] = dict(self._baselines_missing)
        if side is not None and side.turns:
            found["disturbed_turns"] = side.disturbed_turns
            found["turns"] = side.turns
        return found

    def close(self) -> None:
        self.forget_target()
        self.nursery.close()


class Clock:
    """Where the seconds of one verdict went, by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = round(self.seconds.get(name, 0.0) + now - self._last, 4)
        self._last = now


def comparison_of(blocks: list[Block], overall: Any, keep: bool, reason: str) -> Comparison:
    return Comparison(
        log_ratio=overall.mean,
        ci_low=overall.low,
        ci_high=overall.high,
        blocks=len(blocks),
        keep=keep,
        reason=reason,
        incumbent_us=statistics.median(b.incumbent_us for b in blocks),
        candidate_us=statistics.median(b.candidate_us for b in blocks),
    )


def main() -> None:
    sandbox.die_with_parent()
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    start, _ = channel.receive()
    judge = Judge(Path(start["folder"]), start["device"], start["threads"], start["min_gain"])
    channel.send({"event": "ready", "hardware": judge.hardware.to_json()})
    while True:
        try:
            request, _ = channel.receive()
        except PeerGone:
            judge.close()
            return
        verdict, comparison = judge.evaluate(
            Target.from_json(request["target"]),
            request["source"],
            request["incumbent"],
            request["baselines"],
            request["thorough"],
            channel.send,
        )
        told = dataclasses.asdict(comparison) if comparison else None
        channel.send({"event": "done", "verdict": verdict.to_json(), "comparison": told})


if __name__ == "__main__":
    main()
