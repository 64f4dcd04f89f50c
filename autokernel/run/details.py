"""What is too long for a commit's message: failed attempts and exchanges with a model, a blob for each experiment."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

from autokernel.extension import Attempt, Exchange
from autokernel.run.gitstore import Store
from autokernel.types import AutokernelError, Verdict

_DETAILS = "refs/details"

Details = tuple[tuple[Attempt, ...], tuple[Exchange, ...]]


def put(store: Store, number: int, attempts: Sequence[Attempt], exchanges: Sequence[Exchange]) -> None:
    """Writes the details of an experiment where it has any; both lists only ever grow."""
    if not attempts and not exchanges:
        return
    failed = [{**dataclasses.asdict(attempt), "verdict": attempt.verdict.to_json()} for attempt in attempts]
    blob = json.dumps({"attempts": failed, "exchanges": list(exchanges)}, indent=1)
    store.set_ref(f"{_DETAILS}/{number}", store.put_blob(blob.encode()))


def get(store: Store, number: int, attempts: int, exchanges: int) -> Details:
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
