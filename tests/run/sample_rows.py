"""Hand-made rows of results.tsv."""

from __future__ import annotations

import dataclasses

from autokernel.run.history import Row

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROW = Row(
    experiment=1,
    time="2026-01-31T23:59:59Z",
    target="softmax",
    problem="softmax",
    backend="cpp",
    proposer="playbook",
    idea="tier 1: GRAIN 1 -> 2",
    status="PASS",
    stage="done",
    decision="keep",
    latency_us=12.5,
    incumbent_us=25.0,
    speedup=2.0,
    ci_low=1.9,
    ci_high=2.1,
    speedup_vs_eager=4.0,
    speedup_vs_best=3.0,
    pct_peak=50.0,
    seconds=4.5,
    tokens_in=10,
    tokens_out=5,
    cost_usd=0.25,
    commit=COMMIT,
    parent=COMMIT[::-1],
)


def row(
    number: int,
    target: str,
    decision: str,
    *,
    status: str = "PASS",
    vs_eager: float = 1.0,
    vs_best: float = 1.0,
    peak: float = 10.0,
    seconds: float = 1.0,
) -> Row:
    """A row of which an orchestrator reads: the figures are those of the candidate, kept or not, of 100 us eager."""
    return dataclasses.replace(
        ROW,
        experiment=number,
        target=target,
        decision=decision,
        status=status,
        latency_us=100.0 / vs_eager,
        speedup_vs_eager=vs_eager,
        speedup_vs_best=vs_best,
        pct_peak=peak,
        seconds=seconds,
    )
