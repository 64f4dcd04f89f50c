"""What an extension implements: proposers, strategies and backends, and the records that they are given and give.

A problem is a record, not a protocol: see ``autokernel.types.Problem``. Standard library only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from autokernel.types import AutokernelError, Cost, Experiment, Measurements, Target


class ProposerUnavailable(AutokernelError):
    """The proposer cannot answer now (network, rate limit): the run waits, asks again, and spends no experiment."""

    def __init__(self, reason: str, retry_after_s: float) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


@dataclasses.dataclass(frozen=True)
class Brief:
    """Everything a proposer is told. ``position`` holds the incumbent's last measurements; ``history`` holds this
    target's experiments, oldest first; ``hardware`` is the device's description and measured ceilings; ``notes`` says
    what became of earlier proposals that were not judged (a duplicate, for one).
    """

    target: Target
    source: str
    position: Measurements | None
    history: Sequence[Experiment]
    hardware: Mapping[str, Any]
    seed: int
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A whole new file and the idea behind it. None from ``propose`` means: nothing left to try on this target."""

    source: str
    idea: str
    cost: Cost = dataclasses.field(default_factory=Cost)


class Proposer(Protocol):
    """One source of ideas. It keeps no state that ``brief.history`` does not give back: a resumed run goes on."""

    name: str

    def propose(self, brief: Brief) -> Proposal | None: ...


class Strategy(Protocol):
    """Which version of the file to edit next (ask), told of every outcome (tell)."""

    name: str

    def ask(self, history: Sequence[Experiment]) -> str:
        """The source to start the next proposal from."""
        ...

    def tell(self, experiment: Experiment) -> None: ...


@dataclasses.dataclass(frozen=True)
class Missing:
    """Something this machine lacks, and the command that mends it."""

    what: str
    mend: str


class Backend(Protocol):
    """How a kernel file of one language is allowed to look, and what it needs to be built."""

    name: str
    imports: frozenset[str]  # top-level modules a candidate may import
    devices: tuple[str, ...]  # device kinds it runs on
    aten: frozenset[str] | None  # aten operations that a call may dispatch; None: any

    def missing(self) -> Sequence[Missing]:
        """What this machine lacks to build such files; empty when it can."""
        ...

    def environment(self, cache: str) -> dict[str, str]:
        """Environment of a runner that builds such files, its caches under the folder ``cache``."""
        ...

    def check(self, tree: Any) -> str | None:
        """Why the policy refuses this parsed file (``ast.Module``), or None. Advisory: processes are the wall."""
        ...
