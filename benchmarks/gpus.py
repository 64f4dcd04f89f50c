"""Work spread over equal GPUs of one machine: one piece at a time on each, with its share of the processors."""

from __future__ import annotations

import concurrent.futures
import json
import os
import queue
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

Piece = TypeVar("Piece")
Found = TypeVar("Found")


def listed(ids: str) -> list[str]:
    """The ids of ``--gpus 0,1``. This process sees the first of them from here on: another GPU may be at work."""
    gpus = [each for each in ids.split(",") if each]
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[0]
    return gpus


def spread(
    pieces: Sequence[Piece], gpus: Sequence[str], work: Callable[[Piece, Mapping[str, str]], Found]
) -> Iterator[Found]:
    """What ``work(piece, environment)`` finds, as each ends. Processes that it starts with that environment use the
    GPU that this piece was given, and run on its processors. No ``gpus``: one piece at a time, anywhere.
    """
    places: queue.SimpleQueue[tuple[str, set[int]]] = queue.SimpleQueue()
    cores = sorted(os.sched_getaffinity(0))
    for number, gpu in enumerate(gpus or [""]):
        places.put((gpu, set(cores[number :: max(1, len(gpus))]) or set(cores)))

    def one(piece: Piece) -> Found:
        gpu, mine = places.get()
        os.sched_setaffinity(0, mine)  # of this thread, and of the processes that it starts
        try:
            return work(piece, {**os.environ, **({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})})
        finally:
            places.put((gpu, mine))

    pool = concurrent.futures.ThreadPoolExecutor(max(1, len(gpus)))
    try:
        for done in concurrent.futures.as_completed([pool.submit(one, piece) for piece in pieces]):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)  # what has not begun does not begin when one fails, or on Ctrl-C


def rows(
    pieces: Sequence[Piece],
    gpus: Sequence[str],
    work: Callable[[Piece, Mapping[str, str]], dict[str, Any]],
    told: Mapping[str, Any],
    path: Path | None,
    say: Callable[[dict[str, Any]], str],
) -> list[dict[str, Any]]:
    """The rows that ``work`` finds, in the order of their pieces; what is to say of each goes to standard error as it
    ends. With a path, JSON of ``told`` and the rows so far: also what there is when the rest is interrupted.
    """
    found: dict[int, dict[str, Any]] = {}

    def numbered(piece: tuple[int, Piece], environment: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        return piece[0], work(piece[1], environment)

    for number, row in spread(list(enumerate(pieces)), gpus, numbered):
        found[number] = row
        print(say(row), file=sys.stderr, flush=True)
        if path:
            path.write_text(json.dumps({**told, "rows": [found[n] for n in sorted(found)]}, indent=1) + "\n")
    return [found[n] for n in sorted(found)]
