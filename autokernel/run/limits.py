"""When a run ends: wall time of this invocation; experiments, tokens and money of the whole run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Literal

from autokernel.run.history import Row
from autokernel.types import Cost


@dataclasses.dataclass(frozen=True)
class StopReason:
    """Why the loop ended; ``message`` is a sentence for a person."""

    kind: Literal["budget", "experiments", "tokens", "cost", "exhausted", "proposer", "interrupted"]
    message: str


@dataclasses.dataclass(frozen=True)
class Limits:
    """None means no limit. ``started_s`` is the monotonic clock when this invocation began. No proposal is asked for
    once a limit is reached; what was asked before may go past it by its own cost.
    """

    budget_s: float | None = None
    max_experiments: int | None = None
    max_tokens: int | None = None
    max_cost_usd: float | None = None
    started_s: float = dataclasses.field(default_factory=time.monotonic)

    def left_s(self) -> float:
        """Seconds of the budget that are left; infinity where there is none."""
        return float("inf") if self.budget_s is None else self.budget_s - (time.monotonic() - self.started_s)

    def reached(self, rows: Sequence[Row], beside: Cost) -> StopReason | None:
        """The first limit that has been reached, or None. ``beside`` is what was spent and stands in no row."""
        tokens = sum(row.tokens_in + row.tokens_out for row in rows) + beside.tokens_in + beside.tokens_out
        cost_usd = sum(row.cost_usd for row in rows) + beside.cost_usd
        if self.left_s() <= 0:
            return StopReason("budget", f"the budget of {self.budget_s:.0f} s is spent")
        if self.max_experiments is not None and len(rows) >= self.max_experiments:
            return StopReason(
                "experiments", f"the run has {len(rows)} experiments, its limit is {self.max_experiments}"
            )
        if self.max_tokens is not None and tokens >= self.max_tokens:
            return StopReason("tokens", f"{tokens} tokens are spent, the limit is {self.max_tokens}")
        if self.max_cost_usd is not None and cost_usd >= self.max_cost_usd:
            return StopReason("cost", f"{cost_usd:.2f} USD are spent, the limit is {self.max_cost_usd:.2f} USD")
        return None
