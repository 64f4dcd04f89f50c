"""What ``autokernel run`` does: open or create the workspace, start the judge, run the loop, measure the headline."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from autokernel.run.orchestrator import MoveOn


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """One invocation of ``autokernel run``.

    ``backend`` None takes the device's own (cpp on a CPU). ``budget_s`` is wall time of this invocation;
    ``max_experiments``, ``max_tokens`` and ``max_cost_usd`` count the whole run, earlier invocations included, so that
    the same command again goes on to the same end. ``name`` None is the model's file stem and the device; ``fresh``
    starts a new numbered run. ``aa_rate`` is the share of experiments that judge the incumbent against itself.
    ``settings`` are the model's own (size=7b).
    """

    model: Path
    device: str = "cpu"
    dtype: str = "fp32"
    backend: str | None = None
    proposer: str = "auto"
    strategy: str = "greedy"
    budget_s: float | None = None
    max_experiments: int | None = None
    max_tokens: int | None = None
    max_cost_usd: float | None = None
    name: str | None = None
    fresh: bool = False
    results_dir: Path = Path("results")
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    move_on: MoveOn = dataclasses.field(default_factory=MoveOn)
    aa_rate: float = 0.05
    seed: int = 0
    min_gain: float = 0.005
    threads: int | None = None
    headline: bool = True
