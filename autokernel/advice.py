"""What to do next, as a report's figures say: one line each, the most rewarding first."""

from __future__ import annotations

from collections.abc import Iterator

from autokernel.report import Report

WORTH_TELLING = 0.005  # of the forward pass: what is left to win below it is not named
FALSE_KEEP_LIMIT = 0.02  # above this share of kept A/A candidates the run's keeps deserve doubt
FALSE_KEEP_SAMPLES = 20  # fewer A/A comparisons than this say little


def advise(report: Report) -> list[str]:
    """What to do next, the most rewarding first."""
    return [*_of_targets(report), *_of_the_run(report)]


def _of_targets(report: Report) -> Iterator[str]:
    targets = report.targets
    best = max(targets, key=lambda t: t.expected_gain, default=None)
    if best and (gain := best.expected_gain * (report.projected_speedup or 1.0)) > WORTH_TELLING:  # of today's forward
        yield (
            f"{best.name} has the most left to win: at its roofline floor {report.subject} would take {gain:.0%} less "
            "time than now; run the same command again to go on."
        )
    if untouched := [t.name for t in targets if t.experiments == 0]:
        yield f"Not tried yet: {', '.join(untouched)}; a longer --budget reaches them."
    if doubtful := [t.name for t in targets if t.source.startswith("headline:")]:
        yield (
            f"Do not trust the champion of {', '.join(doubtful)}: it passed its experiment and failed the thorough "
            "judgement; headline.json says why."
        )
    for target in targets:
        if target.spelled_out_us and target.latency_us and target.speedup_vs_eager:
            baseline_us = target.latency_us * target.speedup_vs_eager
            yield (
                f"The model spells out {target.name}: its own code takes {target.spelled_out_us:.0f} us a forward, "
                f"{target.problem}'s PyTorch baseline {baseline_us:.0f} us; to call that is the cheapest gain."
            )
    behind = [t.name for t in targets if t.speedup_vs_best is not None and t.speedup_vs_best < 1.0]
    if behind and report.proof is None:  # whole forwards tell it better
        place = "the model" if report.model else "a model"
        yield f"Do not put into {place} yet: {', '.join(behind)}; the best baseline is still faster."


def _of_the_run(report: Report) -> Iterator[str]:
    failed, tried = sum(f.count for f in report.failures), len(report.rows)
    if report.failures and failed > tried / 3:
        worst = report.failures[0]
        yield (
            f"{failed} of {tried} candidates did not pass, {worst.count} of them with {worst.status}: "
            f"read experiments/{worst.last_experiment}/log.txt."
        )
    kept, total = report.aa_kept, report.aa_total
    if total >= FALSE_KEEP_SAMPLES and kept / total > FALSE_KEEP_LIMIT:
        yield (
            f"{kept} of {total} A/A candidates would have been kept: this machine is noisy; "
            "close other programs or raise --min-gain, and measure the champions again."
        )
    if report.graph_breaks:
        yield f"The model has {report.graph_breaks} graph break(s): code between them was not searched for regions."
