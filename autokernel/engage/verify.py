"""The proof: are the outputs right, does every kernel take part, and does the whole model get faster?

Kernels are added one at a time, the one that saves most first, and each must pay end to end: its lower bound in
interleaved whole forwards must be above zero, or it is left out. This is done once for a model whose rest stays as its
owner wrote it, once for one whose rest goes to Inductor, and on a GPU once for one that CUDA graphs replay, for what
pays in one need not pay in another. A mode that cannot be had (of a model that no graph can record, say) is told with
its reason, and costs the others nothing.
Everything is timed in one process: what differs between processes (where memory lies) is not in the intervals.
For a model that is trained the gradients must be right, too, and what is timed is a step: forward, loss, backward.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch._dynamo.utils import counters

from autokernel import registry
from autokernel.engage.apply import _Backend, check
from autokernel.engage.outputs import Agreement, Judge
from autokernel.engage.rewrite import Rewriter
from autokernel.engage.won import MODES, Run, Won
from autokernel.evaluate.decision import Interval
from autokernel.proof import BESIDE, NAMES
from autokernel.regions.model import LoadedModel
from autokernel.regions.race import Race, race
from autokernel.types import AutokernelError

INPUT_SETS = 3
RECOMPILES = 128  # every set of kernels is a compilation of the same code
RESTS = {mode: rest for rest, mode in MODES.items()}
UNRECORDED = 2  # calls of a kind that a graph's replay comes after: the one that warms up, the one that is recorded
REFUSALS = (RuntimeError, NotImplementedError, AssertionError)  # Dynamo's and CUDA's are among them


@dataclasses.dataclass(frozen=True)
class Effort:
    """Interleaved blocks, and seconds at least, of one kernel's trial and of the last comparison."""

    blocks: int
    least_s: float
    last_blocks: int
    last_least_s: float


THOROUGH = Effort(12, 2.0, 20, 6.0)
QUICK = Effort(6, 0.2, 8, 1.0)

