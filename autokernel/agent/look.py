"""Questions about a run that change nothing and need no lock: answered from results.tsv and experiments/."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autokernel.agent import place as places
from autokernel.agent import texts
from autokernel.agent.place import Place
from autokernel.agent.tryout import before_and_after
from autokernel.extension import Brief
from autokernel.run import workspace
from autokernel.run.desk import standing
from autokernel.run.history import Row
from autokernel.run.views import experiment_folder
from autokernel.types import AutokernelError, Candidate, Comparison, Cost, Experiment, Target, Verdict


def experiments(place: Place, target: str | None = None) -> list[Experiment]:
    """The run's finished experiments, oldest first, as the files tell them (all, or one target's)."""
    known = {t.name for t in place.targets}
    rows = [row for row in place.rows() if row.target in known and target in (None, row.target)]
    return [_experiment(place, row) for row in rows]


def _experiment(place: Place, row: Row) -> Experiment:
    folder = experiment_folder(place.folder, row.experiment)
    comparison = folder / "comparison.json"
    return Experiment(
        number=row.experiment,
        time=row.time,
        target=place.target(row.target),
        candidate=Candidate(row.target, _text(folder / "candidate.py"), "", row.idea, row.proposer),
        verdict=Verdict.from_json(workspace.read_json(folder / "verdict.json")),
        comparison=Comparison.from_json(workspace.read_json(comparison)) if comparison.exists() else None,
        decision=row.decision,
        seconds=row.seconds,
        commit=row.commit,
        cost=Cost(row.tokens_in, row.tokens_out, row.cost_usd),
    )


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise AutokernelError(
            f"{path}: the source of an experiment was expected here: {error.strerror}; `autokernel run` or `try` on "
            "this folder restores it"
        ) from error


@dataclasses.dataclass(frozen=True)
class TargetStatus:
    """Where one target stands: ``champion`` is the experiment that stands, ``edited`` says that the kernel file is not
    its source, ``next_step`` is what to try.
    """

    target: Target
    champion: Experiment | None
    tried: int
    kept: int
    edited: bool
    next_step: str

    def to_json(self) -> dict[str, Any]:
        measured = self.champion.verdict.measurements if self.champion else None
        return {
            "target": self.target.name,
            "file": self.target.file,
            "problem": self.target.kernel_type,
            "backend": self.target.backend,
            "champion": self.champion.number if self.champion else None,
            "latency_us": measured.latency_us if measured else None,
            "speedup_vs_eager": measured.speedup_vs_eager if measured else None,
            "speedup_vs_best": measured.speedup_vs_best if measured else None,
            "pct_peak": measured.pct_peak if measured else None,
            "tried": self.tried,
            "kept": self.kept,
            "edited": self.edited,
            "due": self.next_step,
        }


@dataclasses.dataclass(frozen=True)
class Status:
    """A run, target by target, and its last experiment."""

    place: Place
    targets: tuple[TargetStatus, ...]
    experiments: tuple[Experiment, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.place.folder),
            "experiments": len(self.experiments),
            "targets": [target.to_json() for target in self.targets],
        }

    def text(self) -> str:
        lines = [f"{self.place.folder}: {len(self.experiments)} experiments"]
        lines += texts.standing_lines(self.place, self.experiments)
        for each in self.targets:
            if each.edited:
                lines.append(f"{each.target.file} is edited and not judged: autokernel try -m 'what and why'")
            lines.append(f"due next for {each.target.name}: {each.next_step}")
        if self.experiments:
            last = self.experiments[-1]
            lines.append(f"last: experiment {last.number}, {last.decision}: {texts.result(last)}")
        return "\n".join(lines)


def status(place: Place) -> Status:
    every = experiments(place)
    found = []
    for target in place.targets:
        mine = [e for e in every if e.target.name == target.name]
        champion, tried = standing(mine), [e for e in mine if e.decision in ("keep", "revert")]
        path = place.folder / target.file
        edited = champion is not None and not (
            path.is_file() and path.read_bytes() == champion.candidate.source.encode()
        )
        step = places.next_step(place, target, mine)
        found.append(TargetStatus(target, champion, len(tried), sum(e.decision == "keep" for e in tried), edited, step))
    return Status(place, tuple(found), tuple(every))


@dataclasses.dataclass(frozen=True)
class Shown:
    """One experiment, whole."""

    experiment: Experiment

    def to_json(self) -> dict[str, Any]:
        e = self.experiment
        return {
            "experiment": e.number,
            "time": e.time,
            "target": e.target.name,
            "idea": e.candidate.idea,
            "author": e.candidate.author,
            "decision": e.decision,
            "commit": e.commit,
            "seconds": e.seconds,
            "verdict": e.verdict.to_json(),
            "comparison": dataclasses.asdict(e.comparison) if e.comparison else None,
        }

    def text(self) -> str:
        e, verdict = self.experiment, self.experiment.verdict
        lines = [
            f"experiment {e.number}, {e.target.name}, {e.time}, {e.seconds:.1f} s, by {e.candidate.author}",
            f"idea: {e.candidate.idea}",
            f"{e.decision}: {texts.result(e)}",
            f"commit {e.commit} (refs/experiments/{e.number})",
        ]
        if e.comparison:
            low, high = (_ratio(x) for x in (e.comparison.ci_low, e.comparison.ci_high))
            lines.append(
                f"against the version that stood: {_ratio(e.comparison.log_ratio)}x, interval {low}x to {high}x, "
                f"{e.comparison.blocks} blocks"
            )
        if verdict.measurements:
            lines += [f"  {key}: {us:,.2f} us" for key, us in verdict.measurements.workloads_us.items()]
            lines += [f"  {name}: {us:,.2f} us" for name, us in verdict.measurements.baselines_us.items()]
        lines += [f"largest error in {stage}: {ratio:.3g} of its budget" for stage, ratio in verdict.errors.items()]
        for kernel, figures in verdict.evidence.items():
            told = ", ".join(f"{n} {v}" for n, v in figures.items()) if isinstance(figures, Mapping) else str(figures)
            lines.append(f"{kernel}: {told}")
        if verdict.log_tail.strip():
            lines += ["log:", *(f"| {line}" for line in verdict.log_tail.strip().splitlines())]
        return "\n".join(lines)


def _ratio(log_ratio: float) -> str:
    return f"{math.exp(max(-700.0, min(700.0, log_ratio))):.4g}"


def experiment(place: Place, number: int) -> Shown:
    """Raises AutokernelError where there is no such experiment."""
    return Shown(_numbered(place, number)[-1])


def diff(place: Place, number: int) -> str:
    """A unified diff; empty for a baseline that nothing stood before."""
    done = _numbered(place, number)
    file = done[-1].target.file
    before, after = before_and_after(done)
    return "".join(f"{line}\n" for line in difflib.unified_diff(before, after, f"a/{file}", f"b/{file}", lineterm=""))


def _numbered(place: Place, number: int) -> list[Experiment]:
    """The experiments of one target up to this one."""
    rows = {row.experiment: row for row in place.rows()}
    if number not in rows:
        there = f"1 to {len(rows)}" if rows else "none yet"
        raise AutokernelError(f"{place.folder}: an experiment was expected ({there}); there is no {number}")
    return [e for e in experiments(place, rows[number].target) if e.number <= number]


def brief(place: Place, name: str | None = None) -> Brief:
    """What a proposer would be told of a target (the first, unless it is named) now."""
    names = [target.name for target in place.targets]
    if name is not None and name not in names:
        raise AutokernelError(f"a target was expected ({', '.join(names)}); got '{name}'")
    target = place.target(name or names[0])
    mine = experiments(place, target.name)
    stands = standing(mine)
    source = stands.candidate.source if stands else _text(place.folder / target.file)
    return places.brief(place, target, mine, source)
