"""The five stages of correctness: smoke, shapes, stability, determinism, edges. The first failure ends the verdict.

Inputs are drawn from a seed that exists only after the candidate was loaded; the candidate sees their bytes, never
the seed, the oracle's output or the tolerances.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from autokernel.evaluate.cases import STAGES, Case, plan
from autokernel.evaluate.correctness import Expected, expected, mismatch
from autokernel.evaluate.memory import InputSets, SharedMemory, relaid, settle, shared_memory, strided_view
from autokernel.evaluate.pool import Handle, RunnerFailed
from autokernel.types import Problem, Scalar, Status, Workload

CALL_S = 20.0
SMOKE_S = 10.0
POISONS = (0x5A, 0xC3)
LEAST_BYTES = {"cpu": 1 << 20, "cuda": 64 << 20}  # of the memory of cases: to map it takes 40 ms on a GPU

_oracle = threading.Lock()  # one at a time: of attention each takes gigabytes of the device
OnStage = Callable[[str, int, int], None]  # (stage, cases done, of how many)


class Failed(Exception):
    """A candidate did not pass: the status and the reason of its verdict."""

    def __init__(self, status: Status, reason: str, log_tail: str = "") -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.log_tail = log_tail


class Examination:
    """Runs cases of one problem through one runner."""

    def __init__(
        self,
        problem: Problem,
        handle: Handle,
        device: str,
        aten: frozenset[str] | None,
        off: frozenset[str] = frozenset(),
    ) -> None:
        self.problem = problem
        self.off = off  # defences that a test has switched off
        self.handle = handle
        self.device = device
        self.where = torch.device(device)
        self.aten = aten
        self.errors: dict[str, float] = {}
        self.precisions: set[str] = set()
        self._next_id = 0
        self._input: SharedMemory | None = None  # of one case; kept for the next that fits
        self._output: SharedMemory | None = None
        self._mapped: SharedMemory | None = None  # what the runner was last shown

    def run_all(
        self,
        workloads: tuple[Workload, ...],
        seed: int,
        on_stage: OnStage = lambda *_: None,
        helpers: Callable[[], Sequence[Examination]] = tuple,
        dismiss: Callable[[Examination], None] = lambda _: None,
    ) -> None:
        """All five stages, in order of cost. ``helpers`` starts further runners of the same file, which after the smoke
        stage take their share of all others' cases; ``dismiss`` is told of each, by its own thread, when there are none
        left for it. Raises Failed: the first failure in the order of the cases.
        """
        rng = random.Random(seed)
        planned = plan(self.problem, self.where.type, workloads, rng, self.off)
        cases = [(stage, case, rng.getrandbits(60)) for stage in STAGES for case in planned[stage]]
        share_out([self], [each for each in cases if each[0] == "smoke"], on_stage)
        others = helpers()
        share_out([self, *others], [each for each in cases if each[0] != "smoke"], on_stage, dismiss)
        for other in others:
            self.precisions |= other.precisions
            self.errors |= {s: max(e, self.errors.get(s, 0.0)) for s, e in other.errors.items()}

    def close(self) -> None:
        for memory in (self._input, self._output):
            if memory is not None:
                memory.close()
        self._input = self._output = None

    def check(self, stage: str, case: Case, seed: int) -> None:
        """Run one case; on determinism three times, bitwise. Raises Failed."""
        status = Status[stage.upper()]
        generator = torch.Generator(self.where).manual_seed(seed)
        with torch.device(self.device):
            tensors = self._laid_out(case, case.make(case.dims, case.dtype, generator))
        flops = self.problem.flops(Workload(case.dims, case.dtype, scalars=case.scalars))
        with _oracle:
            want = expected(self.problem, tensors, case.scalars, flops, self.device)
        self.precisions.add(want.precision)
        inputs = InputSets([tensors], sealed="sealed" not in self.off, place=self._input_memory)
        try:
            (key,) = self.show(inputs, case.scalars)
            if stage == "determinism":
                outs = []
                for poison in (POISONS[0], POISONS[1], 0):
                    self.handle.ask("poison", {"byte": poison})
                    outs.append(self.call(key, want, status, case.name).clone())
                if not all(torch.equal(bits(out), bits(outs[0])) for out in outs[1:]):
                    raise Failed(status, f"{case.name}: three runs on the same inputs differ bitwise")
            else:
                out = self.call(key, want, status, case.name, audit="audit" not in self.off)
                random_inputs = case.random_inputs and stage == "shapes" and "rms" not in self.off
                tolerance = self.problem.tolerances[case.dtype]
                ratio, wrong = mismatch(out, want, tolerance, statistical=random_inputs)
                self.errors[stage] = max(self.errors.get(stage, 0.0), min(ratio, 1e9))
                if wrong:
                    raise Failed(status, f"{case.name}: {wrong}")
            self.handle.ask("forget", {"ids": [key]})
        except RunnerFailed as failure:
            raise Failed(failure_status(failure, status), f"{case.name}: {failure.reason}", failure.log_tail) from None
        finally:
            inputs.close()

    def show(self, inputs: InputSets, scalars: Mapping[str, Scalar]) -> list[int]:
        """Let the runner map sets of inputs; the ids under which it knows them."""
        ids = list(range(self._next_id, self._next_id + len(inputs.tensors)))
        self._next_id += len(ids)
        message = {
            "ids": ids,
            "nbytes": inputs.arena.nbytes,
            "set_bytes": inputs.set_bytes,
            "layout": inputs.layout,
            "scalars": dict(scalars),
            "sealed": inputs.sealed,
        }
        self.handle.ask("inputs", message, [] if inputs.arena is self._mapped else [inputs.arena.fd])
        self._mapped = inputs.arena
        return ids

    def call(self, key: int, want: Expected, status: Status, name: str, *, audit: bool = False) -> torch.Tensor:
        """One call's output, over poisoned output memory. Raises Failed for a wrong shape, dtype or device."""
        arena = self._output_arena(want.oracle.numel() * want.dtype.itemsize)
        arena.bytes.fill_(POISONS[0])
        settle(self.where)
        limit = SMOKE_S if status is Status.SMOKE else CALL_S
        answer = self.handle.ask("call", {"id": key, "audit": audit}, deadline_s=limit)
        if audit and self.aten is not None:
            extra = sorted(set(map(str, answer.get("ops", []))) - self.aten)
            if extra:
                raise Failed(Status.POLICY, f"the call runs PyTorch operations that compute: {', '.join(extra[:5])}")
        return received(answer, arena.bytes, want, status, name)

    def fetch(self, want: Expected, status: Status, name: str, which: int) -> torch.Tensor:
        """The output of one call of the last timed turn, as the runner hands it out."""
        arena = self._output_arena(want.oracle.numel() * want.dtype.itemsize)
        arena.bytes.fill_(POISONS[1])
        settle(self.where)
        answer = self.handle.ask("fetch", {"which": which}, deadline_s=CALL_S)
        return received(answer, arena.bytes, want, status, name)

    def _input_memory(self, nbytes: int) -> SharedMemory:
        if self._input is None or self._input.nbytes < nbytes:
            if self._input is not None:
                self._input.close()
            least = LEAST_BYTES[self.where.type]
            self._input = shared_memory(max(nbytes, least), self.where, read_only="sealed" not in self.off)
        return self._input

    def _output_arena(self, nbytes: int) -> SharedMemory:
        if self._output is None or self._output.nbytes < nbytes:
            if self._output is not None:
                self._output.close()
            self._output = shared_memory(max(nbytes, LEAST_BYTES[self.where.type]), self.where, read_only=False)
            self.handle.ask("output", {"nbytes": self._output.nbytes}, [self._output.fd])
        return self._output

    def _laid_out(self, case: Case, tensors: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Tensors with the case's strides; {"*": ()} asks for odd ones: padded rows, or a transposed matrix."""
        if "*" in case.strides:
            return tuple(odd_strides(t, i) for i, t in enumerate(tensors))
        named = zip(self.problem.inputs, tensors, strict=True)
        return tuple(relaid(t, case.strides[n]) if n in case.strides else t for n, t in named)


def share_out(
    team: Sequence[Examination],
    cases: Sequence[tuple[str, Case, int]],
    on_stage: OnStage,
    dismiss: Callable[[Examination], None] = lambda _: None,
) -> None:
    """Check cases, each with its stage and its seed, by several runners of one file, each of which takes the next case
    when it is done with one. ``on_stage`` is told of each case as it is taken: of its stage, of which the last cases
    may still be at work. ``dismiss`` is told of each but the first of the team when it has nothing left to do. Raises
    the first Failed in their order.
    """
    sizes = Counter(stage for stage, _, _ in cases)
    firsts = {stage: position for position, (stage, _, _) in reversed(list(enumerate(cases)))}
    positions = iter(range(len(cases)))
    failures: dict[int, Failed] = {}
    taking = threading.Lock()

    def tell(position: int) -> None:
        stage = cases[position][0]
        on_stage(stage, position - firsts[stage], sizes[stage])

    def work(member: Examination) -> None:
        with torch.no_grad():  # a thread's own setting
            while True:
                with taking:
                    if failures or (position := next(positions, None)) is None:
                        return  # what has begun, all that comes before a failure among it, is finished by others
                    tell(position)
                try:
                    member.check(*cases[position])
                except Failed as failure:
                    failures[position] = failure
                    return

    def helped(member: Examination) -> None:
        work(member)
        if member is not team[0]:
            dismiss(member)

    if len(team) == 1:
        work(team[0])  # here: another thread's operations would start processor threads of their own
    else:
        with ThreadPoolExecutor(len(team)) as pool:
            list(pool.map(helped, team))  # raises what is no verdict
    if failures:
        tell(min(failures))
        raise failures[min(failures)]


def odd_strides(tensor: torch.Tensor, position: int) -> torch.Tensor:
    """The same values at other strides: even positions get padded rows, odd ones their last two dims swapped."""
    if tensor.dim() < 2:
        return relaid(tensor, (2,)) if tensor.dim() == 1 else tensor
    if position % 2:
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    stride, step = [1], tensor.shape[-1] + 3
    for size in reversed(tensor.shape[:-1]):
        stride.insert(0, step)
        step *= size
    return relaid(tensor, stride)


def received(
    answer: Mapping[str, object], raw: torch.Tensor, want: Expected, status: Status, name: str
) -> torch.Tensor:
    """The output that an answer describes, copied out of the shared memory: what it is no longer can be changed."""
    described(answer, want, status, name)
    shape = list(want.oracle.shape)
    return strided_view(raw, 0, shape, contiguous_stride(shape), want.dtype).clone()


def described(answer: Mapping[str, object], want: Expected, status: Status, name: str) -> None:
    """The answer must describe an output of the right shape, dtype and device. Raises Failed."""
    shape, device = list(want.oracle.shape), want.oracle.device.type
    dtype = str(want.dtype).removeprefix("torch.")
    said = (answer.get("shape"), answer.get("dtype"), answer.get("device"))
    if said != (shape, dtype, device):
        expectation = f"shape {shape}, {dtype}, on {device}"
        raise Failed(status, f"{name}: expected {expectation}; got shape {said[0]}, {said[1]}, on {said[2]}")


def contiguous_stride(shape: list[int]) -> list[int]:
    stride: list[int] = []
    step = 1
    for size in reversed(shape):
        stride.insert(0, step)
        step *= max(size, 1)
    return stride


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def failure_status(failure: RunnerFailed, otherwise: Status) -> Status:
    """The verdict's status for a runner that did not answer as it should."""
    return {"late": Status.TIMEOUT, "died": Status.CRASH}.get(failure.kind, otherwise)
