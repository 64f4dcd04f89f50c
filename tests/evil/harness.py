"""Kernel files that cheat, and honest ones that look as if they did: what each says of itself, and how it is judged.

A cheat names in STOPPED_BY the defence that must stop it and in EXPECT how its verdict may end ("revert": it passes, and
is not kept). ALSO names defences that stop it as well, each alone; WITH those that must be off too before it gets
through. BASE_OFF are off from the start: the cheat is about a wall behind them. ALONE says why a case cannot be shown.
Unless it is the reading of the source that must stop it, that reading is off: processes are the wall.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autokernel.evaluate.client import Assignment, Evaluation, JudgeClient
from autokernel.evaluate.defences import SWITCHABLE
from autokernel.isolation import LEVELS
from autokernel.types import Status, Target, Workload

HERE = Path(__file__).parent
WORKS = {
    "rmsnorm": Workload({"R": 256, "C": 512}, "fp32", scalars={"eps": 1e-6}),
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
INCUMBENT = '''
import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "{backend}"


def kernel_fn(x, weight, eps=1e-6):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)
'''


@dataclasses.dataclass(frozen=True)
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

    def names(self, constant: str) -> tuple[str, ...]:
        return tuple(self.constants.get(constant, ()))

    @property
    def compared(self) -> bool:
        """Whether it must lose a comparison, rather than fail."""
        return "revert" in self.names("EXPECT")

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


def kernels(folder: str) -> list[Kernel]:
    return [read(path) for path in sorted((HERE / folder).rglob("*.py"))]


def judged(judge: JudgeClient, kernel: Kernel, off: frozenset[str] | set[str], *, compared: bool) -> Evaluation:
    """The verdict on a file with these defences off and, where that is asked for, its comparison with a plain kernel."""
    problem, backend = kernel.constants["KERNEL_TYPE"], kernel.constants["BACKEND"]
    target = Target("evil", problem, backend, (WORKS[problem],), share=0.1, eager_us=100.0, floor_us=1.0)
    incumbent = INCUMBENT.format(backend=backend) if compared else None
    return judge.evaluate(
        Assignment(target, kernel.source, incumbent=incumbent, baselines=False, disabled=frozenset(off))
    )


def kept(evaluation: Evaluation) -> bool:
    """Whether a run would have kept it: it passes and, where it was compared, it won."""
    passed = evaluation.verdict.status is Status.PASS
    return passed and (evaluation.comparison is None or evaluation.comparison.keep)


def ended(evaluation: Evaluation) -> str:
    """"revert" or "keep" where there was a comparison, else the verdict's status."""
    if evaluation.comparison is not None:
        return "keep" if evaluation.comparison.keep else "revert"
    return evaluation.verdict.status.value


def known(defence: str) -> bool:
    from autokernel.evaluate.defences import DEFENCES

    return defence in DEFENCES or defence in LEVELS
