"""What a run has won, and what it is worth: read from results.tsv and the files beside it; no torch.

Headline numbers are a champion against its baselines measured in one session: headline.json when it holds the
champion's commit, else the champion's own row (whose baselines were timed in that experiment's session). Gains of
single steps are never multiplied.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autokernel import amdahl, proof
from autokernel.proof import Proof
from autokernel.run import history, orchestrator, unbooked
from autokernel.run.history import Row
from autokernel.types import AutokernelError, Cost, Target

MEASURED = ("speedup_vs_eager", "speedup_vs_best", "pct_peak", "latency_us")


@dataclasses.dataclass(frozen=True)
class TargetReport:
    """One kernel file of the run. Ratios above 1 are faster; None where nothing was measured. ``latency_us`` and
    ``floor_us`` are a forward's worth of this target; ``source`` says which measurement the numbers come from."""

    name: str
    problem: str
    backend: str
    share: float | None
    experiments: int
    kept: int
    speedup_vs_eager: float | None
    speedup_vs_best: float | None
    pct_peak: float | None
    file: str
    latency_us: float | None
    starter_vs_best: float | None
    floor_us: float | None
    source: str  # "headline", "headline: STATUS" (it failed there), "experiment N" or "not measured"
    model_gain: float = 1.0  # over what the model runs today, never below 1: a kernel that is slower stays out of it
    expected_gain: float = 0.0  # the fraction of an eager forward that is left to win, at the roofline floor
    spelled_out_us: float | None = None  # of the model's own code where that is another program than the baseline

    JSON = (
        "name", "problem", "backend", "share", "experiments", "kept", "speedup_vs_eager", "speedup_vs_best",
        "pct_peak", "file",
    )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in self.JSON}


@dataclasses.dataclass(frozen=True)
class Failure:
    """How often candidates ended with one status, and the last one's reason."""

    status: str
    count: int
    last_experiment: int
    reason: str


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that a person is told of a run. ``projected_speedup`` is of the whole forward pass, by Amdahl's law;
    None where no profile lies beside the rows. Tokens and cost include what was spent and stands in no row."""

    run: str
    folder: Path
    rows: Sequence[Row]
    model: str | None
    targets: Sequence[TargetReport]
    projected_speedup: float | None
    aa_kept: int
    aa_total: int
    judged_s: float
    cost_usd: float
    tokens: int
    failures: Sequence[Failure]
    graph_breaks: int = 0
    proof: Proof | None = None  # whole forwards, measured, where the kernels that stand are those that were verified
    nothing: str = ""  # where no kernel won and no whole forward was measured: that, and what is known without kernels

    @property
    def kept(self) -> int:
        return sum(row.decision == "keep" for row in self.rows)

    @property
    def subject(self) -> str:
        """What is made faster: a model's forward, or a kernel that came without a model."""
        return "the whole forward pass" if self.model else "the kernel"

    @property
    def fixed(self) -> int:
        """Candidates that failed first and passed once they were mended."""
        return sum(row.attempts > 1 and row.status == "PASS" for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "experiments": len(self.rows),
            "kept": self.kept,
            "targets": [target.to_json() for target in self.targets],
            "projected_speedup": self.projected_speedup,
            "measured": dict(self.proof.speedup) if self.proof else None,
        }


def newest_run(results: Path) -> Path:
    """The run under ``results`` whose rows changed last. AutokernelError when there is none."""
    runs = sorted(results.glob(f"*/{history.FILE}"), key=lambda p: p.stat().st_mtime)
    if not runs:
        raise AutokernelError(
            f"expected a run under {results.absolute()}, found none; start one with `autokernel run MODEL.py`, "
            "or name the folder or the results.tsv of a run"
        )
    return runs[-1].parent


def build(place: Path) -> Report:
    """The report of a run's folder, or of a results.tsv alone. AutokernelError names what cannot be read."""
    if place.is_dir() and not (place / history.FILE).is_file():
        inside = sorted(p.parent.name for p in place.glob(f"*/{history.FILE}"))
        hint = f"it holds the runs {', '.join(inside)}: name one" if inside else "name a folder under results/"
        raise AutokernelError(f"expected the folder of a run, with a {history.FILE}; {place} has none; {hint}")
    rows = history.read(place)
    folder = place if place.is_dir() else place.parent
    profile = _json(folder / "profile.json")
    headline = _json(folder / "headline.json")
    known = {t.name: t for t in _targets(profile, folder / "profile.json")}
    names = list(known) + [n for n in dict.fromkeys(row.target for row in rows) if n not in known]
    targets = [_target(name, known.get(name), rows, headline) for name in names]
    kept_aa, total_aa = history.false_keeps(rows)
    projected = amdahl.projected((t.share or 0.0, t.model_gain) for t in targets) if known else None
    spent = unbooked.total(
        [*(Cost(r.tokens_in, r.tokens_out, r.cost_usd) for r in rows), *(e.cost for e in unbooked.read(folder))]
    )
    proven = proof.standing(folder, rows)
    barren = proven is None and bool(rows) and proof.has_model(folder) and not proof.winners(folder, rows)
    return Report(
        run=folder.resolve().name,
        folder=folder,
        rows=rows,
        model=profile.get("model") if profile else None,
        targets=targets,
        projected_speedup=projected,
        aa_kept=kept_aa,
        aa_total=total_aa,
        judged_s=sum(row.seconds for row in rows),
        cost_usd=spent.cost_usd,
        tokens=spent.tokens_in + spent.tokens_out,
        failures=_failures(rows, folder),
        graph_breaks=profile.get("graph_breaks", 0) if profile else 0,
        proof=proven,
        nothing=_nothing(profile) if barren else "",
    )


