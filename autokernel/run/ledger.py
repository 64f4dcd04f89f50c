"""The memory of a run: experiments as git commits, rows as a table, and a restart that loses neither.

An experiment is written in this order, each step one atomic rename:

1. ``propose``: the candidate's commit, then ``refs/experiments/N``. From here the proposal (and what it cost) is safe:
   a run killed while the judge works judges this commit when it comes back.
2. ``record``: the verdict, comparison and row as one blob under ``refs/records/N``. From here it is never judged again.
3. a kept experiment advances the branch; any other leaves it where it was, and stays reachable by its ref.
4. views for people: the tracked kernel file, ``experiments/N/``, and the line of results.tsv.

``Ledger`` finishes steps 3 and 4 from the refs when it opens a workspace. What the two refs say is the truth; views
that disagree are set aside and written anew, with a note that names the line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from autokernel.run import history
from autokernel.run.gitstore import BRANCH, Store, told, write_file
from autokernel.run.history import Row
from autokernel.types import (
    AutokernelError,
    Candidate,
    Comparison,
    Cost,
    Decision,
    Experiment,
    Target,
    Verdict,
    source_id,
)

Kind = Literal["baseline", "candidate", "aa"]
_EXPERIMENTS, _RECORDS, _TRAILER = "refs/experiments", "refs/records", "Proposal: "
IGNORED = (
    "results.tsv*",
    "experiments/",
    "profile.json",
    "run.json",
    "headline.json",
    "report.md",
    "progress.png",
    "set-aside/",
    "scratch/",
    "lock",
)


@dataclasses.dataclass(frozen=True)
class Proposed:
    """A candidate that is committed and has no verdict yet. ``spent_s`` is what proposing it took."""

    number: int
    target: Target
    candidate: Candidate
    kind: Kind
    cost: Cost
    spent_s: float
    commit: str
    parent: str


class Ledger:
    """One open workspace; a context manager that holds its lock. Errors are AutokernelError with one clear line.

    ``held`` is entered around every write, so that a signal can wait until the write is whole.
    """

    def __init__(
        self,
        folder: Path,
        targets: Sequence[Target],
        starters: Callable[[], Mapping[str, str]],
        note: Callable[[str], None] = lambda message: None,
        held: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        """Opens or creates the repository in ``folder`` and finishes what a killed run began.

        ``starters`` gives each target's file and its first source; asked only when there is no first commit yet.
        The caller holds the workspace's lock.
        """
        self.folder, self._targets, self._note, self._held = folder, {t.name: t for t in targets}, note, held
        self.rows: list[Row] = []
        self.pending: Proposed | None = None
        self._experiments: dict[str, list[Experiment]] = {t.name: [] for t in targets}
        self._judged: set[tuple[str, str]] = set()
        with told(folder), held():
            self._store = self._open(starters)
            self._recover()

    def close(self) -> None:
        self._store.close()

    # ------------------------------------------------------------------------------------------------ questions

    def experiments(self, target: str) -> Sequence[Experiment]:
        """This target's finished experiments, oldest first."""
        return tuple(self._experiments[target])

    def incumbent(self, target: Target) -> str:
        """The source that stands for this target: the one at the branch tip."""
        with told(self.folder):
            source = self._store.text(self.tip, target.file)
        if source is None:
            raise AutokernelError(f"{self.folder}: the branch was expected to hold {target.file}; --fresh starts anew")
        return source

    def judged(self, target: Target, source: str) -> bool:
        """Whether this very source already has a verdict for this target."""
        return (target.name, source_id(source)) in self._judged

    @property
    def tip(self) -> str:
        """The commit of the branch: every champion together."""
        with told(self.folder):
            tip = self._store.ref(BRANCH)
        assert tip is not None, "a ledger has a first commit"
        return tip

    # ------------------------------------------------------------------------------------------------ writing

    def propose(self, target: Target, candidate: Candidate, kind: Kind, cost: Cost, spent_s: float) -> Proposed:
        """Commits a candidate on top of the branch tip, without moving the branch."""
        number, parent = len(self.rows) + 1, self.tip
        trailer = {
            "target": target.name,
            "kind": kind,
            "idea": candidate.idea,
            "author": candidate.author,
            "parent": candidate.parent,
            "cost": dataclasses.asdict(cost),
            "spent_s": spent_s,
        }
        subject = " ".join(f"experiment {number}, {target.name}: {candidate.idea}".split())
        message = f"{_encodable(subject[:100])}\n\n{_TRAILER}{json.dumps(trailer)}\n"
        with told(self.folder), self._held():
            changes = {target.file: candidate.source}
            commit = self._store.put_commit(parent, changes, message, int(_now().timestamp()))
            self._store.set_ref(f"{_EXPERIMENTS}/{number}", commit)
            self.pending = Proposed(number, target, candidate, kind, cost, spent_s, commit, parent)
        return self.pending

    def record(
        self, proposed: Proposed, verdict: Verdict, comparison: Comparison | None, decision: Decision, judging_s: float
    ) -> Experiment:
        """Writes the outcome: keeps or resets the branch, appends the row. Returns the finished experiment."""
        experiment = Experiment(
            number=proposed.number,
            time=_now().strftime("%Y-%m-%dT%H:%M:%SZ"),
            target=proposed.target,
            candidate=proposed.candidate,
            verdict=verdict,
            comparison=comparison,
            decision=decision,
            seconds=proposed.spent_s + judging_s,
            commit=proposed.commit,
            cost=proposed.cost,
        )
        row = history.row_of(experiment, proposed.parent)
        record = {
            "row": row.to_json(),
            "verdict": verdict.to_json(),
            "comparison": dataclasses.asdict(comparison) if comparison else None,
        }
        with told(self.folder), self._held():
            blob = self._store.put_blob(json.dumps(record, indent=1).encode())
            self._store.set_ref(f"{_RECORDS}/{proposed.number}", blob)
            self.pending = None
            self._remember(row, experiment)
            if decision == "keep":
                self._store.set_ref(BRANCH, proposed.commit)
                self._store.check_out()
            self._write_folder(experiment)
            history.append(self.folder / history.FILE, row)
        return experiment

    def _remember(self, row: Row, experiment: Experiment) -> None:
        self.rows.append(row)
        self._experiments[row.target].append(experiment)
        self._judged.add((row.target, experiment.candidate.id))

    def _write_folder(self, experiment: Experiment) -> None:
        """``experiments/N``: candidate.py, verdict.json, log.txt, and comparison.json where there is one."""
        verdict, comparison = experiment.verdict, experiment.comparison
        place = self.folder / "experiments" / str(experiment.number)
        temporary = place.with_name(f".{experiment.number}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        files = {
            "candidate.py": experiment.candidate.source,
            "verdict.json": json.dumps(verdict.to_json(), indent=1),
            "log.txt": f"{verdict.status.value} at {verdict.stage}: {verdict.reason}\n{verdict.log_tail}\n",
        }
        if comparison:
            files["comparison.json"] = json.dumps(dataclasses.asdict(comparison), indent=1)
        for name, text in files.items():
            (temporary / name).write_bytes(text.encode("utf-8", "replace"))
        shutil.rmtree(place, ignore_errors=True)
        temporary.rename(place)

    # ------------------------------------------------------------------------------------------------ opening

    def _open(self, starters: Callable[[], Mapping[str, str]]) -> Store:
        if (self.folder / ".git").exists():
            store = Store(self.folder)
            if store.ref(BRANCH) is None:
                raise AutokernelError(f"{self.folder}: git branch main is gone; put it back, or start with --fresh")
            return store
        if (self.folder / history.FILE).exists():
            raise AutokernelError(
                f"{self.folder}: results.tsv tells of experiments whose git repository (.git) is gone; "
                "put .git back, or start a new run with --fresh"
            )
        ignored = "".join(f"/{name}\n" for name in IGNORED)
        message = "The starters, as extracted from the model"
        return Store.create(self.folder, {".gitignore": ignored, **starters()}, message, int(_now().timestamp()))

    def _recover(self) -> None:
        commits, records = self._store.numbered(_EXPERIMENTS), self._store.numbered(_RECORDS)
        count = len(records)
        if set(records) != set(range(1, count + 1)) or set(commits) - {count + 1} != set(records):
            absent = sorted(set(range(1, max([*records, *commits, 0]) + 1)) - (set(records) & set(commits)))
            raise AutokernelError(
                f"{self.folder}: refs/experiments and refs/records were expected to number 1 to {count} without a gap; "
                f"{absent[:5]} are incomplete. Put the refs back, or start a new run with --fresh"
            )
        for number in range(1, count + 1):
            self._load(self._proposed(number, commits[number]), json.loads(self._store.blob(records[number])))
        if count + 1 in commits:
            self.pending = self._proposed(count + 1, commits[count + 1])
        self._settle_branch()
        for path, aside in self._store.check_out().items():
            self._note(f"{path} was edited by hand: the run goes on from the branch tip, the edit is in {aside}")
        for experiments in self._experiments.values():
            for experiment in experiments:
                if not (self.folder / "experiments" / str(experiment.number) / "verdict.json").exists():
                    self._write_folder(experiment)
        self._settle_table()

    def _proposed(self, number: int, commit: str) -> Proposed:
        """Reads an experiment's commit back."""
        body = self._store.message(commit)
        trailer = json.loads(body[body.index(_TRAILER) + len(_TRAILER) :])
        target = self._targets.get(trailer["target"])
        if target is None:
            raise AutokernelError(
                f"{self.folder}: experiment {number} is of target '{trailer['target']}', which profile.json does not "
                "name: it was made for other targets. Put the old profile.json back, or start with --fresh"
            )
        source = self._store.text(commit, target.file) or ""
        candidate = Candidate(target.name, source, trailer["parent"], trailer["idea"], trailer["author"])
        cost, parent = Cost(**trailer["cost"]), self._store.parent(commit)
        return Proposed(number, target, candidate, trailer["kind"], cost, trailer["spent_s"], commit, parent)

    def _load(self, proposed: Proposed, record: Mapping[str, Any]) -> None:
        row, comparison = Row.from_json(record["row"]), record["comparison"]
        experiment = Experiment(
            number=row.experiment,
            time=row.time,
            target=proposed.target,
            candidate=proposed.candidate,
            verdict=Verdict.from_json(record["verdict"]),
            comparison=Comparison.from_json(comparison) if comparison else None,
            decision=row.decision,
            seconds=row.seconds,
            commit=row.commit,
            cost=proposed.cost,
        )
        self._remember(row, experiment)

    def _settle_branch(self) -> None:
        """Finishes a keep that was recorded and not yet carried out; refuses a branch that no experiment made."""
        kept = [row for row in self.rows if row.decision == "keep"]
        if not kept or self.tip == kept[-1].commit:
            return
        if self.tip != kept[-1].parent:
            raise AutokernelError(
                f"{self.folder}: branch main was expected at {kept[-1].commit[:12]} (experiment {kept[-1].experiment}, "
                f"the last one kept) and is at {self.tip[:12]}; "
                f"`git -C {self.folder} reset --hard {kept[-1].commit[:12]}` puts it back"
            )
        self._store.set_ref(BRANCH, kept[-1].commit)

    def _settle_table(self) -> None:
        """Makes results.tsv agree with the refs; a file that was broken is kept beside it and named."""
        path = self.folder / history.FILE
        expected = history.render(self.rows)
        found = path.read_bytes() if path.exists() else b""
        if found == expected.encode():
            return
        if found and not expected.encode().startswith(found):
            theirs, ours = found.split(b"\n"), expected.encode().split(b"\n")
            pairs = enumerate(zip(theirs, ours, strict=False), start=1)
            line = next((number for number, (a, b) in pairs if a != b), min(len(theirs), len(ours)))
            try:
                more = len(history.parse(found.decode("utf-8"), str(path))) > len(self.rows)
            except (AutokernelError, UnicodeDecodeError):
                more = False
            if more:
                raise AutokernelError(
                    f"{path} line {len(ours)}: experiment {len(self.rows) + 1} is told of, and git has no "
                    f"refs/records/{len(self.rows) + 1}. Put .git back as it was, or remove the lines from there on"
                )
            aside = _unused(path)
            write_file(aside, found)
            self._note(f"{path} line {line} was broken: restored from the git refs; the broken file is {aside.name}")
        elif found and not found.endswith(b"\n"):
            self._note(f"{path} line {found.count(10) + 1} was cut off: restored from the git refs")
        write_file(path, expected.encode())


def _unused(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.broken-{n}") for n in range(1, 10_000))
    return next(name for name in names if not name.exists())


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")
