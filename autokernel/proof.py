"""What verification.json says, as a person reads it: measured whole forwards beside the projection, by kernel."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autokernel.run import history
from autokernel.run.history import Row
from autokernel.types import AutokernelError

FILE = "verification.json"
NAMES = {"eager": "eager", "compile": "torch.compile", "ours": "ours", "ours+compile": "ours + torch.compile"}


@dataclasses.dataclass(frozen=True)
class Proof:
    """One verification. ``speedup`` maps a mode to {"eager" | "compile": {"mean", "low", "high"}}, ratios above 1 where
    the mode is faster; ``projection`` holds Amdahl's figure for all kernels, for those that are applied, and for those
    with the time between kernels counted in.
    """

    forward_us: Mapping[str, float]
    speedup: Mapping[str, Mapping[str, Mapping[str, float]]]
    steps: Mapping[str, Sequence[Mapping[str, Any]]]
    outputs: Mapping[str, Mapping[str, Any]]
    best: str
    projection: Mapping[str, float]
    train: bool
    commits: Mapping[str, str]

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
        mode = min(modes, key=lambda m: self.forward_us[m])
        rival = min(("eager", "compile"), key=lambda n: self.forward_us.get(n, float("inf")))
        found = self.speedup[mode][rival]
        over = f"{self.gain(mode, rival)} over {NAMES[rival]}, the best without kernels"
        eager = f"; {self.gain(mode, 'eager')} over eager" if rival != "eager" else ""
        if found["low"] > 1:
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
        lines = [f"projected {told['all']:.2f}x over eager by Amdahl's law, measured {measured['mean']:.2f}x"]
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
            data["train"], {name: kernel["commit"] for name, kernel in data["kernels"].items()},
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AutokernelError(f"{path} cannot be read ({error}); `autokernel verify` writes it anew") from error


def winners(folder: Path, rows: Sequence[Row]) -> dict[str, str]:
    """The kernels that would be applied to the model that was profiled: target -> commit; none where there is no model
    to apply them to (a kernel with a reference of its own).
    """
    path = folder / "profile.json"
    data = json.loads(path.read_text()) if path.exists() else {}
    if "fingerprint" not in data:
        return {}
    standing = ((target["name"], history.champion(rows, target["name"])) for target in data["targets"])
    return {name: row.commit for name, row in standing if row and (row.speedup_vs_eager or 0.0) > 1.0}


def standing(folder: Path, rows: Sequence[Row]) -> Proof | None:
    """The verification of the kernels that stand now; None where there is none, or an older kernel was verified."""
    proof = read(folder)
    return proof if proof is not None and proof.commits == winners(folder, rows) else None


def tables(proof: Proof) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Rows for people: whole forwards, and each kernel's trial. The first row of each is its heading."""
    times: list[tuple[str, ...]] = [
        ("the whole model", "step" if proof.train else "forward", "over eager", "over torch.compile", "outputs")
    ]
    for mode, forward_us in proof.forward_us.items():
        told = proof.outputs.get(mode)
        right = "" if told is None else f"off by {told['error']:.1e}, the original by {told['original_error']:.1e}"
        if told is not None and not told["passed"]:
            right = f"WRONG: {told['worst']}"
        forward = f"{forward_us / 1e3:.2f} ms"
        times.append((NAMES[mode], forward, proof.gain(mode, "eager"), proof.gain(mode, "compile"), right))
    trials: list[tuple[str, ...]] = [("kernel", "beside", "places", "calls a forward", "gain end to end", "verdict")]
    for mode, steps in proof.steps.items():
        for step in steps:
            gain = step["gain"]
            shown = f"{gain['mean']:.3f}x [{gain['low']:.3f}, {gain['high']:.3f}]" if gain else "–"
            beside = "eager" if mode == "ours" else "torch.compile"
            word = "applied" if step["applied"] else f"left out: {step['reason']}"
            calls = f"{step['calls_a_forward']:g}"
            trials.append((step["target"], beside, str(step["regions"]), calls, shown, word))
    return times, trials
