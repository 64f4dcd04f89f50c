"""The clock that decides is the judge's: it times whole turns of a runner over the protocol and never asks how long.

A *turn* is one request to run a workload once on each of N input sets, in a secret order. The sets together exceed
the last-level cache and lie in memory that both sides map (where inputs lie is worth up to 2 %). A runner stands still
outside its turns (see freezer.py). While it does, every input of the turn is written anew, so that nothing computed
earlier is of use; the clock starts as it resumes; when it answers it is stopped again, and outputs of any of its calls
are read out of its memory and compared with the oracle, for a share of the turns that is drawn afterwards. Whatever
the candidate made of the runner's code, right results for all N calls must have come to be while the clock ran.

A *block* is four turns, ABBA or BAAB, of each workload. The request itself costs some 100 µs, the same for both sides
and spread over the calls of a turn. On a GPU the runner copies the new inputs to its device before the clock starts,
and hands out outputs when asked: both are promises there, not walls.
"""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from autokernel.evaluate.correctness import Expected, expected, mismatch
from autokernel.evaluate.decision import Block
from autokernel.evaluate.freezer import NotStill
from autokernel.evaluate.outputs import lying, undone
from autokernel.evaluate.pool import Handle, RunnerFailed
from autokernel.evaluate.rotation import Rotation
from autokernel.evaluate.stages import Examination, Failed, failure_status
from autokernel.types import Problem, Status, Workload

TURN_S = 16e-3  # a turn lasts about this long, at least one call: to wake a stopped runner is worth some 100 us
CALIBRATION_CALLS = 4
GROWTH = 1.1  # sets are laid out anew only when this much more of them are wanted
CHECKED_TURNS = 0.2  # share of the turns of which outputs are checked
CHECK_S, RECHECK_S = 0.04, 0.3  # for so long, at least two of them; and at its end, all workloads together
SETTLE_S = 2e-3  # before a turn: idle threads of whoever ran last fall asleep
TURN_LIMIT_S = 60.0
DISTURBED_SHARE = 0.05  # a turn that was without a processor for more than this share of its time is disturbed,
REQUEST_S = 3e-4  # and for longer than a request takes


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
    trusted: bool = False  # our own code, which may have helpers
    disturbed_turns: int = 0
    turns: int = 0
    outputs: str = "none"  # of timed calls that were checked: "read" by the judge, or "asked" of the runner

    def failed(self, status: Status, reason: str, log_tail: str = "") -> Failed | RivalFailed:
        """What a failure of this runner means: a verdict on the candidate, or none."""
        if self.rival:
            return RivalFailed(f"the {self.rival} failed: {status.value}, {reason}")
        return Failed(status, reason, log_tail)

    def close(self) -> None:
        """End the runner."""
        self.exam.close()
        self.handle.close()


@dataclasses.dataclass(frozen=True)
class Turn:
    """One timed turn: seconds a call, the sets in the order of the calls, and what the runner said of its outputs."""

    seconds: float
    order: tuple[int, ...]
    answer: Mapping[str, Any]


