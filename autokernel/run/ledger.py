"""The memory of a run: experiments as git commits, rows as a table, and a restart that loses neither.

An experiment is written in this order, each step one atomic rename:

1. ``propose``: the candidate's commit, then ``refs/experiments/N``. From here the proposal (and what it cost) is safe:
   a run killed while the judge works judges this commit when it comes back.
2. ``mend``, where a candidate failed and came back mended: a commit of the mended file takes the place of the one
   before under the same ref. A run killed before that judges the failed one again, and one after it the mended one.
3. ``record``: the verdict, comparison and row as one blob under ``refs/records/N``. From here it is never judged again.
4. a kept experiment advances the branch; any other leaves it where it was, and stays reachable by its ref.
5. views for people: the tracked kernel file, ``experiments/N/``, and the line of results.tsv.

``Ledger`` finishes steps 4 and 5 from the refs when it opens a workspace. What the two refs say is the truth; views
that disagree are set aside and written anew, with a note that names the line.

What was spent on asking moves from ``unbooked.json`` into the commit or record that names its entry; an entry that both
hold is dropped when the workspace opens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from autokernel.extension import Attempt
from autokernel.run import history, unbooked, views
from autokernel.run.gitstore import BRANCH, Store, told
from autokernel.run.history import Row
from autokernel.run.proposed import Kind, Proposed, details, put_details, read
from autokernel.run.unbooked import Unbooked
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

_EXPERIMENTS, _RECORDS = "refs/experiments", "refs/records"
IGNORED = (
    "results.tsv*",
    "experiments/",
    "profile.json",
    "run.json",
    "headline.json",
    unbooked.FILE,
    "HINTS.md",
    "TASK.md",
    "BRIEF.md",
    "ITERATIONS.md",
    "program.md",
    "report.md",
    "progress.png",
    "set-aside/",
    "scratch/",
    "lock",
)


class Ledger:
    """One open workspace; a context manager that holds its lock. Errors are AutokernelError with one clear line.

    ``held`` is entered around every write, so that a signal can wait until the write is whole.
    """

    def __init__(
        self,
        folder: Path,
        targets: Sequence[Target],
        starters: Callable[[], Mapping[str, str | bytes]],
        note: Callable[[str], None] = lambda message: None,
        held: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
        edited: Collection[str] = (),
    ) -> None:
        """Opens or creates the repository in ``folder`` and finishes what a killed run began.

        ``starters`` gives each target's file and its first source, and whatever else the first commit is to hold; asked
        only when there is no first commit yet.
        ``edited`` names tracked files that are being edited by hand: they are left as they are. The caller holds the
        workspace's lock.
        """
        self.folder, self._targets, self._note, self._held = folder, {t.name: t for t in targets}, note, held
        self.rows: list[Row] = []
        self.pending: Proposed | None = None
        self._experiments: dict[str, list[Experiment]] = {t.name: [] for t in targets}
        self._outcomes: dict[tuple[str, str], str] = {}  # (target, source id) -> what became of it
        with told(folder), held():
            self._store = self._open(starters)
            self.unbooked = Unbooked(folder)
            self._recover(edited)

    def close(self) -> None:
        self.unbooked.close()
        self._store.close()

    # ------------------------------------------------------------------------------------------------ questions

    @property
    def targets(self) -> Sequence[Target]:
        return tuple(self._targets.values())

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
        return (target.name, source_id(source)) in self._outcomes

    def beside(self) -> Cost:
        """What was spent and stands in no row: what nobody has booked yet, and the candidate without a verdict."""
        return unbooked.total([self.unbooked.total(), self.pending.cost if self.pending else Cost()])

    def outcome(self, target: Target, source: str) -> str:
        """What became of a source that was judged, in words."""
        return self._outcomes[target.name, source_id(source)]

    @property
    def tip(self) -> str:
        """The commit of the branch: every champion together."""
        with told(self.folder):
            tip = self._store.ref(BRANCH)
        assert tip is not None, "a ledger has a first commit"
        return tip

    # ------------------------------------------------------------------------------------------------ writing

    def propose(self, target: Target, candidate: Candidate, kind: Kind, spent_s: float) -> Proposed:
        """Commits a candidate on top of the branch tip, without moving the branch; books what was spent on it."""
        number, parent = len(self.rows) + 1, self.tip
        return self._commit(Proposed(number, target, candidate, kind, Cost(), spent_s, "", parent))

    def mend(self, proposed: Proposed, failed: Verdict, candidate: Candidate, spent_s: float) -> Proposed:
        """Puts a mended candidate in the place of the one that failed: the same experiment, one attempt more.
        ``spent_s`` is what judging the one before and asking for this one took.
        """
        before, number = proposed.candidate, len(proposed.attempts) + 1
        attempts = (*proposed.attempts, Attempt(before.source, before.idea, failed, number))
        spent_s += proposed.spent_s
        return self._commit(dataclasses.replace(proposed, candidate=candidate, attempts=attempts, spent_s=spent_s))

    def _commit(self, proposed: Proposed) -> Proposed:
        booked = self.unbooked.loose()
        proposed = dataclasses.replace(
            proposed,
            cost=unbooked.total([proposed.cost, *(entry.cost for entry in booked)]),
            exchanges=(*proposed.exchanges, *(exchange for entry in booked for exchange in entry.exchanges)),
            booked=tuple(entry.id for entry in booked),
        )
        with told(self.folder), self._held():
            put_details(self._store, proposed.number, proposed.attempts, proposed.exchanges)
            changes = {proposed.target.file: proposed.candidate.source}
            when_s = int(_now().timestamp())
            commit = self._store.put_commit(proposed.parent, changes, proposed.message(), when_s)
            self._store.set_ref(f"{_EXPERIMENTS}/{proposed.number}", commit)
            self.unbooked.drop(proposed.booked)
            self.pending = dataclasses.replace(proposed, commit=commit)
        return self.pending

    def record(
        self, proposed: Proposed, verdict: Verdict, comparison: Comparison | None, decision: Decision, judging_s: float
    ) -> Experiment:
        """Writes the outcome: keeps or resets the branch, appends the row. Returns the finished experiment."""
        booked = self.unbooked.loose()  # asking for a fix that did not come
        exchanges = (*proposed.exchanges, *(exchange for entry in booked for exchange in entry.exchanges))
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
            cost=unbooked.total([proposed.cost, *(entry.cost for entry in booked)]),
            attempts=len(proposed.attempts) + 1,
        )
        row = history.row_of(experiment, proposed.parent)
        record: dict[str, Any] = {
            "row": row.to_json(),
            "verdict": verdict.to_json(),
            "comparison": dataclasses.asdict(comparison) if comparison else None,
            "attempts": [source_id(attempt.source) for attempt in proposed.attempts],
            "exchanges": len(exchanges),
            "booked": [entry.id for entry in booked],
        }
        with told(self.folder), self._held():
            if booked:
                put_details(self._store, proposed.number, proposed.attempts, exchanges)
            blob = self._store.put_blob(json.dumps(record, indent=1).encode())
            self._store.set_ref(f"{_RECORDS}/{proposed.number}", blob)
            self.unbooked.drop([entry.id for entry in booked])
            self.pending = None
            self._remember(row, experiment, record["attempts"])
            if decision == "keep":
                self._store.set_ref(BRANCH, proposed.commit)
                self._store.check_out()
            views.write_experiment(self.folder, experiment, proposed.attempts, exchanges)
            history.append(self.folder / history.FILE, row)
        return experiment

    def tracked_files(self) -> list[str]:
        """The files of the branch tip."""
        with told(self.folder):
            return self._store.tracked()

    def edited_files(self) -> list[str]:
        """The tracked files that differ on disk from the branch tip."""
        with told(self.folder):
            return self._store.edited()

    def reset_files(self) -> None:
        """Makes the kernel files on disk the champions again, after an edit by hand that was not kept."""
        with told(self.folder), self._held():
            self._store.check_out()

    def _remember(self, row: Row, experiment: Experiment, mended: Sequence[str]) -> None:
        self.rows.append(row)
        self._experiments[row.target].append(experiment)
        outcome = _outcome(row.experiment, experiment.verdict, experiment.decision)
        for source in mended:
            self._outcomes[row.target, source] = f"an attempt that failed and was mended; in the end: {outcome}"
        self._outcomes[row.target, experiment.candidate.id] = outcome

    # ------------------------------------------------------------------------------------------------ opening

    def _open(self, starters: Callable[[], Mapping[str, str | bytes]]) -> Store:
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
        message = "[baseline] what the run starts from"
        return Store.create(self.folder, {".gitignore": ignored, **starters()}, message, int(_now().timestamp()))

    def _recover(self, edited: Collection[str]) -> None:
        commits, records = self._store.numbered(_EXPERIMENTS), self._store.numbered(_RECORDS)
        count = len(records)
        if set(records) != set(range(1, count + 1)) or set(commits) - {count + 1} != set(records):
            absent = sorted(set(range(1, max([*records, *commits, 0]) + 1)) - (set(records) & set(commits)))
            raise AutokernelError(
                f"{self.folder}: refs/experiments and refs/records were expected to number 1 to {count} without a gap; "
                f"{absent[:5]} are incomplete. Put the refs back, or start a new run with --fresh"
            )
        for number in range(1, count + 1):
            proposed = read(self._store, number, commits[number], self._targets, whole=False)
            self.unbooked.drop(proposed.booked)
            self._load(proposed, json.loads(self._store.blob(records[number])))
        if count + 1 in commits:
            self.pending = read(self._store, count + 1, commits[count + 1], self._targets, whole=True)
            self.unbooked.drop(self.pending.booked)
        self._settle_branch()
        for path, aside in self._store.check_out(edited).items():
            self._note(f"{path} was edited by hand: the run goes on from the branch tip, the edit is in {aside}")
        views.settle_table(self.folder, self.rows, self._note)

    def _load(self, proposed: Proposed, record: Mapping[str, Any]) -> None:
        row, comparison = Row.from_json(record["row"]), record["comparison"]
        self.unbooked.drop(record.get("booked", ()))
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
            cost=Cost(row.tokens_in, row.tokens_out, row.cost_usd),
            attempts=row.attempts,
        )
        attempts = record.get("attempts", ())
        self._remember(row, experiment, attempts)
        if not (views.experiment_folder(self.folder, row.experiment) / "verdict.json").exists():
            counts = len(attempts), record.get("exchanges", 0)
            views.write_experiment(self.folder, experiment, *details(self._store, row.experiment, *counts))

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


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def _outcome(number: int, verdict: Verdict, decision: str) -> str:
    return f"experiment {number}, {verdict.status.value}, {decision}: {verdict.reason}"
