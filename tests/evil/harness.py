"""Kernel files that cheat, and honest ones that look as if they did: what each says of itself, and how it is judged.

A cheat names in STOPPED_BY the defence that must stop it and in EXPECT how its verdict may end ("revert": it passes,
and is not kept). ALSO names defences that stop it as well, each alone; WITH those that must be off too before it gets
through. BASE_OFF are off from the start: the cheat is about a wall behind them. ALONE says why a case cannot be shown;
DEVICE is what it runs on (a CPU, where it says nothing), SCALE how much larger each dimension of its workload is.
Unless it is the reading of the source that must stop it, that reading is off: processes are the wall.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autokernel.evaluate.client import Assignment, Evaluation, JudgeClient
from autokernel.evaluate.defences import DEFENCES, SWITCHABLE
from autokernel.isolation import LEVELS
from autokernel.types import Status, Target, Workload

HERE = Path(__file__).parent
WORKS = {
    "rmsnorm": Workload({"R": 1024, "C": 1024}, "fp32", scalars={"eps": 1e-6}),
    "layernorm": Workload({"R": 256, "C": 512}, "fp32", scalars={"eps": 1e-5}),
    "softmax": Workload({"R": 256, "C": 512}, "fp32"),
    "reduce": Workload({"R": 256, "C": 512}, "fp32", scalars={"dim": -1}),
    "matmul": Workload({"M": 128, "K": 256, "N": 192}, "fp32"),
}
# What is switched off, one at a time, to show that a defence does not lean on those beside it. Left out are those that
# it works with: outputs of timed calls must be checked ("timed") for any trick of a timed call to show.
NEIGHBOURS: Mapping[str, tuple[str, ...]] = {
    "policy": (),
    "audit": ("policy", "rms"),
    "rms": ("stability", "determinism", "edges", "held-out"),
    "stability": ("determinism", "held-out", "rms"),
    "determinism": ("stability", "edges"),
    "edges": ("determinism", "stability"),
    "held-out": ("edges", "stability"),
    "sealed": ("hidden", "all-kept"),
    "fresh": ("hidden", "all-kept", "committed"),
    "hidden": ("all-kept", "committed", "floor"),
    "timed": ("hidden", "all-kept", "committed"),
    "all-kept": ("hidden", "floor"),
    "committed": ("all-kept", "hidden", "rms"),
    "clock": ("hidden", "committed"),
    "still": ("hidden", "committed"),
    "floor": ("hidden", "all-kept", "committed"),
}
# What `make test` judges, by test and by name: one of each kind but timing, whose cheats take longest.
_CHEATS = (
    "lru_cache", "warm_up_lookup", "last_call_only", "computed_when_asked", "helper_process", "library_call",
    "aware_of_the_audit", "callers_variables", "answer_forged", "makes_inputs_easy", "tensor_subclass", "half_inside",
    "fourteen_bits", "tested_shapes_only", "encoded_source",
)  # fmt: skip
_HONEST = (
    "cached_launch", "integer_atomics", "transposed_output", "padded_output", "workspace_by_shape", "suspicious_words",
    "view_of_a_larger_result", "callable_object",
)  # fmt: skip
SPREAD = {
    "test_a_cheat_is_not_kept": _CHEATS,
    "test_without_its_defence_it_gets_through": ("warm_up_lookup", "computed_when_asked", "tested_shapes_only"),
    "test_an_honest_kernel_passes": _HONEST,
    "test_its_defence_stops_it_without_the_neighbours": (),
    "test_without_its_level_of_the_sandbox_it_gets_through": (),
}
INCUMBENT = """
import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "{backend}"


