"""How a turn of a runner is timed on a CPU, and how on a GPU; and how its outputs are then read.

On a CPU the runner stands still while its inputs are written, and the clock starts as it resumes. On a GPU the inputs
lie in device memory of the judge, which writes them anew there. What the runner does in its turn was recorded before as
a CUDA graph: none of its code on the host runs while the clock does, and the figure is the time of its kernels, launch
overhead left out. Then the cache is flushed, and the clock starts. A kernel that had been left running, so as to see
the new inputs early, or to finish late, would hold up a small kernel of the judge's own that it runs right after: the
device must be idle when the runner says that it is done. Outputs are read in place through CUDA's inter-process
handles, which were named when the graph was recorded.

There are two clocks on a GPU. The *fine* one is made of CUDA events around the replay: it tells 0.3 %, and belongs to
the runner, which a candidate could have rewritten. The judge's *own* takes in the request and the change from process
to process, 0.4 to 1 ms which vary by 0.1, and cannot be deceived. The fine one says how sure a gain is; the own one has
to confirm it (decision.py), and the fine one may never say that a turn was more than REQUEST_LIMIT_S shorter.

What cannot be recorded (it waits for the device, say) is timed by its calls, launches and all, and so is its rival.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from autokernel.evaluate import nvml
from autokernel.evaluate.correctness import Expected
from autokernel.evaluate.device_memory import reset_persisting_cache
from autokernel.evaluate.freezer import NotStill, read_memory
from autokernel.evaluate.outputs import lying
from autokernel.evaluate.pool import RunnerFailed
from autokernel.evaluate.rotation import Rotation
from autokernel.evaluate.sides import Recording, Side, Turn
from autokernel.evaluate.stages import failure_status
from autokernel.types import Status

TURN_LIMIT_S = 60.0
SETTLE_S = 2e-3  # before a turn on a CPU: idle threads of whoever ran last fall asleep
DISTURBED_SHARE = 0.05  # a turn that was without a processor for more than this share of its time is disturbed,
REQUEST_S = 3e-4  # and for longer than a request takes
FLUSHED = 2.0  # last-level caches that are overwritten before a turn on a GPU
REQUEST_LIMIT_S = 1.5e-3  # a request to a GPU's runner costs 0.4 to 1 ms: more than this is counted as work
SPIN_S = 0.1  # for so long at most either side stays awake for the other
BUSY_S = 2e-4  # a small kernel right after a turn takes 0.16 to 0.36 ms on an H200, with two to nine processes on it;
RIVAL_TURNS = 32  # busy is so much more than the median after so many turns of rivals: a candidate has no say in it
STRANGE_S = 1e-3  # and before there were LEAST_RIVAL_TURNS of them, this
LEAST_RIVAL_TURNS = 4
LOOK_EVERY_S = 0.3  # at the device's state, at the most
PATIENCE = 3  # turns in a row that end with a busy device


class CpuClock:
    """Turns on a CPU. ``on`` says whether a defence is on."""

    def __init__(self, rng: random.Random, on: Callable[[str], bool]) -> None:
        self._rng = rng
        self._on = on

    def recorded(self, sides: Sequence[Side], index: int, rotation: Rotation) -> bool:
        """Nothing is: a turn is made of calls."""
        return False

    def spoiled(self) -> bool:
        """Whether the device is in no state to be timed: on a CPU a turn itself tells that."""
        return False

    def conditions(self) -> Mapping[str, Any]:
        """What there is to say of the device while turns were timed, by name."""
        return {}

    def turn(self, side: Side, index: int, rotation: Rotation, others: Iterable[Side], *, recorded: bool) -> Turn:
        """One turn; the runner stands still before and after it. Raises RunnerFailed, Failed or RivalFailed."""
        ids = side.ids[index]
        first = self._rng.randrange(len(ids) - rotation.calls + 1)
        order = self._rng.sample(range(first, first + rotation.calls), rotation.calls)
        spare = [i for i in range(len(ids)) if not first <= i < first + rotation.calls]
        warm = [ids[self._rng.choice(spare)]] if rotation.calls > 1 else []  # a long call is its own warm-up
        if self._on("still"):
            hold(others)
        if self._on("fresh") and not self._on("hidden"):
            rotation.rewrite(first, rotation.calls, self._rng)
        side.handle.ask("time", {"order": warm, "move": True}, deadline_s=TURN_LIMIT_S)
        if self._on("hidden"):
            self._hold(side)
            if self._on("fresh"):
                rotation.rewrite(first, rotation.calls, self._rng)
        time.sleep(SETTLE_S)
        ran_ns = side.handle.ran_ns()
        start = time.perf_counter()
        answer = side.handle.ask("time", {"order": [ids[i] for i in order]}, deadline_s=TURN_LIMIT_S)
        seconds = time.perf_counter() - start
        self._hold(side)
        side.turns += 1
        side.disturbed_turns += disturbed(ran_ns, side.handle.ran_ns(), seconds)
        claim = claimed(answer, seconds)
        side.claims.append(claim / seconds)
        if not self._on("clock"):
            seconds = claim
        seen = self._on("committed") and self._on("still")
        return Turn(seconds / rotation.calls, seconds / rotation.calls, tuple(order), answer, seen)

    def output(self, side: Side, turn: Turn, which: int, want: Expected, name: str) -> torch.Tensor:
        """The output of one call of the last turn: read out of the stopped runner, or asked for."""
        if turn.seen:
            pid = side.handle.freezer.freeze(alone=not side.trusted)

            def read(address: int, nbytes: int) -> torch.Tensor:
                return torch.frombuffer(read_memory(pid, address, nbytes), dtype=torch.uint8)

            try:
                out = lying(read, turn.answer, which, want, name, apart=self._on("all-kept"))
                side.outputs = "read"
                return out
            except PermissionError:  # the kernel forbids it
                pass
        side.outputs = "asked"
        return side.exam.fetch(want, Status.IMPLAUSIBLE, name, which)

    def _hold(self, side: Side) -> None:
        if self._on("still"):
            hold([side])


class CudaClock:
    """Turns on a GPU. ``on`` says whether a defence is on; ``cache_bytes`` is the size of the last-level cache."""

    def __init__(self, device: str, cache_bytes: int, rng: random.Random, on: Callable[[str], bool]) -> None:
        self._device = torch.device(device)
        self._rng = rng
        self._on = on
        self._flush = torch.empty(int(FLUSHED * max(cache_bytes, 1 << 20)), dtype=torch.uint8, device=device)
        self._small = torch.zeros(1, device=device)
        self._watch = nvml.Watch(device, str(torch.cuda.get_device_properties(self._device).uuid))
        self._seen: nvml.Conditions | None = None
        self._looked = 0.0
        # Seconds of a small kernel after rivals' turns, by how many runners the device then had: nine cost it twice.
        self._after_rivals: defaultdict[int, deque[float]] = defaultdict(lambda: deque(maxlen=RIVAL_TURNS))

    def recorded(self, sides: Sequence[Side], index: int, rotation: Rotation) -> bool:
        """Whether all these runners could record their calls on this workload. Those that have yet to do it do so now,
        side by side. Raises RunnerFailed, Failed or RivalFailed.
        """
        asked: dict[int, Recording] = {}
        for side in sides:
            known = side.recordings.get(index)
            if known is None or len(known.order) != rotation.calls:
                order = tuple(self._rng.sample(range(rotation.calls), rotation.calls))
                ids = tuple(side.ids[index][i] for i in order)
                side.handle.post("record", {"key": index, "order": list(ids)})
                asked[id(side)] = Recording(order, {})
        for side in sides:
            if id(side) in asked:
                try:
                    answer = side.handle.wait("record", TURN_LIMIT_S)
                except RunnerFailed as error:
                    raise failure(side, error, f"timing {rotation.work.key}") from None
                side.keep(index, dataclasses.replace(asked[id(side)], answer=answer))
        return all(side.recordings[index].recorded for side in sides)

    def spoiled(self) -> bool:
        """Whether clocks were being taken away, or another program was on the device, at the last look at it."""
        if time.monotonic() - self._looked > LOOK_EVERY_S:  # a look takes 4 to 20 ms
            self._seen, self._looked = self._watch.look(), time.monotonic()
        return self._seen is not None and bool(self._seen.throttled or self._seen.foreign)

    def conditions(self) -> Mapping[str, Any]:
        """How the device was when this was last looked at, for a verdict's environment."""
        if self._seen is None:
            return {"gpu": f"unknown: {self._watch.missing}"} if self._watch.missing else {}
        return {"gpu": {k: v for k, v in dataclasses.asdict(self._seen).items() if k != "listed"}}

    def turn(self, side: Side, index: int, rotation: Rotation, others: Iterable[Side], *, recorded: bool) -> Turn:
        """One turn: of what was recorded, or of calls. Raises RunnerFailed, Failed or RivalFailed."""
        present = [side, *(each for each in others if not each.handle.closed)]
        if self._on("still"):
            hold(present[1:])
        after_rivals = self._after_rivals[len(present)]
        for last in (False,) * (PATIENCE - 1) + (True,):
            turn, busy = self._once(side, index, rotation, after_rivals, recorded=recorded)
            side.turns += 1
            if not busy or not self._on("committed"):
                return turn
            side.disturbed_turns += 1
            if last and not self.spoiled() and self._idle_when_alone(side, busy_s(after_rivals)):
                raise side.failed(
                    Status.IMPLAUSIBLE, "the device was still at work when the candidate said that it was done"
                )
        return turn

    def _once(
        self, side: Side, index: int, rotation: Rotation, after_rivals: deque[float], *, recorded: bool
    ) -> tuple[Turn, bool]:
        ids = side.ids[index]
        order = side.recordings[index].order if recorded else tuple(self._rng.sample(range(len(ids)), rotation.calls))
        request, fields = ("replay", {"key": index}) if recorded else ("time", {"order": [ids[i] for i in order]})
        side.handle.ask("ready", {"spin_s": SPIN_S}, deadline_s=TURN_LIMIT_S)
        if self._on("fresh"):
            rotation.rewrite(0, rotation.calls if recorded else len(ids), self._rng)
        self._flush.zero_()
        reset_persisting_cache()
        torch.cuda.synchronize(self._device)
        start = time.perf_counter()
        answer = side.handle.ask(request, fields, deadline_s=TURN_LIMIT_S, spin_s=SPIN_S)
        own = time.perf_counter() - start
        small = self._small_kernel_s()
        busy = small > busy_s(after_rivals)
        if side.rival:
            after_rivals.append(small)
        if self._on("still"):
            hold([side])
        claim = claimed(answer, own)
        side.claims.append(claim / own)
        believed = min(own, max(claim, own - REQUEST_LIMIT_S)) if recorded else own
        fine = believed if self._on("clock") else claim
        told = side.recordings[index].answer if recorded else answer
        seen = recorded and self._on("committed")
        return Turn(fine / rotation.calls, own / rotation.calls, order, told, seen), busy

    def _small_kernel_s(self) -> float:
        start = time.perf_counter()
        self._small.add_(1)
        torch.cuda.synchronize(self._device)
        return time.perf_counter() - start

    def _idle_when_alone(self, side: Side, limit_s: float) -> bool:
        """Whether the device is idle while this runner is on hold and has had time to finish: then what kept it busy
        was the runner's, not another program's. A kernel of the runner's that does not end keeps it busy, too: such a
        one is found by the deadline of the next turn.
        """
        hold([side])
        time.sleep(0.05)
        return min(self._small_kernel_s() for _ in range(3)) < limit_s

    def output(self, side: Side, turn: Turn, which: int, want: Expected, name: str) -> torch.Tensor:
        """The output of one call of the last turn: read where it lies on the device, or asked for."""
        if turn.seen:
            side.outputs = "read"
            return lying(
                lambda address, nbytes: side.read_device(turn.answer, address, nbytes),
                turn.answer, which, want, name, apart=self._on("all-kept"),
            )  # fmt: skip
        side.outputs = "asked"
        return side.exam.fetch(want, Status.IMPLAUSIBLE, name, which)


