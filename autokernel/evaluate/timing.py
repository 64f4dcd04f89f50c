"""The clock that decides is the judge's: it times whole turns of a runner over the protocol and never asks how long.

A *turn* is one request to run a workload once on each of N input sets, in a secret order. The sets together exceed
the last-level cache, lie in memory that both sides map (where inputs lie is worth up to 2 %), and are partly rewritten
before every turn, so that no result of an earlier call is right again; the last output of a turn may be checked,
and which turns are is decided afterwards. A *block* is four turns, ABBA or BAAB, of each workload. The request itself
costs some 100 µs, the same for both sides and spread over the calls of a turn.
"""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
import time
from collections.abc import Mapping, Sequence

import torch

from autokernel.evaluate.correctness import expected, mismatch
from autokernel.evaluate.decision import Block
from autokernel.evaluate.memory import InputSet, flat, relaid
from autokernel.evaluate.pool import Handle, RunnerFailed
from autokernel.evaluate.stages import Examination, Failed, failure_status
from autokernel.types import Problem, Status, Workload

TURN_S = 12e-3  # a turn lasts about this long, at least one call
ROTATED_BYTES = 2.0  # sets of one workload together, in units of the last-level cache
MAX_SETS, MIN_SETS = 64, 2
MAX_ROTATED_BYTES = 512 << 20
REWRITTEN_SHARE = 8  # one eighth of every float input is new in each turn
CHECKED_TURNS = 0.1  # share of the turns whose last output is checked
WARM_CALL_S = 20e-3  # a workload slower than this needs no warm-up call at the start of a turn
TURN_LIMIT_S = 60.0
DISTURBED_SHARE = 0.05  # a turn that waited for a processor for more than this share of its time is disturbed


