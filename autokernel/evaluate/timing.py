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
from collections.abc import Iterable, Mapping, Sequence

import torch

from autokernel.evaluate.correctness import expected, mismatch
from autokernel.evaluate.decision import Block
from autokernel.evaluate.memory import InputSets, extent, relaid
from autokernel.evaluate.pool import Handle, RunnerFailed
from autokernel.evaluate.stages import Examination, Failed, failure_status
from autokernel.types import Problem, Status, Workload

TURN_S = 8e-3  # a turn lasts about this long, at least one call
ROTATED = 2.0  # sets of one workload together, in units of the last-level cache
MIN_SETS, MAX_SETS = 2, 1024
CALIBRATION_CALLS = 4
GROWTH = 1.5  # sets are laid out anew only when this much more of them are wanted
MAX_ROTATED_BYTES = 512 << 20
REWRITTEN_SHARE = 16  # one sixteenth of every float input is new in each turn
CHECKED_TURNS = 0.1  # share of the turns whose last output is checked
SETTLE_S = 2e-3  # before a turn: idle threads of whoever ran last fall asleep
TURN_LIMIT_S = 60.0
DISTURBED_SHARE = 0.05  # a turn that waited for a processor for more than this share of its time is disturbed


class Rotation:
    """The input sets of one workload, owned by the judge."""

    def __init__(self, problem: Problem, work: Workload, cache_bytes: int, seed: int) -> None:
        self.problem = problem
        self.work = work
        self.scalars = {**problem.scalars, **work.scalars}
        self.calls = 1  # of a turn; set by Bench.calibrate
        self._drawn = problem.make_inputs(work.dims, work.dtype, torch.Generator().manual_seed(seed))
        self._cache_bytes = cache_bytes
        self._one_bytes = max(1, sum(t.numel() * t.element_size() for t in self._drawn))
        self.inputs = self._lay_out(self.sets_for(1))

    def sets_for(self, calls: int) -> int:
        """How many sets a turn of so many calls wants: one a call, all together larger than the cache."""
        least = math.ceil(ROTATED * self._cache_bytes / self._one_bytes)
        return int(max(MIN_SETS, min(max(least, calls), MAX_SETS, MAX_ROTATED_BYTES // self._one_bytes)))

    def grow(self, sets: int) -> None:
        """Replace the sets by more of them."""
        self.inputs.close()
        self.inputs = self._lay_out(sets)

    def rewrite(self, rng: random.Random) -> None:
        """New values in a random part of every float input of every set."""
        for index, (tensor, drawn) in enumerate(zip(self.inputs.tensors[0], self._drawn, strict=True)):
            if tensor.is_floating_point() and tensor.numel():
                spanned, pool = extent(tensor.shape, tensor.stride()), drawn.view(-1)
                count = max(1, min(spanned, pool.numel()) // REWRITTEN_SHARE)
                at, origin = rng.randrange(spanned - count + 1), rng.randrange(pool.numel() - count + 1)
                self.inputs.rewrite(index, pool, at, origin, count)

    def close(self) -> None:
        self.inputs.close()

    def _lay_out(self, sets: int) -> InputSets:
        named = list(zip(self.problem.inputs, self._drawn, strict=True))
        strides = self.work.strides
        rolled = ([(n, t.reshape(-1).roll(1009 * i).reshape(t.shape)) for n, t in named] for i in range(sets))
        return InputSets([[relaid(t, strides[n]) if n in strides else t for n, t in each] for each in rolled])


class RivalFailed(Exception):
    """A runner that the candidate is measured against failed: not the candidate's doing, and no verdict on it."""


@dataclasses.dataclass
class Side:
    """One runner in a comparison, with the ids under which it knows each rotation's sets. ``rival`` names what the
    candidate is measured against; empty for the candidate itself.
    """

    handle: Handle
    exam: Examination
    rival: str = ""
    ids: list[list[int]] = dataclasses.field(default_factory=list)
    disturbed_turns: int = 0
    turns: int = 0

    def failed(self, status: Status, reason: str, log_tail: str = "") -> Failed | RivalFailed:
        """What a failure of this runner means: a verdict on the candidate, or none."""
        if self.rival:
            return RivalFailed(f"the {self.rival} failed: {status.value}, {reason}")
        return Failed(status, reason, log_tail)

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

    def admit(self, handle: Handle, exam: Examination, rival: str = "") -> Side:
        """Show a runner every set. Raises RunnerFailed."""
        side = Side(handle, exam, rival)
        for rotation in self.rotations:
            side.ids.append(exam.show(rotation.inputs, rotation.scalars))
        return side

    def calibrate(self, side: Side, others: Iterable[Side]) -> None:
        """Choose the calls of a turn from this runner's own speed; where they want many more sets than there are, lay
        out new ones and show them to this runner and to ``others``. Raises Failed, or RivalFailed of another.
        """
        for index, rotation in enumerate(self.rotations):
            rotation.calls = min(CALIBRATION_CALLS, len(rotation.inputs.tensors))
            seconds = min(self.turn(side, index) for _ in range(3))
            wanted = max(1, round(TURN_S / max(seconds, 1e-6)))
            if rotation.sets_for(wanted) > GROWTH * len(rotation.inputs.tensors):
                rotation.grow(rotation.sets_for(wanted))
                for each in (side, *others):
                    try:
                        each.handle.ask("forget", {"ids": each.ids[index]})
                        each.ids[index] = each.exam.show(rotation.inputs, rotation.scalars)
                    except RunnerFailed as failure:
                        raise each.failed(failure_status(failure, Status.CRASH), failure.reason) from None
            rotation.calls = min(wanted, len(rotation.inputs.tensors))

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
        time.sleep(SETTLE_S)
        try:
            if self.device != "cpu":
                side.handle.ask("refresh", {"ids": ids}, deadline_s=TURN_LIMIT_S)
            warm = [ids[order[-1]]] if rotation.calls > 1 else []  # one call of several warms up; a long one is its own
            side.handle.ask("time", {"order": warm, "move": True}, deadline_s=TURN_LIMIT_S)
            waited = side.handle.waited_ns()
            start = time.perf_counter()
            side.handle.ask("time", {"order": [ids[i] for i in order]}, deadline_s=TURN_LIMIT_S)
            seconds = time.perf_counter() - start
            side.turns += 1
            side.disturbed_turns += (side.handle.waited_ns() - waited) * 1e-9 > DISTURBED_SHARE * seconds
        except RunnerFailed as failure:
            status = failure_status(failure, Status.CRASH)
            raise side.failed(status, f"timing {rotation.work.key}: {failure.reason}", failure.log_tail) from None
        return seconds / rotation.calls, order[-1]

    def turn_and_check_all(self, side: Side) -> None:
        """One more turn of every workload, its last output checked. Raises Failed."""
        for index in range(len(self.rotations)):
            self.check(side, index, self._turn(side, index)[1])

    def warm_up(self, side: Side) -> None:
        """A turn of every workload that counts for nothing. Raises Failed."""
        for index in range(len(self.rotations)):
            self._turn(side, index)

    def check(self, side: Side, index: int, which: int) -> None:
        """The output of the last timed call must be right for what its inputs are now. Raises Failed."""
        rotation = self.rotations[index]
        inputs = tuple(t.clone() for t in rotation.inputs.tensors[which])
        want = expected(self.problem, inputs, rotation.scalars, self.problem.flops(rotation.work), self.device)
        name = f"a timed call on {rotation.work.key}"
        try:
            out = side.exam.fetch(want, Status.IMPLAUSIBLE, name)
        except RunnerFailed as failure:
            status = failure_status(failure, Status.CRASH)
            raise side.failed(status, f"{name}: {failure.reason}", failure.log_tail) from None
        except Failed as failure:
            raise side.failed(failure.status, failure.reason, failure.log_tail) from None
        _, wrong = mismatch(out, want, self.problem.tolerances[rotation.work.dtype], statistical=False)
        if wrong:
            raise side.failed(Status.IMPLAUSIBLE, f"{name} returned something else than the work: {wrong}")

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
