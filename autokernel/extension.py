"""What an extension implements: proposers, strategies and backends, and the records that they are given and give.

A problem is a record, not a protocol: see ``autokernel.types.Problem``. Standard library only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from autokernel.types import AutokernelError, Cost, Experiment, Measurements, Target, Verdict

Exchange = Mapping[str, Any]  # one question to a model and its answer, JSON, without any secret


class Unanswered(AutokernelError):
    """A proposer that gave no proposal, and what asking cost all the same."""

    def __init__(self, reason: str, cost: Cost | None = None, exchanges: Sequence[Exchange] = ()) -> None:
        super().__init__(reason)
        self.cost = cost or Cost()
        self.exchanges = tuple(exchanges)


class ProposerUnavailable(Unanswered):
    """The proposer cannot answer now (network, rate limit): the run waits, asks again, and spends no experiment."""

    def __init__(
        self, reason: str, retry_after_s: float, cost: Cost | None = None, exchanges: Sequence[Exchange] = ()
    ) -> None:
        super().__init__(reason, cost, exchanges)
        self.retry_after_s = retry_after_s


class NothingUsable(Unanswered):
    """The answer held no file that could be judged (a refusal, no edit, one that does not apply). The reason is told
    to the proposer with the next brief; several in a row end the visit to this target.
    """


class ProposerFailed(Unanswered):
    """The proposer will not answer again without its owner (a revoked key, no money left, an unknown model): the run
    stops with this line, and the same command goes on once it is mended.
    """


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A proposal that failed and may be mended before it counts: attempt ``number`` of one experiment, from 1."""

    source: str
    idea: str
    verdict: Verdict
    number: int


@dataclasses.dataclass(frozen=True)
class Brief:
    """Everything a proposer is told. ``position`` holds the incumbent's last measurements and ``evidence`` what its
    compiler and profiler reported (registers, spills, shared memory, occupancy); ``history`` holds this target's
    experiments, oldest first; ``hardware`` is the device's description and measured ceilings; ``notes`` says what
    became of earlier proposals that were not judged (a duplicate, for one); ``hints`` is what the owner wrote for
    this night; ``failed`` asks for a mended version of that attempt. ``model`` is the name of the owner's model, and
    ``seed`` differs between briefs that are in flight at the same time.
    """

    target: Target
    source: str
    position: Measurements | None
    history: Sequence[Experiment]
    hardware: Mapping[str, Any]
    seed: int
    notes: Sequence[str] = ()
    evidence: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    hints: str = ""
    failed: Attempt | None = None
    model: str = ""


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A whole new file and the idea behind it, and every exchange with a model that led to it. None from ``propose``
    means: nothing left to try on this target.
    """

    source: str
    idea: str
    cost: Cost = dataclasses.field(default_factory=Cost)
    exchanges: Sequence[Exchange] = ()


@dataclasses.dataclass(frozen=True)
class ProposerOptions:
    """What the command line tells a proposer; each takes what it knows. None is the proposer's own default.

    ``prices`` is a JSON file (model -> USD per million tokens); ``recorded`` is the folder of the run that a replay
    repeats; ``brief_tokens`` bounds the text of a brief. ``max_cost_usd`` is the run's own limit, which the run keeps:
    a proposer that spends money and cannot count it refuses to be created with one.
    """

    model: str | None = None
    base_url: str | None = None
    effort: str | None = None
    temperature: float | None = None
    max_output_tokens: int | None = None
    command: str | None = None
    time_limit_s: float = 600.0
    in_flight: int = 1
    fix_attempts: int = 2
    plan: bool = False
    prices: Path | None = None
    recorded: Path | None = None
    brief_tokens: int = 24_000
    max_cost_usd: float | None = None


class Proposer(Protocol):
    """One source of ideas. It keeps no state that ``brief.history`` does not give back: a resumed run goes on.

    ``in_flight`` is how many calls of ``propose`` it takes at the same time, each from a thread of its own (1: every
    proposal needs the last verdict); ``fix_attempts`` is how often a candidate that failed comes back to it, as
    ``brief.failed``, before it counts as reverted. A module of proposers defines ``create(options: ProposerOptions)``,
    which raises AutokernelError for what cannot work (no key, no command). One that has remarks for the owner about how
    it was set up (a model without a price) keeps them in ``notes``: the run tells them when it starts.
    """

    name: str
    in_flight: int
    fix_attempts: int

    def propose(self, brief: Brief) -> Proposal | None:
        """Raises ProposerUnavailable, NothingUsable or ProposerFailed."""
        ...


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

    def warm_up(self) -> None:
        """Make ready, once, what every runner on this backend's devices would else make for itself; runners are forked
        from the process that does, which must stay of one thread. A backend may leave this method out.
        """

    def furnish(self, cache: Path) -> None:
        """Put into a new, empty folder of build products what every file's build needs, and no file may choose. A
        backend may leave this method out.
        """

    def check(self, tree: Any) -> str | None:
        """Why the policy refuses this parsed file (``ast.Module``), or None. Advisory: processes are the wall."""
        ...

    def evidence(self, cache: Path) -> Mapping[str, Mapping[str, float]]:
        """What the compiler reported for the kernels that were built below ``cache``: kernel name -> figures, such as
        registers, spill_bytes, shared_bytes, warps and occupancy (0 to 1). Empty where it reports nothing. Never raises
        for what a candidate's process may have written there. A third-party backend may leave this method out.
        """
        return {}