OnStep = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Step:
    """One kernel's trial: what the model gains by it end to end, beside the kernels that were added before."""

    target: str
    commit: str
    applied: bool
    reason: str
    gain: Interval | None
    regions: int = 0
    calls_a_forward: float = 0.0
    refused: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        gain = {k: math.exp(v) for k, v in dataclasses.asdict(self.gain).items()} if self.gain else None
        return {**dataclasses.asdict(self), "gain": gain}


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a mode, or what it is held against, could not be had: the kind of error, and its first line."""

    error: str
    reason: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        error = getattr(error, "inner_exception", None) or error  # Dynamo wraps what its backend raised
        return cls(type(error).__name__, (str(error).strip().splitlines() or ["no reason was given"])[0][:200])

    def to_json(self) -> dict[str, str]:
        return dataclasses.asdict(self)


class NotRecorded(RuntimeError):
    """PyTorch left CUDA graphs aside for this program."""


@dataclasses.dataclass(frozen=True)
class Verification:
    """``steps`` and ``agreement`` by mode ("ours", "ours+compile", "ours+graphs"); ``race`` holds what each mode is
    held against ("eager", "compile", "compile+graphs") and the modes; ``failed`` what could not be had.
    """

    steps: Mapping[str, Sequence[Step]]
    agreement: Mapping[str, Agreement]
    race: Race
    failed: Mapping[str, Failure] = dataclasses.field(default_factory=dict)

    @property
    def best(self) -> str:
        """The fastest of what the owner may choose."""
        return min(self.race.times_us, key=self.race.median_us)

    def to_json(self) -> dict[str, Any]:
        names = list(self.race.times_us)

        def ratio(name: str, over: str) -> dict[str, float]:
            return {k: math.exp(v) for k, v in dataclasses.asdict(self.race.gain(name, over)).items()}

        return {
            "steps": {mode: [s.to_json() for s in steps] for mode, steps in self.steps.items()},
            "outputs": {mode: each.to_json() for mode, each in self.agreement.items()},
            "failed": {name: each.to_json() for name, each in self.failed.items()},
            "forward_us": {name: self.race.median_us(name) for name in names},
            "samples_us": {name: list(self.race.times_us[name]) for name in names},
            "speedup": {n: {o: ratio(n, o) for o in BESIDE.values() if o in names and o != n} for n in names},
            "best": self.best,
        }


class Verifier:
    """Variants of one model, made of one set of weights."""

    def __init__(self, model: LoadedModel, run: Run, seed: int = 0, *, effort: Effort = THOROUGH) -> None:
        check(model.module, run)
        torch._dynamo.config.recompile_limit = RECOMPILES
        torch._dynamo.config.accumulated_recompile_limit = 16 * RECOMPILES
        self.model, self.run, self.effort = model, run, effort
        self._rng = random.Random(seed)
        self._skips = _skips()
        jumps = any(registry.load("problems", won.target.problem).jumps for won in run.won)
        self._judge = Judge(model, [self._rng.randrange(2**31) for _ in range(INPUT_SETS)], jumps=jumps)

    @property
    def modes(self) -> tuple[str, ...]:
        """Those of this device. Training has no graphs: a graph's outputs do not outlive the next forward, and a step's
        backward reads them.
        """
        graphs = self.model.device.type == "cuda" and not self.model.train
        return tuple(mode for mode in RESTS if graphs or RESTS[mode] != "graphs")

    def verify(self, modes: Sequence[str] = (), on_step: OnStep = lambda message: None) -> Verification:
        """The whole proof, in the modes that are named (default: all of this device). Outputs that are wrong leave a
        kernel out, as a loss of speed does. Of a run that won nothing only what there is without kernels is timed.
        Raises AutokernelError for a mode that this device or a training step does not have.
        """
        for mode in set(modes) - set(self.modes):
            raise AutokernelError(
                f"mode '{mode}' needs a GPU and a model that is not trained; it is {self._conditions()}"
            )
        steps: dict[str, list[Step]] = {}
        agreement: dict[str, Agreement] = {}
        failed: dict[str, Failure] = {}
        contestants: dict[str, Callable[..., Any]] = {"eager": self.model.module}
        for name in (BESIDE[mode] for mode in self.modes if mode != "ours"):
            on_step(f"{NAMES[name]} of the whole model")
            try:
                contestants[name] = self._without(name)
            except REFUSALS as error:
                failed[name] = Failure.of(error)
        for mode in (modes or self.modes) if self.run.won else ():
            if BESIDE[mode] in failed:
                failed[mode] = failed[BESIDE[mode]]
                continue
            try:
                steps[mode] = self._add_one_at_a_time(mode, contestants[BESIDE[mode]], on_step)
                applied = {step.target for step in steps[mode] if step.applied}
                call = self.variant([w for w in self.run.won if w.target.name in applied], mode)[0]
                self._settle(call, mode)
                contestants[mode], agreement[mode] = call, self._judge.agreement(call)
            except REFUSALS as error:
                steps.pop(mode, None)
                failed[mode] = Failure.of(error)
        on_step(f"{', '.join(contestants)}: against each other")
        race = self._race(contestants, self.effort.last_blocks, self.effort.last_least_s)
        return Verification(steps, agreement, race, failed)

    def diagnose(self, on_step: OnStep = lambda message: None) -> Mapping[str, Agreement]:
        """Each kernel alone in the model: which one breaks the outputs."""
        found = {}
        for won in self.run.won:
            on_step(f"{won.target.name} alone")
            found[won.target.name] = self._judge.agreement(self.variant([won], "ours")[0])
        return found

    def variant(self, won: Sequence[Won], mode: str) -> tuple[Callable[..., Any], Rewriter]:
        """The model with these kernels, as a callable of its own; the model itself is left alone."""
        module = self.model.module
        rewriter = Rewriter(won, self.run.device, {id(b) for b in module.buffers()})
        backend: Any = _Backend(rewriter, RESTS[mode])  # type: ignore[arg-type]
        compiled = torch.compile(module, backend=backend, dynamic=False)
        return (_stepped(compiled) if RESTS[mode] == "graphs" else compiled), rewriter

    def _without(self, name: str) -> Callable[..., Any]:
        """The model compiled (now, not at its first call) without any kernel of ours, with CUDA graphs or without."""
        if name == "compile":
            compiled: Callable[..., Any] = torch.compile(self.model.module, dynamic=False)
            self.model.step(compiled)
            return compiled
        compiled = _stepped(torch.compile(self.model.module, dynamic=False, mode="reduce-overhead"))
        self._settle(compiled, "ours+graphs")
        return compiled

    def _settle(self, call: Callable[..., Any], mode: str) -> None:
        """Under CUDA graphs: makes the calls after which every call is a replay. Raises NotRecorded where none will be,
        for PyTorch has left graphs aside since it was last asked.
        """
        if RESTS[mode] != "graphs":
            return
        for inputs in self._judge.inputs:
            for _ in range(UNRECORDED):
                with self.model.conditions():
                    call(*inputs)
        before, self._skips = self._skips, _skips()
        if self._skips > before:
            raise NotRecorded(
                "PyTorch cannot record this model as CUDA graphs: TORCH_LOGS=perf_hints,cudagraphs says why"
            )

    def _add_one_at_a_time(self, mode: str, alone: Callable[..., Any], on_step: OnStep) -> list[Step]:
        """Kernels in order of what they should save. The first is held against the model without any."""
        steps: list[Step] = []
        chosen: list[Won] = []
        before = alone
        for won in self.run.won:
            on_step(f"{mode}: {won.target.name}")
            step, call = self._trial(won, chosen, mode, before)
            steps.append(step)
            if step.applied:
                chosen.append(won)
                before = call
        return steps

    def _trial(
        self, won: Won, chosen: Sequence[Won], mode: str, before: Callable[..., Any]
    ) -> tuple[Step, Callable[..., Any]]:
        """One kernel beside those that were chosen, against the model with those alone; and the model with it."""
        name = won.target.name
        call, rewriter = self.variant([*chosen, won], mode)
        forwards = len(self._judge.inputs)
        try:
            if RESTS[mode] == "graphs":  # a replay calls no Python: what counts is the call that warms up
                self.model.step(call)
                forwards, calls = 1, rewriter.report()[name].calls
                self._settle(call, mode)
                agreement = self._judge.agreement(call)
            else:
                agreement = self._judge.agreement(call)
                calls = rewriter.report()[name].calls
        except REFUSALS as error:
            told = Failure.of(error)
            return Step(name, won.commit, False, f"does not run here: {told.error}: {told.reason}", None), call
        engaged = rewriter.report()[name]
        facts: dict[str, Any] = {
            "regions": engaged.regions,
            "calls_a_forward": calls / forwards,
            "refused": dict(engaged.refused),
        }
        if not engaged.regions or not calls:
            why = "; ".join(engaged.refused) or "no region of this model is what it was won for"
            return Step(name, won.commit, False, f"not engaged: {why}", None, **facts), call
        if not agreement.passed:
            reason = f"breaks the outputs: {agreement.worst} is off by {agreement.error:.2g}"
            return Step(name, won.commit, False, reason, None, **facts), call
        trial = self._race({"before": before, "with": call}, self.effort.blocks, self.effort.least_s)
        gain = trial.gain("with", "before")
        reason = "pays end to end" if gain.low > 0 else "not shown to pay end to end"
        return Step(name, won.commit, gain.low > 0, reason, gain, **facts), call

    def _race(self, contestants: Mapping[str, Callable[..., Any]], blocks: int, least_s: float) -> Race:
        calls = {name: functools.partial(self.model.step, call) for name, call in contestants.items()}
        return race(calls, self.model.device, blocks, self._rng, least_s)

    def _conditions(self) -> str:
        return f"on {self.model.device}{', trained' if self.model.train else ''}"


def _stepped(call: Callable[..., Any]) -> Callable[..., Any]:
    """Each call as a step of its own: what is replayed may write over the outputs of the last one."""

    def step(*inputs: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return call(*inputs)

    return step


def _skips() -> int:
    """How many graphs PyTorch has left unrecorded in this process."""
    return int(counters["inductor"]["cudagraph_skips"])