class Rotation:
    """The input sets of one workload, owned by the judge."""

    def __init__(self, problem: Problem, work: Workload, cache_bytes: int, seed: int) -> None:
        self.problem = problem
        self.work = work
        self.scalars = {**problem.scalars, **work.scalars}
        generator = torch.Generator().manual_seed(seed)
        drawn = problem.make_inputs(work.dims, work.dtype, generator)
        one_bytes = max(1, sum(t.numel() * t.element_size() for t in drawn))
        wanted = min(ROTATED_BYTES * cache_bytes, MAX_ROTATED_BYTES) / one_bytes
        self.sets: list[InputSet] = []
        self._pools = drawn
        for index in range(max(MIN_SETS, min(MAX_SETS, math.ceil(wanted)))):
            rolled = [t.reshape(-1).roll(index * 1009).reshape(t.shape) for t in drawn]
            self.sets.append(InputSet([self._strided(n, t) for n, t in zip(problem.inputs, rolled, strict=True)]))
        self.calls = 1  # of a turn; set by Bench.calibrate

    def _strided(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        return relaid(tensor, self.work.strides[name]) if name in self.work.strides else tensor

    def rewrite(self, rng: random.Random) -> None:
        """New values in a random part of every float input of every set."""
        for inputs in self.sets:
            for tensor, pool in zip(inputs.tensors, self._pools, strict=True):
                if not tensor.is_floating_point() or tensor.numel() == 0:
                    continue
                target, source = flat(tensor), pool.view(-1)
                count = max(1, min(target.numel(), source.numel()) // REWRITTEN_SHARE)
                at = rng.randrange(target.numel() - count + 1)
                origin = rng.randrange(source.numel() - count + 1)
                target[at : at + count] = source[origin : origin + count]

    def close(self) -> None:
        for inputs in self.sets:
            inputs.close()


@dataclasses.dataclass
class Side:
    """One runner in a comparison, with the ids under which it knows each rotation's sets."""

    handle: Handle
    exam: Examination
    ids: list[list[int]] = dataclasses.field(default_factory=list)
    disturbed_turns: int = 0
    turns: int = 0

    def close(self) -> None:
        """End the runner."""
        self.exam.close()
        self.handle.close()


class Bench:
    """All workloads of one target, and the turns of runners over them."""

    def __init__(self, problem: Problem, workloads: Sequence[Workload], cache_bytes: int, device: str) -> None:
        self.problem = problem
        self.device = device
        self.rng = random.Random()  # seeded by the operating system
        self.rotations = [Rotation(problem, w, cache_bytes, self.rng.getrandbits(60)) for w in workloads]

    def close(self) -> None:
        for rotation in self.rotations:
            rotation.close()

    def admit(self, handle: Handle, exam: Examination) -> Side:
        """Show a runner every set. Raises RunnerFailed."""
        side = Side(handle, exam)
        for rotation in self.rotations:
            side.ids.append([exam.show(inputs, rotation.scalars) for inputs in rotation.sets])
        return side

    def calibrate(self, side: Side) -> None:
        """Choose the calls of a turn from this runner's own speed."""
        for index, rotation in enumerate(self.rotations):
            rotation.calls = 1
            self.turn(side, index)
            seconds = self.turn(side, index)
            rotation.calls = max(1, min(len(rotation.sets), round(TURN_S / max(seconds, 1e-6))))

    def turn(self, side: Side, index: int) -> float:
        """Seconds a call of one workload, by the judge's clock. Raises Failed."""
        seconds, last = self._turn(side, index)
        if self.rng.random() < CHECKED_TURNS:
            self.check(side, index, last)
        return seconds

    def _turn(self, side: Side, index: int) -> tuple[float, int]:
        """Seconds a call, and the set whose output can be fetched."""
        rotation, ids = self.rotations[index], side.ids[index]
        rotation.rewrite(self.rng)
        order = self.rng.sample(range(len(ids)), rotation.calls)
        try:
            if self.device != "cpu":
                side.handle.ask("refresh", {"ids": ids}, deadline_s=TURN_LIMIT_S)
            if rotation.calls > 1:
                side.handle.ask("time", {"order": [ids[order[-1]]]}, deadline_s=TURN_LIMIT_S)
            waited = side.handle.waited_ns()
            start = time.perf_counter()
            side.handle.ask("time", {"order": [ids[i] for i in order]}, deadline_s=TURN_LIMIT_S)
            seconds = time.perf_counter() - start
            side.turns += 1
            side.disturbed_turns += (side.handle.waited_ns() - waited) * 1e-9 > DISTURBED_SHARE * seconds
        except RunnerFailed as failure:
            status = failure_status(failure, Status.CRASH)
            raise Failed(status, f"timing {rotation.work.key}: {failure.reason}", failure.log_tail) from None
        return seconds / rotation.calls, order[-1]

    def turn_and_check_all(self, side: Side) -> None:
        """One more turn of every workload, its last output checked. Raises Failed."""
        for index in range(len(self.rotations)):
            self.check(side, index, self._turn(side, index)[1])

    def warm_up(self, side: Side) -> None:
        """A turn of every workload that counts for nothing. Raises Failed."""
        for index in range(len(self.rotations)):
            self._turn(side, index)

    def shuffled(self, items: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        return self.rng.sample(list(items), len(items))

    def check(self, side: Side, index: int, which: int) -> None:
        """The output of the last timed call must be right for what its inputs are now. Raises Failed."""
        rotation = self.rotations[index]
        inputs = tuple(t.clone() for t in rotation.sets[which].tensors)
        want = expected(self.problem, inputs, rotation.scalars, self.problem.flops(rotation.work), self.device)
        name = f"a timed call on {rotation.work.key}"
        try:
            out = side.exam.fetch(want, Status.IMPLAUSIBLE, name)
        except RunnerFailed as failure:
            raise Failed(failure_status(failure, Status.CRASH), f"{name}: {failure.reason}", failure.log_tail) from None
        _, wrong = mismatch(out, want, self.problem.tolerances[rotation.work.dtype], statistical=False)
        if wrong:
            raise Failed(Status.IMPLAUSIBLE, f"{name} returned something else than the work: {wrong}")

    def measure(self, sides: Mapping[str, Side], rounds: int) -> dict[str, list[dict[str, float]]]:
        """Microseconds a call by workload key, for each round of each side, sides in random order within a round."""
        samples: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for _ in range(rounds):
            names = list(sides)
            self.rng.shuffle(names)
            for name in names:
                round_us = {r.work.key: self.turn(sides[name], i) * 1e6 for i, r in enumerate(self.rotations)}
                samples[name].append(round_us)
        return samples

    def block(self, incumbent: Side, candidate: Side) -> Block:
        """Four turns of every workload, ABBA or BAAB. A block that was disturbed is run again, once, unseen."""
        disturbed = False
        for _ in range(2):
            before = incumbent.disturbed_turns + candidate.disturbed_turns
            outer, inner = (incumbent, candidate) if self.rng.random() < 0.5 else (candidate, incumbent)
            seconds: dict[int, list[float]] = {id(incumbent): [], id(candidate): []}
            for index in range(len(self.rotations)):
                totals = {id(incumbent): 0.0, id(candidate): 0.0}
                for side in (outer, inner, inner, outer):
                    totals[id(side)] += self.turn(side, index) / 2
                for key, value in totals.items():
                    seconds[key].append(value)
            disturbed = incumbent.disturbed_turns + candidate.disturbed_turns > before
            if not disturbed:
                break
        ours, theirs = seconds[id(candidate)], seconds[id(incumbent)]
        counts = [r.work.count for r in self.rotations]
        weighted = [sum(c * s for c, s in zip(counts, each, strict=True)) for each in (theirs, ours)]
        by_workload = {r.work.key: math.log(t / o) for r, t, o in zip(self.rotations, theirs, ours, strict=True)}
        return Block(math.log(weighted[0] / weighted[1]), by_workload, weighted[0] * 1e6, weighted[1] * 1e6, disturbed)

    def weighted_us(self, samples: Sequence[Mapping[str, float]]) -> float:
        """Microseconds a forward pass: each workload's median, weighted by its count."""
        return sum(r.work.count * statistics.median(s[r.work.key] for s in samples) for r in self.rotations)
