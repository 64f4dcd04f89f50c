"""Turns of runners over the input sets of a target, and blocks of turns: what a comparison is made of.

A *turn* is one request to run a workload once on each of N input sets, in a secret order. The sets together exceed
the last-level cache and lie in memory that both sides map (where inputs lie is worth up to 2 %). A runner stands still
outside its turns (see freezer.py). Before each, every input of the turn is written anew, so that nothing computed
earlier is of use; when it is over, outputs of any of its calls are read where they lie and compared with the oracle,
for a share of the turns that is drawn afterwards. Whatever the candidate made of the runner's code, right results for
all N calls must have come to be while the clock ran. How that is done on each kind of device: see clocks.py.

A *block* is four turns, ABBA or BAAB, of each workload. The request itself costs 0.1 ms on a CPU and 0.3 to 1 ms on a
GPU, the same for both sides and spread over the calls of a turn.
"""

from __future__ import annotations

import math
import random
import statistics
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from autokernel.evaluate.clocks import clock_of, failure
from autokernel.evaluate.correctness import Expected, expected, mismatch
from autokernel.evaluate.decision import Block
from autokernel.evaluate.outputs import undone
from autokernel.evaluate.pool import Handle, RunnerFailed
from autokernel.evaluate.rotation import Rotation
from autokernel.evaluate.sides import Side, Turn
from autokernel.evaluate.stages import Examination, Failed
from autokernel.types import Problem, Status, Workload