class Bench:
    """All workloads of one target, and the turns of runners over them. ``off`` names defences that a test has
    switched off (see defences.py).
    """

    def __init__(
        self,
        problem: Problem,
        workloads: Sequence[Workload],
        cache_bytes: int,
        device: str,
        off: frozenset[str] = frozenset(),
    ) -> None:
        self.problem = problem
        self.device = device
        self.off = off
        self.rng = random.Random()  # seeded by the operating system
        self.rotations = [
            Rotation(problem, w, cache_bytes, self.rng.getrandbits(60), device, sealed="sealed" not in off)
            for w in workloads
        ]
        self._sides: list[Side] = []

    def close(self) -> None:
        for rotation in self.rotations:
            rotation.close()

    def admit(self, handle: Handle, exam: Examination, rival: str = "", *, trusted: bool = False) -> Side:
        """Show a runner every set. Raises RunnerFailed."""
        side = Side(handle, exam, rival, trusted=trusted)
        for rotation in self.rotations:
            side.ids.append(exam.show(rotation.inputs, rotation.scalars))
        self._sides = [each for each in self._sides if not each.handle.closed] + [side]
        return side

    def calibrate(self, side: Side, others: Iterable[Side]) -> None:
        """Choose the calls of a turn from this runner's own speed; where they want many more sets than there are, lay
        out new ones and show them to this runner and to ``others``. Raises Failed, or RivalFailed of another.
        """
        for index, rotation in enumerate(self.rotations):
            rotation.calls = min(CALIBRATION_CALLS, len(rotation.inputs.tensors) - 1, rotation.most_calls)
            seconds = min(self.turn(side, index) for _ in range(3))
            wanted = min(max(1, round(TURN_S / max(seconds, 1e-6))), rotation.most_calls)
            if rotation.sets_for(wanted) > GROWTH * len(rotation.inputs.tensors):
                rotation.grow(rotation.sets_for(wanted))
                for each in (side, *others):
                    try:
                        each.handle.ask("forget", {"ids": each.ids[index]})
                        each.ids[index] = each.exam.show(rotation.inputs, rotation.scalars)
                    except RunnerFailed as failure:
                        raise each.failed(failure_status(failure, Status.CRASH), failure.reason) from None
            rotation.calls = min(wanted, len(rotation.inputs.tensors) - 1)

    def turn(self, side: Side, index: int) -> float:
        """Seconds a call of one workload, by the judge's clock. Raises Failed."""
        turn = self._turn(side, index)
        if self.rng.random() < CHECKED_TURNS:
            self.check(side, index, turn)
        return turn.seconds

    def turn_and_check_all(self, side: Side) -> None:
        """One more turn of every workload, its outputs checked. Raises Failed."""
        for index in range(len(self.rotations)):
            self.check(side, index, self._turn(side, index), max(CHECK_S, RECHECK_S / len(self.rotations)))

    def warm_up(self, side: Side) -> None:
        """A turn of every workload that counts for nothing. Raises Failed."""
        for index in range(len(self.rotations)):
            self._turn(side, index)

    def _turn(self, side: Side, index: int) -> Turn:
        """One turn; the runner stands still before and after it."""
        rotation, ids = self.rotations[index], side.ids[index]
        first = self.rng.randrange(len(ids) - rotation.calls + 1)
        order = self.rng.sample(range(first, first + rotation.calls), rotation.calls)
        spare = [i for i in range(len(ids)) if not first <= i < first + rotation.calls]
        warm = [ids[self.rng.choice(spare)]] if rotation.calls > 1 else []  # a long call is its own warm-up
        try:
            self._hold(each for each in self._sides if each is not side)
            if not self._on("hidden"):
                self._renew(rotation, first)
            side.handle.ask("time", {"order": warm, "move": True}, deadline_s=TURN_LIMIT_S)
            if self._on("hidden"):
                self._hold([side])
                self._renew(rotation, first)
            time.sleep(SETTLE_S)
            if self.device != "cpu":
                side.handle.ask("refresh", {"ids": [ids[i] for i in order]}, deadline_s=TURN_LIMIT_S)
            ran_ns = side.handle.ran_ns()
            start = time.perf_counter()
            answer = side.handle.ask("time", {"order": [ids[i] for i in order]}, deadline_s=TURN_LIMIT_S)
            seconds = time.perf_counter() - start
            self._hold([side])
            side.turns += 1
            if self.device == "cpu":  # elsewhere that thread waits for the device
                side.disturbed_turns += disturbed(ran_ns, side.handle.ran_ns(), seconds)
        except RunnerFailed as failure:
            status = failure_status(failure, Status.CRASH)
            raise side.failed(status, f"timing {rotation.work.key}: {failure.reason}", failure.log_tail) from None
        if not self._on("clock"):
            seconds = float(answer["claim_ns"]) * 1e-9
        return Turn(seconds / rotation.calls, tuple(order), answer)

    def check(self, side: Side, index: int, turn: Turn, limit_s: float = CHECK_S) -> None:
        """Outputs of a turn's calls, in random order, must be right for what their inputs are. Raises Failed."""
        if not self._on("timed"):
            return
        rotation = self.rotations[index]
        name = f"a timed call on {rotation.work.key}"
        last = len(turn.order) - 1
        calls = self.rng.sample(range(last + 1), last + 1) if self._on("all-kept") else [last]
        deadline = time.perf_counter() + limit_s
        for position, which in enumerate(calls):
            inputs = tuple(t.clone() for t in rotation.inputs.tensors[turn.order[which]])
            try:
                wrong = self._wrong(side, rotation, inputs, turn.answer, which, name, exact=position == 0)
            except RunnerFailed as failure:
                status = failure_status(failure, Status.CRASH)
                raise side.failed(status, f"{name}: {failure.reason}", failure.log_tail) from None
            except Failed as failure:
                raise side.failed(failure.status, failure.reason, failure.log_tail) from None
            if wrong:
                raise side.failed(Status.IMPLAUSIBLE, f"{name} returned something else than the work: {wrong}")
            if position and time.perf_counter() > deadline:
                break

    def _wrong(
        self,
        side: Side,
        rotation: Rotation,
        inputs: tuple[torch.Tensor, ...],
        answer: Mapping[str, Any],
        which: int,
        name: str,
        *,
        exact: bool,
    ) -> str | None:
        """What is wrong with one call's output, or None. ``exact`` asks for all that the shapes stage asks for; the
        other calls of a turn are only asked whether they did their work, which costs a tenth.
        """
        if exact:
            flops = self.problem.flops(rotation.work)
            want = expected(self.problem, inputs, rotation.scalars, flops, self.device)
            out = self._output(side, answer, which, want, name)
            tolerance = self.problem.tolerances[rotation.work.dtype]
            return mismatch(out, want, tolerance, statistical=self._on("rms"))[1]
        mine = self.problem.reference(*(t.to(self.device) for t in inputs), **rotation.scalars).cpu()
        out = self._output(side, answer, which, Expected(mine, mine.dtype, 0.0, 0.0, ""), name)
        return undone(out, mine)

    def _output(self, side: Side, answer: Mapping[str, Any], which: int, want: Expected, name: str) -> torch.Tensor:
        """The output of one call of the last turn: read out of the stopped runner, or asked for where that cannot be
        (on a GPU; where the kernel forbids it).
        """
        if self.device == "cpu" and self._on("committed") and self._on("still"):
            try:
                pid = side.handle.freezer.freeze(alone=not side.trusted)
                out = lying(pid, answer, which, want, name, apart=self._on("all-kept"))
                side.outputs = "read"
                return out
            except PermissionError:
                pass
        side.outputs = "asked"
        return side.exam.fetch(want, Status.IMPLAUSIBLE, name, which)

    def _hold(self, sides: Iterable[Side]) -> None:
        """Stop these runners, until they are asked again. Raises Failed, or RivalFailed."""
        if not self._on("still"):
            return
        for side in sides:
            if not side.handle.closed:
                try:
                    side.handle.freezer.freeze(alone=not side.trusted)
                except NotStill as error:
                    raise side.failed(Status.IMPLAUSIBLE, str(error)) from None

    def _renew(self, rotation: Rotation, first: int) -> None:
        if self._on("fresh"):
            rotation.rewrite(first, rotation.calls, self.rng)

    def _on(self, defence: str) -> bool:
        return defence not in self.off

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


def disturbed(before_ns: int | None, after_ns: int | None, seconds: float) -> bool:
    """Whether the thread that makes the calls was without a processor for too much of a turn.

    Told by the time it ran: what Linux counts as waiting includes time in which a thread stood still.
    """
    if before_ns is None or after_ns is None:
        return False
    return seconds - (after_ns - before_ns) * 1e-9 > DISTURBED_SHARE * seconds + REQUEST_S