Clock = CpuClock | CudaClock


def clock_of(device: str, cache_bytes: int, rng: random.Random, on: Callable[[str], bool]) -> Clock:
    return CpuClock(rng, on) if device == "cpu" else CudaClock(device, cache_bytes, rng, on)


def hold(sides: Iterable[Side]) -> None:
    """Stop these runners, until they are asked again. Raises Failed, or RivalFailed."""
    for side in sides:
        if not side.handle.closed:
            try:
                side.handle.freezer.freeze(alone=not side.trusted)
            except NotStill as error:
                raise side.failed(Status.IMPLAUSIBLE, str(error)) from None


def busy_s(after_rivals: Sequence[float]) -> float:
    """From how many seconds of a small kernel on the device counts as busy, given what it took after rivals' turns."""
    if len(after_rivals) < LEAST_RIVAL_TURNS:
        return STRANGE_S
    return statistics.median(after_rivals) + BUSY_S


def claimed(answer: Mapping[str, Any], own: float) -> float:
    """Seconds that a runner says its turn took; where it does not say, those of the judge's clock."""
    told = answer.get("claim_ns")
    return own if told is None else float(told) * 1e-9


def failure(side: Side, error: RunnerFailed, what: str) -> Exception:
    """What it means that this runner did not answer as it should."""
    return side.failed(failure_status(error, Status.CRASH), f"{what}: {error.reason}", error.log_tail)


def disturbed(before_ns: int | None, after_ns: int | None, seconds: float) -> bool:
    """Whether the thread that makes the calls was without a processor for too much of a turn.

    Told by the time it ran: what Linux counts as waiting includes time in which a thread stood still.
    """
    if before_ns is None or after_ns is None:
        return False
    return seconds - (after_ns - before_ns) * 1e-9 > DISTURBED_SHARE * seconds + REQUEST_S
