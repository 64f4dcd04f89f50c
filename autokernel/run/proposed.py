"""A candidate that is committed and has no verdict yet, and how git holds it.

Its commit's message ends with a JSON trailer. What is too long for a message (failed attempts, exchanges with a model)
is a blob under ``refs/details/N``, written before the commit that counts it. The blob only grows, and a commit says how
much of it is its own: what a kill left over at its end belongs to nobody.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from autokernel.extension import Attempt, Exchange
from autokernel.run.gitstore import Store
from autokernel.types import AutokernelError, Candidate, Cost, Target, Verdict

Kind = Literal["baseline", "candidate", "aa"]
Details = tuple[tuple[Attempt, ...], tuple[Exchange, ...]]
_DETAILS, _TRAILER = "refs/details", "Proposal: "


@dataclasses.dataclass(frozen=True)
class Proposed:
    """One experiment before its verdict. ``spent_s`` is what proposing the candidate took, and proposing and judging
    the ``attempts`` that failed before it; ``cost`` and ``exchanges`` are those of all of them. ``booked`` names the
    entries of unbooked.json that the commit took over.
    """

    number: int
    target: Target
    candidate: Candidate
    kind: Kind
    cost: Cost
    spent_s: float
    commit: str
    parent: str
    attempts: tuple[Attempt, ...] = ()
    exchanges: tuple[Exchange, ...] = ()
    booked: tuple[str, ...] = ()

    def message(self) -> str:
        """The message of its commit."""
        candidate = self.candidate
        trailer = {
            "target": self.target.name,
            "kind": self.kind,
            "idea": candidate.idea,
            "author": candidate.author,
            "parent": candidate.parent,
            "cost": dataclasses.asdict(self.cost),
            "spent_s": self.spent_s,
            "attempts": len(self.attempts),
            "exchanges": len(self.exchanges),
            "booked": self.booked,
        }
        subject = " ".join(f"[iter {self.number}] {self.target.name}: {candidate.idea}".split())[:100]
        return f"{subject.encode('utf-8', 'replace').decode()}\n\n{_TRAILER}{json.dumps(trailer)}\n"


def read(store: Store, number: int, commit: str, targets: Mapping[str, Target], *, whole: bool) -> Proposed:
    """Reads an experiment's commit back; its attempts and exchanges only if it is wanted ``whole``."""
    body = store.message(commit)
    trailer: dict[str, Any] = json.loads(body[body.index(_TRAILER) + len(_TRAILER) :])
    target = targets.get(trailer["target"])
    if target is None:
        raise AutokernelError(
            f"{store.folder}: experiment {number} is of target '{trailer['target']}', which profile.json does not "
            "name: it was made for other targets. Put the old profile.json back, or start with --fresh"
        )
    source = store.text(commit, target.file) or ""
    counts = (trailer.get("attempts", 0), trailer.get("exchanges", 0)) if whole else (0, 0)
    attempts, exchanges = details(store, number, *counts)
    return Proposed(
        number=number,
        target=target,
        candidate=Candidate(target.name, source, trailer["parent"], trailer["idea"], trailer["author"]),
        kind=trailer["kind"],
        cost=Cost(**trailer["cost"]),
        spent_s=trailer["spent_s"],
        commit=commit,
        parent=store.parent(commit),
        attempts=attempts,
        exchanges=exchanges,
        booked=tuple(trailer.get("booked", ())),
    )


def put_details(store: Store, number: int, attempts: Sequence[Attempt], exchanges: Sequence[Exchange]) -> None:
    """Writes the details of an experiment where it has any."""
    if not attempts and not exchanges:
        return
    failed = [{**dataclasses.asdict(attempt), "verdict": attempt.verdict.to_json()} for attempt in attempts]
    blob = json.dumps({"attempts": failed, "exchanges": list(exchanges)}, indent=1)
    store.set_ref(f"{_DETAILS}/{number}", store.put_blob(blob.encode()))


def details(store: Store, number: int, attempts: int, exchanges: int) -> Details:
    """So many of an experiment's attempts and exchanges as its commit or record counts."""
    if not attempts and not exchanges:
        return (), ()
    blob = store.ref(f"{_DETAILS}/{number}")
    if blob is None:
        raise AutokernelError(
            f"{store.folder}: {_DETAILS}/{number} was expected and is gone; put it back, or start with --fresh"
        )
    found = json.loads(store.blob(blob))
    failed = [
        Attempt(a["source"], a["idea"], Verdict.from_json(a["verdict"]), a["number"])
        for a in found["attempts"][:attempts]
    ]
    return tuple(failed), tuple(found["exchanges"][:exchanges])
