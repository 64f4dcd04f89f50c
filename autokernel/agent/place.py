"""The folder of a run as whoever stands in it sees it: found from the current one, read without opening its ledger."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autokernel import modelref, report
from autokernel.evaluate.client import JudgeOptions
from autokernel.extension import Brief
from autokernel.guide import figures, program
from autokernel.guide.problem import describe
from autokernel.guide.progress import TIERS, due
from autokernel.run import history, workspace
from autokernel.run.desk import hints, standing
from autokernel.run.history import Row
from autokernel.types import AutokernelError, Experiment, Target

DEFAULT_GAIN = 0.005


@dataclasses.dataclass(frozen=True)
class Place:
    """A run: what run.json and profile.json say. ``settings`` are run.json's; ``signature`` is the kernel's, where init
    was given one.
    """

    folder: Path
    targets: tuple[Target, ...]
    hardware: Mapping[str, Any]
    settings: Mapping[str, Any]
    signature: str = ""

    @property
    def judge_options(self) -> JudgeOptions:
        return JudgeOptions(device=self.settings["device"], min_gain=self.settings.get("min_gain", DEFAULT_GAIN))

    def target(self, name: str) -> Target:
        return next(target for target in self.targets if target.name == name)

    def rows(self) -> list[Row]:
        """Those of results.tsv; none before the first experiment."""
        path = self.folder / history.FILE
        return history.read(path) if path.exists() else []


def find(given: Path | None = None) -> Path:
    """The folder of a run: the one that is given, else the one that the current folder lies in, else the newest under
    results/. Raises AutokernelError where there is none.
    """
    if given is not None:
        if not (given / "run.json").is_file():
            raise AutokernelError(f"{given}: the folder of a run was expected (run.json); `autokernel init` makes one")
        return given.absolute()
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "run.json").is_file() and (folder / "kernels").is_dir():
            return folder
    try:
        return report.newest_run(Path("results")).absolute()
    except AutokernelError as error:
        raise AutokernelError(
            f"{here} was expected to be the folder of a run, or in one, or to have one under results/; "
            "`autokernel init DIR` makes one, --run DIR names one"
        ) from error


def read(folder: Path) -> Place:
    """Raises AutokernelError where run.json or profile.json is missing or broken."""
    data = workspace.read_json(folder / "profile.json")
    targets = tuple(Target.from_json(target, folder) for target in data["targets"])
    settings = workspace.read_json(folder / "run.json")
    return Place(folder, targets, data.get("hardware", {}), settings, data.get("signature", ""))


def brief(place: Place, target: Target, experiments: Sequence[Experiment], source: str, seed: int = 0) -> Brief:
    """What a proposer would be told now."""
    stands = standing(experiments)
    return Brief(
        target=target,
        source=source,
        position=stands.verdict.measurements if stands else None,
        history=experiments,
        hardware=place.hardware,
        seed=seed,
        evidence=stands.verdict.evidence if stands else {},
        hints=hints(place.folder),
        model=modelref.title(str(place.settings.get("model", ""))),
    )


def bound(place: Place, target: Target) -> figures.Bound:
    """What bounds this target's time, where its costs and the device's ceilings are known."""
    where = program.place(target.problem, target.backend, place.hardware)
    costs = figures.calls(target.workloads, describe(target.problem), figures.ceilings(place.hardware))
    return figures.bound(costs, where["devices"])


def next_step(place: Place, target: Target, experiments: Sequence[Experiment]) -> str:
    """What to try next, in one line: the tier that is due and why."""
    found = due(experiments, bound(place, target))
    if found.tier is None:
        return f"no tier is due ({found.reason}): read 'stuck' in program.md"
    return f"tier {found.tier}, {TIERS[found.tier]} ({found.reason})"


def edited(place: Place, changed: Sequence[str]) -> Target:
    """The one target whose kernel is among the changed files. Raises AutokernelError for none, several, or others."""
    kernels = {target.file: target for target in place.targets}
    others = [path for path in changed if path not in kernels]
    if others:
        raise AutokernelError(
            f"{place.folder}: only {' or '.join(kernels)} may be edited, and {others[0]} was, too; put it back: "
            f"git -C {place.folder} checkout -- {others[0]}"
        )
    mine = [path for path in changed if path in kernels]
    if not mine:
        raise AutokernelError(f"{place.folder}: an edit of {' or '.join(kernels)} was expected; nothing was edited")
    if len(mine) > 1:
        raise AutokernelError(f"{place.folder}: one edited kernel was expected; {' and '.join(mine)} were edited")
    return kernels[mine[0]]


def context_files(place: Place) -> list[str]:
    """The files below context/, caches of Python aside, relative to the folder."""
    found = []
    for root, folders, files in os.walk(place.folder / "context"):
        folders[:] = [name for name in folders if name != "__pycache__"]
        found += [Path(root, name).relative_to(place.folder).as_posix() for name in files]
    return sorted(found)