def _nothing(profile: Mapping[str, Any] | None) -> str:
    """What to tell of a run without a kernel that beats eager; torch.compile's best where its profile timed it."""
    told = "nothing is to be applied: no kernel of this run beats eager"
    levers = [each for each in (profile or {}).get("levers", ()) if each["kind"] == "compile" and each["speedup"]]
    best = max(levers, key=lambda each: each["speedup"], default=None)
    if best is None:
        return f"{told}; autokernel verify times what torch.compile alone gives"
    return f"{told}; {best['name']} alone is {best['speedup']:.2f}x [{best['low']:.2f}, {best['high']:.2f}] over eager"


def _json(path: Path) -> Mapping[str, Any] | None:
    """The object in this file, None when there is no file. AutokernelError when it is not JSON."""
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise AutokernelError(
            f"expected JSON in {path}: {error}; remove the file, `autokernel run` makes it again"
        ) from error
    if not isinstance(data, dict):
        raise AutokernelError(f"expected a JSON object in {path}, found {type(data).__name__}; remove the file")
    return data


def _targets(profile: Mapping[str, Any] | None, path: Path) -> list[Target]:
    try:
        return [Target.from_json(t) for t in profile["targets"]] if profile else []
    except (KeyError, TypeError, ValueError) as error:
        raise AutokernelError(
            f"expected a profile in {path}, got one without a readable {error}; remove the file"
        ) from error


def _target(name: str, target: Target | None, rows: Sequence[Row], headline: Mapping[str, Any] | None) -> TargetReport:
    mine = [row for row in rows if row.target == name]
    starter = next((row for row in mine if row.decision == "baseline"), None)
    champion = history.champion(rows, name)
    numbers: dict[str, float | None]
    if entry := _headline_entry(headline, name, champion):
        numbers = {key: entry.get(key) for key in MEASURED}
        source = "headline" if entry.get("status") == "PASS" else f"headline: {entry.get('status')}"
    else:
        numbers = {key: getattr(champion, key) if champion else None for key in MEASURED}
        source = f"experiment {champion.experiment}" if champion else "not measured"
    judged = numbers["latency_us"], numbers["speedup_vs_eager"]
    return TargetReport(
        name=name,
        problem=target.kernel_type if target else mine[0].problem,
        backend=champion.backend if champion else target.backend if target else mine[0].backend,
        share=target.share if target else None,
        experiments=len(mine),
        kept=sum(row.decision == "keep" for row in mine),
        file=target.file if target else f"kernels/{name}.py",
        starter_vs_best=starter.speedup_vs_best if starter else None,
        floor_us=target.floor_us if target else None,
        source=source,
        model_gain=amdahl.model_gain(target, *judged) if target else 1.0,
        expected_gain=orchestrator.expected_gain(target, rows) if target else 0.0,
        spelled_out_us=amdahl.spelled_out(target, *judged) if target else None,
        **numbers,
    )


def _headline_entry(headline: Mapping[str, Any] | None, name: str, champion: Row | None) -> Mapping[str, Any] | None:
    """The thorough measurement of this target, if it is of the commit that stands now."""
    entry = (headline or {}).get("targets", {}).get(name)
    return entry if entry and champion and entry.get("commit") == champion.commit else None


def _failures(rows: Sequence[Row], folder: Path) -> list[Failure]:
    """Candidates that did not pass, most frequent status first."""
    counts = collections.Counter(row.status for row in rows if row.status != "PASS")
    failures = []
    for status, count in counts.most_common():
        last = max(row.experiment for row in rows if row.status == status)
        verdict = _json(folder / "experiments" / str(last) / "verdict.json") or {}
        failures.append(Failure(status, count, last, str(verdict.get("reason", "")).strip()))
    return failures
