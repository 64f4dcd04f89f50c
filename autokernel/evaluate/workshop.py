"""Where runners are made ready: the candidate's file, or one of our baselines, loaded in a fresh process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path

import torch

from autokernel import registry
from autokernel.assets import cache_folder
from autokernel.evaluate.pool import Handle, Nursery, RunnerFailed, close_all
from autokernel.evaluate.spares import Batch, affordable, await_greeted, greet
from autokernel.evaluate.stages import Failed, failure_status
from autokernel.isolation import remove_tree
from autokernel.types import Status, source_id


class Workshop:
    """Starts runners of a nursery, which is its own from now on. Build products of a source are found again by its own
    later runners only.

    Between verdicts it makes up to ``spares`` runners ahead (see ``prepare``).
    """

    def __init__(self, nursery: Nursery, spares: int = 0) -> None:
        self.device = nursery.device
        self._nursery = nursery
        self._spares = spares
        self.isolation = nursery.levels()
        self._builds = nursery.folder / "cache"
        self._builds.mkdir(parents=True, exist_ok=True)
        self._folders: dict[str, Path] = {}  # of build products, by the id of the source
        self._batch: Batch | None = None
        self._leaving: list[Handle] = []  # told to end; gone when they are closed

    def start(self, source: str, backend: str) -> Handle:
        """A runner that has loaded ``source``. Raises Failed (BUILD, TIMEOUT or CRASH)."""
        return self.start_all([source], backend)[0]

    def start_all(self, sources: Sequence[str], backend: str) -> list[Handle]:
        """Runners that have loaded these sources, side by side. Raises Failed when one of them does not load."""
        spares = [self._spare(source, backend) for source in sources]
        handles = [
            spare or self._spawn(self._folders[source_id(source)], backend)
            for spare, source in zip(spares, sources, strict=True)
        ]
        fresh = [handle for handle, spare in zip(handles, spares, strict=True) if spare is None]
        try:
            greet(fresh)
            for handle, source in zip(handles, sources, strict=True):
                handle.post("load", {"source": source, "threads": self._nursery.threads})
            await_greeted(fresh, self._nursery.limits.build_s)
            for handle in handles:
                handle.wait("load", self._nursery.limits.build_s)
        except RunnerFailed as failure:
            close_all(handles)
            raise Failed(failure_status(failure, Status.BUILD), failure.reason, failure.log_tail) from None
        return handles

    def _spare(self, source: str, backend: str) -> Handle | None:
        """A runner made ahead that this source may have; from here on the source has a folder."""
        identity, batch = source_id(source), self._batch
        if identity not in self._folders:
            if batch is not None and not batch.owner and batch.backend == backend:
                batch.owner = identity
                self._folders[identity] = batch.folder
            else:
                self._folders[identity] = self._new_folder(backend)
        return batch.take() if batch is not None and batch.owner == identity else None

    def _new_folder(self, backend: str) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="source-", dir=self._builds))
        known = registry.load("backends", backend)
        if hasattr(known, "furnish"):
            known.furnish(folder)
        return folder

    def _spawn(self, folder: Path, backend: str) -> Handle:
        return self._nursery.spawn(folder, registry.load("backends", backend).environment(str(folder)))

    def prepare(self, backend: str) -> int | None:
        """One step towards spare runners for the next new source of a backend, which takes 20 ms at most; and the
        descriptor to wait for before the next. None when there is nothing left to do.
        """
        if self._batch is not None and (self._batch.owner or self._batch.backend != backend):
            self._discard()
        self._leaving = [handle for handle in self._leaving if not handle.closed]
        gone = wait([handle.reaper_fd for handle in self._leaving], 0)
        close_all(handle for handle in self._leaving if handle.reaper_fd in gone)
        self._leaving = [handle for handle in self._leaving if not handle.closed]
        if self._leaving:
            return self._leaving[0].reaper_fd
        if self._batch is None and (size := affordable(self._spares, torch.device(self.device))):
            folder = self._new_folder(backend)
            self._batch = Batch(backend, folder, size, lambda: self._spawn(folder, backend))
        return self._batch.step() if self._batch is not None else None

    def let_go(self, handles: Iterable[Handle]) -> None:
        """Tell runners to end, which they do by themselves; ``settle`` waits for that."""
        for handle in handles:
            if not handle.closed:
                handle.hang_up()
                self._leaving.append(handle)

    def settle(self) -> None:
        """From here on no runner is made or ends but those that the caller starts and closes: end all spare ones."""
        self._discard()
        close_all(self._leaving)
        self._leaving.clear()

    def _discard(self) -> None:
        """Let go of the spare runners that are left, and of their folder if it is nobody's."""
        batch, self._batch = self._batch, None
        if batch is not None:
            self.let_go(batch.rest())
            if not batch.owner:
                remove_tree(batch.folder)

    def start_baseline(self, name: str, problem: str) -> Handle:
        """A runner of a problem's "eager", "library" or "compile": our own code, not confined. Raises RunnerFailed."""
        cache = cache_folder() / "baselines"
        # Inductor keeps the headers that it precompiles, for five seconds on a CPU, where temporary files lie.
        temporary = cache / "tmp"
        temporary.mkdir(parents=True, exist_ok=True)
        environment = {**registry.load("backends", "torch").environment(str(cache)), "TMPDIR": str(temporary)}
        handle = self._nursery.spawn(cache, environment, confine=False)
        try:
            greet([handle])
            await_greeted([handle], self._nursery.limits.build_s)
            handle.ask("load", {"baseline": name, "problem": problem, "threads": self._nursery.threads})
        except RunnerFailed:
            handle.close()
            raise
        return handle

    def evidence(self, source: str, backend: str) -> Mapping[str, Mapping[str, float]]:
        """What the compiler reported for the kernels of a source; empty for a backend that reports nothing."""
        report = getattr(registry.load("backends", backend), "evidence", None)
        folder = self._folders.get(source_id(source))
        return report(folder) if report and folder else {}

    def forget(self, source: str) -> None:
        """Remove what was built of a source."""
        folder = self._folders.pop(source_id(source), None)
        if folder is not None:
            remove_tree(folder)

    def close(self) -> None:
        self.settle()
        self._nursery.close()
