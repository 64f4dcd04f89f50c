"""The proposer that repeats a recorded run: its candidates again, exactly and in order, without a model or a network.

Baselines and A/A repetitions are the new run's own; a candidate that failed and was mended then is mended now, if it
fails again. What comes next follows from the history alone: the first recorded candidate that was not tried.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from autokernel.extension import Brief, Proposal, ProposerFailed, ProposerOptions
from autokernel.run import history
from autokernel.run.desk import MENDED
from autokernel.run.history import Row
from autokernel.run.views import experiment_folder
from autokernel.types import AutokernelError, source_id


@dataclasses.dataclass(frozen=True)
class Recorded:
    """One experiment of the recorded run: its attempts in order, the last of which has the verdict of its row."""

    target: str
    attempts: tuple[Proposal, ...]

    def ids(self) -> set[str]:
        return {source_id(attempt.source) for attempt in self.attempts}


class Replay:
    name = "replay"
    in_flight = 1

    def __init__(self, folder: Path, targets: Sequence[str], recorded: Sequence[Recorded]) -> None:
        self._folder, self._targets, self._recorded = folder, targets, recorded
        self.fix_attempts = max((len(one.attempts) - 1 for one in recorded), default=0)

    def propose(self, brief: Brief) -> Proposal | None:
        if brief.target.name not in self._targets:
            raise ProposerFailed(
                f"{self._folder} is a run of the targets {', '.join(self._targets)}; '{brief.target.name}' is not one "
                "of them: replay a run of the same model, dtype and backend"
            )
        tried = {experiment.candidate.id for experiment in brief.history}
        left = (one for one in self._recorded if one.target == brief.target.name and not one.ids() & tried)
        following = next(left, None)
        if following is None:
            return None
        number = brief.failed.number if brief.failed else 0
        if number >= len(following.attempts):
            return None  # it was not mended any further then
        return following.attempts[number]


def create(options: ProposerOptions) -> Replay:
    folder = options.recorded
    if folder is None:
        raise AutokernelError("--proposer replay: the folder of a recorded run was expected; name it with --replay DIR")
    if not folder.is_dir():
        raise AutokernelError(f"--replay {folder}: the folder of a recorded run was expected, there is no such folder")
    rows = history.read(folder)
    recorded = tuple(_recorded(folder, row) for row in rows if row.decision in ("keep", "revert"))
    if not recorded:
        raise AutokernelError(f"--replay {folder}: this run has {len(rows)} experiments and no proposal among them")
    return Replay(folder, tuple(dict.fromkeys([*_profiled(folder), *(row.target for row in rows)])), recorded)


def _recorded(folder: Path, row: Row) -> Recorded:
    """Reads one experiment back. AutokernelError names the file that is not there."""
    place = experiment_folder(folder, row.experiment)
    try:
        attempts = []
        for number in range(1, row.attempts):
            idea = json.loads((place / f"attempt-{number}.json").read_bytes())["idea"]
            attempts.append(Proposal((place / f"attempt-{number}.py").read_bytes().decode(), idea))
        attempts.append(Proposal((place / "candidate.py").read_bytes().decode(), row.idea))
    except (OSError, ValueError, KeyError) as error:
        raise AutokernelError(
            f"--replay {folder}: experiment {row.experiment} cannot be read back ({error}); `autokernel run` on that "
            "workspace restores its folder from the git refs"
        ) from error
    prefix = f"{attempts[0].idea}{MENDED}"  # the new run puts it there again
    mended = (dataclasses.replace(attempt, idea=attempt.idea.removeprefix(prefix)) for attempt in attempts[1:])
    return Recorded(row.target, (attempts[0], *mended))


def _profiled(folder: Path) -> list[str]:
    """The targets that the run had, tried or not; none where its profile is gone."""
    path = folder / "profile.json"
    if not path.is_file():
        return []
    try:
        return [target["name"] for target in json.loads(path.read_bytes())["targets"]]
    except (ValueError, KeyError, TypeError) as error:
        raise AutokernelError(f"{path}: the profile of a run was expected: {error}") from error
