"""Is it faster, and than what? One target's input sets, its warm rivals, and the measurements over them.

Rivals are the incumbent and the three baselines (eager, torch.compile, the best library call). They are runners like
the candidate's, on the same inputs, timed by the same clock in the same session: no stored number is ever compared.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from autokernel import hardware
from autokernel.evaluate.decision import (
    FIRST_LOOK,
    LAST_LOOK,
    Block,
    Interval,
    confirm,
    interval,
    middle,
    percent,
    screen,
)
from autokernel.evaluate.pool import Handle, RunnerFailed, close_all
from autokernel.evaluate.sides import Side
from autokernel.evaluate.stages import Examination, Failed, failure_status
from autokernel.evaluate.timing import Bench
from autokernel.evaluate.workshop import Workshop
from autokernel.hardware import Hardware
from autokernel.types import Comparison, Measurements, Problem, Status, Target, source_id

COMPILE_BASELINE_S = 300.0
ROUNDS, THOROUGH_ROUNDS = 3, 15
SCREEN_BLOCKS = 6
SCREEN_S = 1.5  # after two blocks, the screen ends when it has lasted this long
PAIR_S = {"cpu": 0.5, "cuda": 0.25}  # a pair's blocks take about this long
MIN_PAIR_BLOCKS, MAX_PAIR_BLOCKS = 1, 7
PAIRS_AT_ONCE = {"cpu": 1, "cuda": FIRST_LOOK}  # a GPU's host has the processors to start several, and the memory
IMPLAUSIBLE_SHARE = 0.7  # of the roofline floor: below it a latency is not believed
BASELINES = ("eager", "compile", "library")

OnStage = Callable[[str, int, int], None]


class Contest:
    """All that the candidates of one target are measured against."""

    def __init__(
        self,
        target: Target,
        problem: Problem,
        workshop: Workshop,
        ceilings: Hardware,
        off: frozenset[str] = frozenset(),
    ) -> None:
        self.target = target
        self.off = off  # defences that a test has switched off
        self.problem = problem
        self.baselines_missing: dict[str, str] = {}
        self._workshop = workshop
        self._hardware = ceilings
        self._bench = Bench(problem, target.workloads, ceilings.llc_bytes, workshop.device, off)
        self._warm: dict[str, Side] = {}
        kind = torch.device(workshop.device).type
        self._at_once, self._pair_s = PAIRS_AT_ONCE[kind], PAIR_S[kind]

    def admit(self, source: str) -> Side:
        """A candidate that passed the stages, in a fresh runner as its rivals are. Raises Failed."""
        return self._fresh(source)

    def calibrate(self, side: Side) -> None:
        """Its first timed turns, which say how long a turn of this target should be. Raises Failed or RivalFailed."""
        self._bench.calibrate(side, self._warm.values())

    def measure(self, side: Side, *, baselines: bool, thorough: bool) -> Measurements:
        """Candidate and baselines in interleaved rounds of one session. Raises Failed where it is too good."""
        rivals = self._baselines() if baselines else {}
        samples = self._bench.measure({"candidate": side, **rivals}, THOROUGH_ROUNDS if thorough else ROUNDS)
        mine = samples.pop("candidate")
        latency_us = self._bench.weighted_us(mine)
        works = self.target.workloads
        floor_us = self._floor_us()
        if latency_us < IMPLAUSIBLE_SHARE * floor_us and "floor" not in self.off:
            # Ceilings that were measured beside other work are too low, and would refuse honest kernels all night.
            self._hardware = hardware.measure(self._workshop.device, refresh=True)
            floor_us = self._floor_us()
            if latency_us < IMPLAUSIBLE_SHARE * floor_us:
                reason = f"{latency_us:.1f} us is below the roofline floor of {floor_us:.1f} us for this work"
                raise Failed(Status.IMPLAUSIBLE, reason)
        spread = interval([math.log(sum(w.count * s[w.key] for w in works)) for s in mine])
        return Measurements(
            latency_us=latency_us,
            baselines_us={name: self._bench.weighted_us(each) for name, each in samples.items()},
            pct_peak=100 * floor_us / latency_us if floor_us > 0 else None,
            workloads_us={w.key: statistics.median(s[w.key] for s in mine) for w in works},
            noise_pct=100 * math.expm1(min(spread.high - spread.mean, 5.0)),
        )

    def _floor_us(self) -> float:
        """The least that a forward's calls of this target can take, by the ceilings that are known."""
        cost = self.problem
        return sum(
            w.count * self._hardware.floor_us(cost.flops(w), cost.bytes(w), w.dtype) for w in self.target.workloads
        )

    def compare(self, side: Side, source: str, incumbent: str, min_gain: float, on_stage: OnStage) -> Comparison:
        """Screen against the warm incumbent, then confirm over fresh pairs. Raises Failed if the candidate breaks."""
        rival = self._incumbent(incumbent)
        blocks: list[Block] = []
        started = time.perf_counter()
        for done in range(SCREEN_BLOCKS):
            on_stage("screen", done, SCREEN_BLOCKS)
            blocks.append(self._bench.block(rival, side))
            if done >= 1 and screen(blocks, min_gain) == "hopeless":
                overall = interval([b.log_ratio for b in blocks])
                reason = f"screened out: {percent(middle(blocks))} over {len(blocks)} blocks"
                return comparison_of(blocks, overall, keep=False, reason=reason)
            if done >= 1 and time.perf_counter() - started > SCREEN_S:
                break
        block_s = (time.perf_counter() - started) / len(blocks)
        count = max(MIN_PAIR_BLOCKS, min(MAX_PAIR_BLOCKS, round(self._pair_s / block_s)))
        pairs: list[list[Block]] = []
        offset = self._bench.rng.randrange(2)
        while True:
            on_stage("confirm", len(pairs), LAST_LOOK)
            new_first = [(len(pairs) + offset + i) % 2 == 0 for i in range(self._at_once)]
            pairs += self._pairs(source, incumbent, count, new_first)
            if len(pairs) in (FIRST_LOOK, LAST_LOOK) and (outcome := confirm(pairs, min_gain)).final:
                break
        flat = [block for pair in pairs for block in pair]
        disturbed = sum(block.disturbed for block in flat)
        told = (
            f"; {disturbed} of {len(flat)} blocks disturbed: by other programs, or by a device that slows down"
            if disturbed
            else ""
        )
        return comparison_of(flat, outcome.overall, keep=outcome.keep, reason=outcome.reason + told)

    def conditions(self) -> Mapping[str, Any]:
        """What there is to say of the device while candidates were timed."""
        return self._bench.conditions()

    def check(self, side: Side) -> None:
        """One more timed turn of every workload, its output checked. Raises Failed."""
        self._bench.turn_and_check_all(side)

    def close(self) -> None:
        for name in list(self._warm):
            self._drop(name)
        self._bench.close()

    def _baselines(self) -> dict[str, Side]:
        """Warm runners of the baselines; why one cannot run is kept in ``baselines_missing``."""
        for name in BASELINES:
            if name in self._warm or name in self.baselines_missing:
                continue
            if name not in self.problem.baselines and name != "compile":
                self.baselines_missing[name] = "no distinct library call"
                continue
            try:
                handle = self._workshop.start_baseline(name, self.problem.name)
            except RunnerFailed as failure:
                self.baselines_missing[name] = failure.reason
                continue
            try:
                side = self._bench.admit(handle, self._exam(handle), rival=f"baseline '{name}'", trusted=True)
                for ids in side.ids:  # the first call of a shape compiles
                    handle.ask("time", {"order": ids[:1]}, deadline_s=COMPILE_BASELINE_S)
                self._warm[name] = side
            except RunnerFailed as failure:
                self.baselines_missing[name] = failure.reason
                handle.close()
        return {name: self._warm[name] for name in BASELINES if name in self._warm}

    def _incumbent(self, source: str) -> Side:
        """The warm runner of the incumbent; that of a former one is let go."""
        name = f"incumbent {source_id(source)}"
        for other in [n for n in self._warm if n.startswith("incumbent ") and n != name]:
            self._drop(other)
        if name not in self._warm:
            self._warm[name] = self._fresh(source, rival="incumbent")
        return self._warm[name]

    def _fresh(self, source: str, rival: str = "") -> Side:
        """A new runner of a source that has passed before. Raises Failed, or RivalFailed of a rival."""
        return self._admit(self._workshop.start(source, self.target.backend), rival)

    def _admit(self, handle: Handle, rival: str) -> Side:
        try:
            return self._bench.admit(handle, self._exam(handle), rival)
        except RunnerFailed as failure:
            handle.close()
            side = Side(handle, self._exam(handle), rival)
            raise side.failed(failure_status(failure, Status.CRASH), failure.reason, failure.log_tail) from None

    def _exam(self, handle: Handle) -> Examination:
        return Examination(self.problem, handle, self._workshop.device, None)

    def _pairs(self, source: str, incumbent: str, count: int, new_first: Sequence[bool]) -> list[list[Block]]:
        """Blocks of freshly started pairs of runners, one of each side; all are started side by side.

        Which of a pair starts first is balanced over the pairs: the first is given the pages that the last one of the
        pair before gave back, and where those lie can be worth 20 % (seen once in 60 A/A candidates, in all four of
        their pairs).
        """
        texts = [text for new in new_first for text in ((source, incumbent) if new else (incumbent, source))]
        rivals = [rival for new in new_first for rival in (("", "incumbent") if new else ("incumbent", ""))]
        handles = self._workshop.start_all(texts, self.target.backend)
        sides: list[Side] = []
        try:
            together = len(handles) if self._at_once > 1 else 1
            with ThreadPoolExecutor(together) as pool:  # to map gigabytes of a GPU takes 0.2 s
                sides += pool.map(self._admit, handles, rivals)
            self._bench.warm_up(sides)
            pairs = [
                (second, first) if new else (first, second)
                for new, first, second in zip(new_first, sides[::2], sides[1::2], strict=True)
            ]
            return [[self._bench.block(old, new) for _ in range(count)] for old, new in pairs]
        finally:
            close_all(handles)
            for side in sides:
                side.close()

    def _drop(self, name: str) -> None:
        self._warm.pop(name).close()


def comparison_of(blocks: list[Block], overall: Interval, *, keep: bool, reason: str) -> Comparison:
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
