"""What a run won: the kernel files that stand, checked against the verdicts that made them stand. No torch here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from autokernel import amdahl
from autokernel.run import history
from autokernel.types import AutokernelError, DType, Target

# Who runs what no kernel covers -> the mode of a verification that says what pays there.
MODES = {"eager": "ours", "inductor": "ours+compile", "graphs": "ours+graphs"}


@dataclasses.dataclass(frozen=True)
class Won:
    """One kernel that beats what the model runs: ``speedup`` times, by its headline where there is one, else by its
    row; ``gain`` is the fraction of a forward that it saves by Amdahl's law.
    """

    target: Target
    source: str
    commit: str
    experiment: int
    speedup: float

    @property
    def gain(self) -> float:
        return self.target.share * (1.0 - 1.0 / self.speedup)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's folder as far as its model needs it. ``fingerprint`` names the parameters that the model had;
    ``forward_us`` is the wall time of one eager forward and ``attributed_us`` the part that its kernels account for.
    """

    folder: Path
    model: str
    device: str
    dtype: DType
    settings: Mapping[str, str]
    fingerprint: str | None
    forward_us: float
    attributed_us: float
    won: tuple[Won, ...]


def read(
    folder: Path, only: Collection[str] | None = None, *, rest: str | None = None, everything: bool = False
) -> Run:
    """The kernels of a run that beat eager, those that save most first.

    ``only`` names the targets that are wanted (default: all that were won, less those that a verification of this run
    found not to pay beside ``rest``, or anywhere; with ``everything``, those too). Raises AutokernelError for a folder
    that is no run, for a target that won nothing, and for a kernel file that is not the one its verdict was given for.
    """
    profile = _json(folder / "profile.json")
    rows = history.read(folder)
    headlines = _json(folder / "headline.json")["targets"] if (folder / "headline.json").exists() else {}
    found = []
    for data in profile["targets"]:
        target = Target.from_json(data, folder.absolute())
        row = history.champion(rows, target.name)
        if row is None:
            continue
        headline = headlines.get(target.name, {})
        latency_us, speedup = row.latency_us, row.speedup_vs_eager
        if headline.get("commit") == row.commit and headline.get("speedup_vs_eager"):
            latency_us, speedup = headline["latency_us"], headline["speedup_vs_eager"]
        speedup = amdahl.model_gain(target, latency_us, speedup)
        if speedup <= 1.0:
            continue
        found.append(Won(target, _source(folder, target, row.experiment), row.commit, row.experiment, speedup))
    names = {won.target.name for won in found}
    for name in only or ():
        if name not in names:
            raise AutokernelError(
                f"{folder}: a kernel '{name}' that beats eager was expected; "
                f"this run has {', '.join(sorted(names)) or 'none'}"
            )
    wanted = set(only) if only is not None else names - (set() if everything else _refused(folder, found, rest))
    chosen = sorted((won for won in found if won.target.name in wanted), key=lambda won: -won.gain)
    return Run(
        folder,
        profile["model"],
        profile["device"],
        profile["dtype"],
        profile["settings"],
        profile.get("fingerprint"),
        profile["forward_us"],
        profile["attributed_us"],
        tuple(chosen),
    )


def _refused(folder: Path, found: Collection[Won], rest: str | None) -> set[str]:
    """The targets that verification.json leaves out, as long as the kernel that it measured still stands: by their
    trials beside ``rest`` where there were any, else those that pay nowhere.
    """
    path = folder / "verification.json"
    if not path.exists():
        return set()
    commits = {won.target.name: won.commit for won in found}
    told = _json(path)
    verdicts = told.get("kernels", {})
    trials = told.get("steps", {}).get(MODES.get(rest or ""))
    if trials is not None:
        verdicts = {step["target"]: step for step in trials}
    return {n for n, v in verdicts.items() if not v.get("applied", True) and v.get("commit") == commits.get(n)}


def _source(folder: Path, target: Target, experiment: int) -> str:
    """The kernel file, which must be, byte for byte, the candidate that passed."""
    place, judged = folder / target.file, folder / "experiments" / str(experiment) / "candidate.py"
    try:
        source, verdict = place.read_bytes(), judged.read_bytes()
    except OSError as error:
        raise AutokernelError(f"{error.filename}: {error.strerror}; `autokernel run` restores a run's files") from error
    if source != verdict:
        raise AutokernelError(
            f"{place} was edited since experiment {experiment} gave its verdict: refused. Judge it "
            f"(`autokernel bench {place}`), or put it back (`git -C {folder} checkout {target.file}`)"
        )
    return source.decode()


def _json(path: Path) -> Mapping[str, Any]:
    try:
        data: Mapping[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise AutokernelError(f"{path.parent} was expected to be a run's folder; it has no {path.name}") from error
    except ValueError as error:
        raise AutokernelError(f"{path} was expected to be JSON: {error}") from error
    return data