TURN_S = 16e-3  # a turn lasts about this long, at least one call: to wake a stopped runner is worth some 100 us
CALIBRATION_CALLS = 4
CALIBRATIONS = {"cpu": 1, "cuda": 3}  # a few calls on a GPU take less than the request does: each guess is too low
STEADY = 1.3  # a turn that was calibrated before may become so much longer or shorter before it is calibrated anew
GROWTH = 1.1  # sets are laid out anew only when this much more of them are wanted
CHECKED_TURNS = 0.2  # share of the turns of which outputs are checked
CHECK_S = 0.04  # for so long, at least two of them
FEW_UNSETTLED, MOST_UNSETTLED = 2, 0.05  # elements, and share, of a roughly checked output that ties may change
RECHECK_S = {"cpu": 0.3, "cuda": 0.1}  # and at its end, all workloads together


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
        self.off = off
        self.rng = random.Random()  # seeded by the operating system
        self._kind = torch.device(device).type
        self._clock = clock_of(device, cache_bytes, self.rng, self._on)
        self.rotations = [
            Rotation(problem, w, cache_bytes, self.rng.getrandbits(60), device, sealed="sealed" not in off)
            for w in workloads
        ]
        self._sides: list[Side] = []
        self._admitting = threading.Lock()  # several may be admitted at a time

    def close(self) -> None:
        for rotation in self.rotations:
            rotation.close()

    def admit(self, handle: Handle, exam: Examination, rival: str = "", *, trusted: bool = False) -> Side:
        """Show a runner every set. Raises RunnerFailed."""
        side = Side(handle, exam, rival, trusted=trusted)
        for rotation in self.rotations:
            side.ids.append(exam.show(rotation.inputs, rotation.scalars))
        with self._admitting:
            self._sides = [each for each in self._sides if not each.handle.closed] + [side]
        return side

    def calibrate(self, side: Side, others: Iterable[Side]) -> None:
        """Choose the calls of a turn from this runner's own speed; where they want many more sets than there are, lay
        out new ones and show them to this runner and to ``others``. Raises Failed, or RivalFailed of another.
        """
        for index, rotation in enumerate(self.rotations):
            if rotation.calls < CALIBRATION_CALLS:
                rotation.calls = min(CALIBRATION_CALLS, len(rotation.inputs.tensors) - 1, rotation.most_calls)
            for _ in range(CALIBRATIONS[self._kind]):
                seconds = min(self.turn(side, index).seconds for _ in range(3))
                wanted = min(max(1, round(TURN_S / max(seconds, 1e-6))), rotation.most_calls)
                if rotation.sets_for(wanted) > GROWTH * len(rotation.inputs.tensors):
                    rotation.grow(rotation.sets_for(wanted))
                    self._show_again(index, (side, *others))
                elif rotation.calls / STEADY <= wanted <= rotation.calls * STEADY:
                    break  # what the rivals have recorded stays
                rotation.calls = min(wanted, len(rotation.inputs.tensors) - 1)

    def _show_again(self, index: int, sides: Iterable[Side]) -> None:
        rotation = self.rotations[index]
        for side in sides:
            try:
                side.handle.ask("forget", {"ids": side.ids[index]})
                side.recordings.clear()
                side.ids[index] = side.exam.show(rotation.inputs, rotation.scalars)
            except RunnerFailed as error:
                raise failure(side, error, "new inputs") from None

    def turn(self, side: Side, index: int, *, recorded: bool = True) -> Turn:
        """One turn of one workload; a share of them is checked. Raises Failed."""
        turn = self._turn(side, index, recorded=recorded)
        if self.rng.random() < CHECKED_TURNS:
            self.check(side, index, turn)
        return turn

    def turn_and_check_all(self, side: Side) -> None:
        """One more turn of every workload, its outputs checked. Raises Failed."""
        for index in range(len(self.rotations)):
            self.check(side, index, self._turn(side, index), max(CHECK_S, RECHECK_S[self._kind] / len(self.rotations)))

    def warm_up(self, sides: Sequence[Side]) -> None:
        """A turn of every workload that counts for nothing. Raises Failed, or RivalFailed."""
        for index, rotation in enumerate(self.rotations):
            self._clock.recorded(sides, index, rotation)
            for side in sides:
                self._turn(side, index)

    def _turn(self, side: Side, index: int, *, recorded: bool = True) -> Turn:
        """One turn; of recorded calls, unless that cannot be or is not wanted."""
        rotation = self.rotations[index]
        try:
            recorded = recorded and self._clock.recorded([side], index, rotation)
            others = [each for each in self._sides if each is not side]
            return self._clock.turn(side, index, rotation, others, recorded=recorded)
        except RunnerFailed as error:
            raise failure(side, error, f"timing {rotation.work.key}") from None

    def check(self, side: Side, index: int, turn: Turn, limit_s: float = CHECK_S) -> None:
        """Outputs of a turn's calls, in random order, must be right for what their inputs are. Raises Failed."""
        if not self._on("timed"):
            return
        rotation = self.rotations[index]
        name = f"a timed call on {rotation.work.key}"
        last = len(turn.order) - 1
        calls = self.rng.sample(range(last + 1), last + 1) if self._on("all-kept") else [last]
        deadline = time.perf_counter() + limit_s
        few = 0.0
        for position, which in enumerate(calls):
            inputs = tuple(t.clone() for t in rotation.inputs.tensors[turn.order[which]])
            try:
                if position == 0:
                    wrong, few = self._wrong(side, rotation, inputs, turn, which, name)
                else:
                    wrong = self._undone(side, rotation, inputs, turn, which, name, few)
            except RunnerFailed as error:
                raise failure(side, error, name) from None
            except Failed as found:
                raise side.failed(found.status, found.reason, found.log_tail) from None
            if wrong:
                raise side.failed(Status.IMPLAUSIBLE, f"{name} returned something else than the work: {wrong}")
            if position and time.perf_counter() > deadline:
                break

    def _wrong(
        self, side: Side, rotation: Rotation, inputs: tuple[torch.Tensor, ...], turn: Turn, which: int, name: str
    ) -> tuple[str | None, float]:
        """What is wrong with one call's output by all that the shapes stage asks for, or None; and how many elements of
        such an output a rounding may put elsewhere.
        """
        flops = self.problem.flops(rotation.work)
        want = expected(self.problem, inputs, rotation.scalars, flops, side.exam.device)
        out = self._clock.output(side, turn, which, want, name)
        tolerance = self.problem.tolerances[rotation.work.dtype]
        few = FEW_UNSETTLED + min(2 * want.unsettled, MOST_UNSETTLED) * out.numel() if self.problem.jumps else 0.0
        return mismatch(out, want, tolerance, statistical=self._on("rms"))[1], few

    def _undone(
        self,
        side: Side,
        rotation: Rotation,
        inputs: tuple[torch.Tensor, ...],
        turn: Turn,
        which: int,
        name: str,
        few: float,
    ) -> str | None:
        """Whether one call did its work, which costs a tenth to ask; ``few`` elements may be elsewhere."""
        mine = self.problem.reference(*inputs, **rotation.scalars)
        out = self._clock.output(side, turn, which, Expected(mine, mine.dtype, 0.0, 0.0, ""), name)
        return undone(out, mine, few)

    def _on(self, defence: str) -> bool:
        return defence not in self.off

    def measure(self, sides: Mapping[str, Side], rounds: int) -> dict[str, list[dict[str, float]]]:
        """Microseconds a call by workload key, for each round of each side, sides in random order within a round."""
        samples: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        for _ in range(rounds):
            names = list(sides)
            self.rng.shuffle(names)
            for name in names:
                round_us = {r.work.key: self.turn(sides[name], i).seconds * 1e6 for i, r in enumerate(self.rotations)}
                samples[name].append(round_us)
        return samples

    def block(self, incumbent: Side, candidate: Side) -> Block:
        """Four turns of every workload, ABBA or BAAB. A block that was disturbed is run again, once, unseen."""
        disturbed = False
        for _ in range(2):
            before = incumbent.disturbed_turns + candidate.disturbed_turns
            outer, inner = (incumbent, candidate) if self.rng.random() < 0.5 else (candidate, incumbent)
            turns: dict[int, list[list[Turn]]] = {id(incumbent): [], id(candidate): []}
            for index, rotation in enumerate(self.rotations):
                recorded = self._clock.recorded([incumbent, candidate], index, rotation)
                for each in turns.values():
                    each.append([])
                for side in (outer, inner, inner, outer):
                    turns[id(side)][-1].append(self.turn(side, index, recorded=recorded))
            disturbed = incumbent.disturbed_turns + candidate.disturbed_turns > before or self._clock.spoiled()
            if not disturbed:
                break
        fine = [[statistics.fmean(t.seconds for t in two) for two in turns[id(s)]] for s in (incumbent, candidate)]
        own = [[statistics.fmean(t.own_seconds for t in two) for two in turns[id(s)]] for s in (incumbent, candidate)]
        theirs, ours = (self._weighted(each) for each in fine)
        by_workload = {r.work.key: math.log(t / o) for r, t, o in zip(self.rotations, *fine, strict=True)}
        return Block(
            log_ratio=math.log(theirs / ours),
            by_workload=by_workload,
            incumbent_us=theirs * 1e6,
            candidate_us=ours * 1e6,
            own_log_ratio=math.log(self._weighted(own[0]) / self._weighted(own[1])) if own != fine else None,
            disturbed=disturbed,
        )

    def _weighted(self, seconds: Sequence[float]) -> float:
        """Seconds a forward pass, of seconds a call of each workload."""
        return sum(r.work.count * each for r, each in zip(self.rotations, seconds, strict=True))

    def conditions(self) -> Mapping[str, Any]:
        """What there is to say of the device while turns were timed."""
        return self._clock.conditions()

    def weighted_us(self, samples: Sequence[Mapping[str, float]]) -> float:
        """Microseconds a forward pass: each workload's median, weighted by its count."""
        return sum(r.work.count * statistics.median(s[r.work.key] for s in samples) for r in self.rotations)