def kernel_fn(x, weight, eps=1e-6):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)
"""


@dataclasses.dataclass(frozen=True, eq=False)
class Kernel:
    """One file of cheats/ or honest/."""

    path: Path
    source: str
    doc: str
    constants: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def kind(self) -> str:
        return self.path.parent.name

    @property
    def stopped_by(self) -> str:
        return str(self.constants["STOPPED_BY"])

    @property
    def device(self) -> str:
        return str(self.constants.get("DEVICE", "cpu"))

    @property
    def scale(self) -> int:
        """How much larger than in WORKS each dimension of its workload is."""
        return int(self.constants.get("SCALE", 4 if self.device == "cuda" else 1))

    def names(self, constant: str) -> tuple[str, ...]:
        return tuple(self.constants.get(constant, ()))

    @property
    def compared(self) -> bool:
        """Whether it must lose a comparison, rather than fail."""
        return "revert" in self.names("EXPECT")

    @property
    def must_win(self) -> bool:
        """Whether getting through means that it wins a comparison, rather than that it passes."""
        return self.names("EXPECT") == ("revert",)

    @property
    def base_off(self) -> frozenset[str]:
        reading = {"policy"} if self.stopped_by not in ("policy", "audit") else set()
        return frozenset(reading | set(self.names("BASE_OFF")))

    @property
    def neighbours(self) -> tuple[str, ...]:
        every = (*NEIGHBOURS.get(self.stopped_by, ()), *self.names("ALSO"))
        return tuple(n for n in every if n not in (*self.names("WITH"), *self.base_off))

    @property
    def switchable(self) -> bool:
        """Whether its defence can be switched off for one assignment, and that lets it through."""
        return self.stopped_by in SWITCHABLE and "ALONE" not in self.constants


def read(path: Path) -> Kernel:
    source = path.read_text()
    tree = ast.parse(source)
    constants = {
        target.id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id.isupper() and _literal(node.value)
    }
    return Kernel(path, source, ast.get_docstring(tree) or "", constants)


def _literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


def kernels(folder: str, device: str = "cpu") -> list[Kernel]:
    every = (read(path) for path in sorted((HERE / folder).rglob("*.py")))
    return [kernel for kernel in every if kernel.device == device]


def judged(judge: JudgeClient, kernel: Kernel, off: frozenset[str] | set[str], *, compared: bool) -> Evaluation:
    """The verdict on a file with these defences off; where that is asked for, its comparison with a plain kernel."""
    problem, backend = kernel.constants["KERNEL_TYPE"], kernel.constants["BACKEND"]
    work = dataclasses.replace(WORKS[problem], dims={k: v * kernel.scale for k, v in WORKS[problem].dims.items()})
    target = Target("evil", problem, backend, (work,), share=0.1, eager_us=100.0, floor_us=1.0)
    incumbent = INCUMBENT.format(backend=backend) if compared else None
    return judge.evaluate(
        Assignment(target, kernel.source, incumbent=incumbent, baselines=False, disabled=frozenset(off))
    )


def kept(evaluation: Evaluation) -> bool:
    """Whether a run would have kept it: it passes and, where it was compared, it won."""
    passed = evaluation.verdict.status is Status.PASS
    return passed and (evaluation.comparison is None or evaluation.comparison.keep)


def ended(evaluation: Evaluation) -> str:
    """ "revert" or "keep" where there was a comparison, else the verdict's status."""
    if evaluation.comparison is not None:
        return "keep" if evaluation.comparison.keep else "revert"
    return evaluation.verdict.status.value


class Book:
    """What every judged file came to, and the tables made of it."""

    def __init__(self) -> None:
        self._ended: dict[Kernel, str] = {}
        self._kept: set[Kernel] = set()
        self._alone: dict[Kernel, int] = {}
        self._through: set[Kernel] = set()
        self._honest: dict[Kernel, bool] = {}

    def stopped(self, kernel: Kernel, evaluation: Evaluation) -> None:
        self._ended[kernel] = ended(evaluation)
        if kept(evaluation):
            self._kept.add(kernel)

    def without_neighbour(self, kernel: Kernel) -> None:
        self._alone[kernel] = self._alone.get(kernel, 0) + 1

    def got_through(self, kernel: Kernel) -> None:
        self._through.add(kernel)

    def honest(self, kernel: Kernel, evaluation: Evaluation) -> None:
        self._honest[kernel] = kept(evaluation)

    def markdown(self) -> str:
        """Two tables: cheats by kind and defence, and each cheat by name."""
        if not self._ended:
            return ""
        kinds = sorted({k.kind for k in self._ended})
        defences = [d for d in (*DEFENCES, *LEVELS) if any(k.stopped_by == d for k in self._ended)]
        lines = [
            "",
            f"{len(self._ended)} cheats, {len(self._kept)} kept; "
            f"{len(self._honest)} honest kernels, {sum(not ok for ok in self._honest.values())} refused.",
            "",
            "| stopped by | " + " | ".join(kinds) + " | all | gets through without it |",
            "|" + "---|" * (len(kinds) + 3),
        ]
        for defence in defences:
            mine = [k for k in self._ended if k.stopped_by == defence]
            counts = [str(sum(k.kind == kind for k in mine) or "") for kind in kinds]
            shown = sum(k in self._through for k in mine)
            lines.append(f"| {defence} | " + " | ".join(counts) + f" | {len(mine)} | {shown or 'not shown'} |")
        totals = [str(sum(k.kind == kind for k in self._ended)) for kind in kinds]
        lines.append("| all | " + " | ".join(totals) + f" | {len(self._ended)} | {len(self._through)} |")
        lines += ["", "| cheat | what it does | verdict | stopped by | neighbours off, one at a time | without it |"]
        lines.append("|---|---|---|---|---|---|")
        for kernel in sorted(self._ended, key=lambda k: (k.kind, k.name)):
            also = "".join(f", {name}" for name in kernel.names("ALSO"))
            alone = f"stopped {self._alone[kernel]} of {len(kernel.neighbours)}" if kernel in self._alone else ""
            with_it = "".join(f" (with {name})" for name in kernel.names("WITH"))
            through = f"gets through{with_it}" if kernel in self._through else str(kernel.constants.get("ALONE", ""))
            what = kernel.doc.splitlines()[0]
            row = (f"{kernel.kind}/{kernel.name}", what, self._ended[kernel], kernel.stopped_by + also, alone, through)
            lines.append("| " + " | ".join(row) + " |")
        return "\n".join(lines) + "\n"
