"""What verification.json says, as a person reads it: measured whole forwards beside the projection, by kernel."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autokernel import amdahl
from autokernel.run import history
from autokernel.run.history import Row
from autokernel.types import AutokernelError, Target

FILE = "verification.json"
NAMES = {
    "eager": "eager",
    "compile": "torch.compile",
    "compile+graphs": "CUDA graphs",  # torch.compile(mode="reduce-overhead")
    "ours": "ours",
    "ours+compile": "ours + torch.compile",
    "ours+graphs": "ours + CUDA graphs",
}
BESIDE = {"ours": "eager", "ours+compile": "compile", "ours+graphs": "compile+graphs"}  # what a mode is held against


@dataclasses.dataclass(frozen=True)
class Proof:
    """One verification. ``speedup`` maps a mode to {"eager" | "compile": {"mean", "low", "high"}}, ratios above 1 where
    the mode is faster; ``projection`` holds Amdahl's figure for all kernels, for those that are applied, and for those
    with the time between kernels counted in; ``failed`` what could not be had: {"error": its kind, "reason": a line}.
    """

    forward_us: Mapping[str, float]
    speedup: Mapping[str, Mapping[str, Mapping[str, float]]]
    steps: Mapping[str, Sequence[Mapping[str, Any]]]
    outputs: Mapping[str, Mapping[str, Any]]
    best: str
    projection: Mapping[str, float]
    train: bool
    commits: Mapping[str, str]
    failed: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)

    @property
    def rival(self) -> str:
        """The best that there is without kernels."""
        return min((name for name in BESIDE.values() if name in self.forward_us), key=self.forward_us.__getitem__)

    @property
    def applied(self) -> tuple[str, ...]:
        """The modes in which a kernel pays. In the others nothing is applied, and their times are of the rest alone."""
        return tuple(
            mode for mode, steps in self.steps.items()
            if mode in self.forward_us and any(step["applied"] for step in steps)
        )  # fmt: skip

    @property
    def fastest(self) -> str | None:
        """The fastest mode in which a kernel pays; None where there is none."""
        return min(self.applied, key=self.forward_us.__getitem__, default=None)

    @property
    def advised(self) -> str:
        """What to run: the fastest mode in which a kernel pays, where it is shown to be faster than what has none."""
        mode = self.fastest
        return mode if mode and self.speedup[mode][self.rival]["low"] > 1 else self.rival

    def gain(self, mode: str, over: str) -> str:
        """ "1.52x [1.49, 1.55]", or "" where it was not measured."""
        found = self.speedup.get(mode, {}).get(over)
        return f"{found['mean']:.2f}x [{found['low']:.2f}, {found['high']:.2f}]" if found else ""

    def headline(self) -> str:
        """One sentence: what the model gains, or that it does not."""
        modes = [mode for mode in self.steps if mode in self.forward_us]
        wrong = [NAMES[mode] for mode in modes if not self.outputs[mode]["passed"]]
        if wrong:
            return f"the outputs of {' and '.join(wrong)} are wrong: apply nothing; see autokernel verify --diagnose"
        mode, rival = self.fastest, self.rival
        if mode is None:
            why = "no kernel was shown to pay end to end" if modes else "the model runs with none of the kernels"
            why = why if self.commits else "no kernel of this run beats eager"
            best = (
                f"{NAMES[rival]} is {self.gain(rival, 'eager')} over eager" if rival != "eager" else "stay with eager"
            )
            return f"nothing is to be applied: {why}; {best}"
        found = self.speedup[mode][rival]
        over = f"{self.gain(mode, rival)} over {NAMES[rival]}, the best without kernels"
        eager = f"; {self.gain(mode, 'eager')} over eager" if rival != "eager" else ""
        if self.advised == mode:
            return f"measured end to end: {NAMES[mode]} is {over}{eager}"
        if found["high"] < 1:
            return f"not faster end to end: {NAMES[mode]} is {over}: stay with {NAMES[rival]}"
        return f"no difference shown end to end: {NAMES[mode]} is {over}{eager}"

    def why(self) -> list[str]:
        """The projection beside the measurement, and what lies between them."""
        told = self.projection
        measured = self.speedup.get("ours", {}).get("eager")
        if not told or not measured:
            return []
        projected = f"projected {told['all']:.2f}x over eager by Amdahl's law"
        if "ours" not in self.applied:
            return [f"{projected}; beside eager no kernel is applied"]
        lines = [f"{projected}, measured {measured['mean']:.2f}x"]
        if told["applied"] < told["all"] - 0.005:
            lines.append(f"{told['applied']:.2f}x is projected for the kernels that are applied alone")
        if told["walls"] < told["applied"] - 0.005:
            lines.append(f"{told['walls']:.2f}x once the time between kernels, which none shortens, is counted")
        rest = measured["mean"] / told["walls"]
        if abs(rest - 1) > 0.03:
            side = "less" if rest < 1 else "more"
            lines.append(
                f"the remaining {abs(rest - 1):.0%} {side} is what differs between a kernel alone and in the model: "
                "the caches that its neighbours leave, copies at its borders, and how the profiler counts short calls"
            )
        return lines


def read(folder: Path) -> Proof | None:
    """The verification of a run; None where there is none. AutokernelError where it cannot be read."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text())
        return Proof(
            data["forward_us"], data["speedup"], data["steps"], data["outputs"], data["best"], data["projection"],
            data["train"], {name: kernel["commit"] for name, kernel in data["kernels"].items()}, data.get("failed", {}),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AutokernelError(f"{path} cannot be read ({error}); `autokernel verify` writes it anew") from error


def has_model(folder: Path) -> bool:
    """Whether a model was profiled for this run, so that there is something to verify; not so for a kernel with a
    reference of its own.
    """
    return "fingerprint" in _profile(folder)


def winners(folder: Path, rows: Sequence[Row]) -> dict[str, str]:
    """The kernels that would be applied to the model that was profiled: target -> commit; none where there is no model
    to apply them to.
    """
    if not has_model(folder):
        return {}
    targets = [Target.from_json(data) for data in _profile(folder)["targets"]]
    standing = ((target, history.champion(rows, target.name)) for target in targets)
    return {
        target.name: row.commit for target, row in standing
        if row and amdahl.model_gain(target, row.latency_us, row.speedup_vs_eager) > 1.0
    }  # fmt: skip


def _profile(folder: Path) -> Mapping[str, Any]:
    path = folder / "profile.json"
    data: Mapping[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return data


def standing(folder: Path, rows: Sequence[Row]) -> Proof | None:
    """The verification of the kernels that stand now; None where there is none, or an older kernel was verified."""
    proof = read(folder)
    return proof if proof is not None and proof.commits == winners(folder, rows) else None


def tables(proof: Proof) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Rows for people: whole forwards, and each kernel's trial. The first row of each is its heading."""
    rivals = [name for name in BESIDE.values() if name in proof.forward_us]
    times: list[tuple[str, ...]] = [
        (
            "the whole model",
            "step" if proof.train else "forward",
            *(f"over {NAMES[name]}" for name in rivals),
            "outputs",
        )
    ]
    for mode in (name for name in NAMES if name in proof.forward_us):
        told = proof.outputs.get(mode)
        right = "" if told is None else f"off by {told['error']:.1e}, the original by {told['original_error']:.1e}"
        if told is not None and not told["passed"]:
            right = f"WRONG: {told['worst']}"
        forward = f"{proof.forward_us[mode] / 1e3:.2f} ms"
        times.append((NAMES[mode], forward, *(proof.gain(mode, name) for name in rivals), right))
    for mode in (name for name in NAMES if name in proof.failed):
        told = proof.failed[mode]
        times.append((NAMES[mode], "–", *("" for _ in rivals), f"not to be had: {told['error']}: {told['reason']}"))
    trials: list[tuple[str, ...]] = [("kernel", "beside", "places", "calls a forward", "gain end to end", "verdict")]
    for mode, steps in proof.steps.items():
        for step in steps:
            gain = step["gain"]
            shown = f"{gain['mean']:.3f}x [{gain['low']:.3f}, {gain['high']:.3f}]" if gain else "–"
            word = "applied" if step["applied"] else f"left out: {step['reason']}"
            calls = f"{step['calls_a_forward']:g}"
            trials.append((step["target"], NAMES[BESIDE[mode]], str(step["regions"]), calls, shown, word))
    return times, trials
