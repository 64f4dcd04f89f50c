"""What was spent on asking and stands in no row yet: answers without a file to judge, and proposals that wait.

``unbooked.json`` in the workspace holds it from the moment an answer arrives, so that neither a kill nor a stop loses
it: the next commit or record of the ledger takes it over and names the entries that it booked, and limits count it
until then. Threads may add to it.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
import threading
from collections.abc import Collection, Sequence
from pathlib import Path

from autokernel.extension import Exchange
from autokernel.redact import redact
from autokernel.run.gitstore import told, write_file
from autokernel.run.workspace import read_json
from autokernel.types import AutokernelError, Cost

FILE = "unbooked.json"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One answer: what it cost, and the exchanges that led to it, without secrets."""

    id: str
    cost: Cost
    exchanges: tuple[Exchange, ...]


def total(costs: Sequence[Cost]) -> Cost:
    return Cost(
        sum(cost.tokens_in for cost in costs),
        sum(cost.tokens_out for cost in costs),
        sum(cost.cost_usd for cost in costs),
    )


def read(folder: Path) -> list[Entry]:
    """The entries of a run's folder, oldest first. AutokernelError when the file is broken."""
    path = folder / FILE
    if not path.exists():
        return []
    data = read_json(path)
    try:
        return [Entry(e["id"], Cost(**e["cost"]), tuple(e["exchanges"])) for e in data["entries"]]
    except (KeyError, TypeError) as error:
        raise AutokernelError(f"{path}: entries with id, cost and exchanges were expected: {error}") from error


class Unbooked:
    """The entries of one open workspace. An entry that is ``waiting`` belongs to a proposal that nobody has taken yet;
    the others are loose, and the next booking takes them.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._entries = {entry.id: entry for entry in read(folder)}
        self._waiting: set[str] = set()
        self._lock = threading.Lock()
        self._closed = False

    def add(self, cost: Cost, exchanges: Sequence[Exchange], *, waiting: bool = False) -> str:
        """Notes an answer; on the disk when it returns. Returns its id; "" for one that cost and said nothing, and
        after ``close``.
        """
        with self._lock:
            if self._closed or (cost == Cost() and not exchanges):
                return ""
            told_ = json.loads(json.dumps(redact(list(exchanges)), default=str))  # whatever it holds can be written
            entry = Entry(secrets.token_hex(8), cost, tuple(told_))
            self._entries[entry.id] = entry
            if waiting:
                self._waiting.add(entry.id)
            self._write()
            return entry.id

    def release(self, entry: str) -> None:
        """The proposal of this entry was taken: the next booking is its own."""
        with self._lock:
            self._waiting.discard(entry)

    def loose(self) -> list[Entry]:
        with self._lock:
            return [entry for entry in self._entries.values() if entry.id not in self._waiting]

    def total(self) -> Cost:
        """Everything spent that is in no row, whether its proposal waits or not."""
        with self._lock:
            return total([entry.cost for entry in self._entries.values()])

    def drop(self, booked: Collection[str]) -> None:
        """Forgets what a commit or a record has taken over."""
        with self._lock:
            if self._entries.keys() & set(booked):
                self._entries = {name: entry for name, entry in self._entries.items() if name not in booked}
                self._write()

    def close(self) -> None:
        """From here on nothing is written: an answer that is still to come is nobody's."""
        with self._lock:
            self._closed = True

    def _write(self) -> None:
        entries = [dataclasses.asdict(entry) for entry in self._entries.values()]
        with told(self._path):
            write_file(self._path, json.dumps({"entries": entries}, indent=1).encode("utf-8", "replace"))
