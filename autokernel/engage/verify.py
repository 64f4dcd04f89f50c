"""The proof: are the outputs right, does every kernel take part, and does the whole model get faster?

Kernels are added one at a time, the one that saves most first, and each must pay end to end: its lower bound in
interleaved whole forwards must be above zero, or it is left out. This is done once for a model whose rest stays as its
owner wrote it, and once for one whose rest goes to Inductor, for what pays beside eager need not pay beside Inductor.
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

from autokernel import registry
from autokernel.engage.apply import _Backend, check
from autokernel.engage.outputs import Agreement, Judge
from autokernel.engage.rewrite import Rewriter
from autokernel.engage.won import Run, Won
from autokernel.evaluate.decision import Interval
from autokernel.regions.model import LoadedModel
from autokernel.regions.race import Race, race

INPUT_SETS = 3
RECOMPILES = 128  # every set of kernels is a compilation of the same code
RESTS = {"ours": "eager", "ours+compile": "inductor"}


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
class Verification:
    """``steps`` and ``agreement`` by mode ("ours", "ours+compile"); ``race`` holds eager, compile and both modes."""

    steps: Mapping[str, Sequence[Step]]
    agreement: Mapping[str, Agreement]
    race: Race

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
            "forward_us": {name: self.race.median_us(name) for name in names},
            "samples_us": {name: list(self.race.times_us[name]) for name in names},
            "speedup": {n: {o: ratio(n, o) for o in ("eager", "compile") if o in names and o != n} for n in names},
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
        jumps = any(registry.load("problems", won.target.problem).jumps for won in run.won)
        self._judge = Judge(model, [self._rng.randrange(2**31) for _ in range(INPUT_SETS)], jumps=jumps)

    def verify(self, modes: Sequence[str] = tuple(RESTS), on_step: OnStep = lambda message: None) -> Verification:
        """The whole proof. Outputs that are wrong leave a kernel out, as a loss of speed does."""
        steps: dict[str, list[Step]] = {}
        contestants: dict[str, Callable[..., Any]] = {"eager": self.model.module}
        on_step("torch.compile of the whole model")
        contestants["compile"] = torch.compile(self.model.module, dynamic=False)
        agreement = {}
        for mode in modes:
            steps[mode] = self._add_one_at_a_time(mode, contestants["eager" if mode == "ours" else "compile"], on_step)
            chosen = [w for w in self.run.won if any(s.applied and s.target == w.target.name for s in steps[mode])]
            contestants[mode] = self.variant(chosen, mode)[0]
            agreement[mode] = self._judge.agreement(contestants[mode])
        on_step(f"{', '.join(contestants)}: against each other")
        return Verification(
            steps, agreement, self._race(contestants, self.effort.last_blocks, self.effort.last_least_s)
        )

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
        return torch.compile(module, backend=backend, dynamic=False), rewriter

    def _add_one_at_a_time(self, mode: str, alone: Callable[..., Any], on_step: OnStep) -> list[Step]:
        """Kernels in order of what they should save. The first is held against the model without any."""
        steps: list[Step] = []
        chosen: list[Won] = []
        before = alone
        for won in self.run.won:
            on_step(f"{mode}: {won.target.name}")
            call, rewriter = self.variant([*chosen, won], mode)
            agreement = self._judge.agreement(call)
            engaged = rewriter.report()[won.target.name]
            name, forwards = won.target.name, len(self._judge.inputs)
            facts: dict[str, Any] = {
                "regions": engaged.regions,
                "calls_a_forward": engaged.calls / forwards,
                "refused": dict(engaged.refused),
            }
            if not engaged.calls:
                why = "; ".join(engaged.refused) or "no region of this model is what it was won for"
                steps.append(Step(name, won.commit, False, f"not engaged: {why}", None, **facts))
                continue
            if not agreement.passed:
                reason = f"breaks the outputs: {agreement.worst} is off by {agreement.error:.2g}"
                steps.append(Step(name, won.commit, False, reason, None, **facts))
                continue
            trial = self._race({"before": before, "with": call}, self.effort.blocks, self.effort.least_s)
            gain = trial.gain("with", "before")
            pays = gain.low > 0
            reason = "pays end to end" if pays else "not shown to pay end to end"
            steps.append(Step(name, won.commit, pays, reason, gain, **facts))
            if pays:
                chosen.append(won)
                before = call
        return steps

    def _race(self, contestants: Mapping[str, Callable[..., Any]], blocks: int, least_s: float) -> Race:
        calls = {name: functools.partial(self.model.step, call) for name, call in contestants.items()}
        return race(calls, self.model.device, blocks, self._rng, least_s)
