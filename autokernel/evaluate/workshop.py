"""Where runners are made ready: the candidate's file, or one of our baselines, loaded in a fresh process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from autokernel import registry
from autokernel.assets import cache_folder
from autokernel.evaluate.pool import Handle, Nursery, RunnerFailed, close_all
from autokernel.evaluate.stages import Failed, failure_status
from autokernel.isolation import Limits, remove_tree
from autokernel.types import Status, source_id


class Workshop:
    """Starts runners on one device. Build products of a source are found again by its own later runners only."""

    def __init__(
        self, folder: Path, device: str, threads: int, limits: Limits | None = None, off: frozenset[str] = frozenset()
    ) -> None:
        self.device = device
        self.threads = threads
        self._folder = folder
        self._limits = limits or Limits()
        self._nursery = Nursery(folder, device, threads, {}, self._limits, off)
        self.isolation = self._nursery.levels()

    def start(self, source: str, backend: str) -> Handle:
        """A runner that has loaded ``source``. Raises Failed (BUILD, TIMEOUT or CRASH)."""
        return self.start_all([source], backend)[0]

    def start_all(self, sources: Sequence[str], backend: str) -> list[Handle]:
        """Runners that have loaded these sources, side by side. Raises Failed when one of them does not load."""
        handles = [self._spawn(source, backend) for source in sources]
        try:
            for handle, source in zip(handles, sources, strict=True):
                handle.post("load", {"source": source, "threads": self.threads})
            for handle in handles:
                handle.wait("load", self._limits.build_s)
        except RunnerFailed as failure:
            close_all(handles)
            raise Failed(failure_status(failure, Status.BUILD), failure.reason, failure.log_tail) from None
        return handles

    def _spawn(self, source: str, backend: str) -> Handle:
        cache = self._cache_of(source)
        known = registry.load("backends", backend)
        if not cache.exists():
            cache.mkdir(parents=True)
            if hasattr(known, "furnish"):
                known.furnish(cache)
        environment = known.environment(str(cache))
        return self._nursery.spawn(cache, environment)

    def start_baseline(self, name: str, problem: str) -> Handle:
        """A runner of a problem's "eager", "library" or "compile": our own code, not confined. Raises RunnerFailed."""
        cache = cache_folder() / "baselines"
        environment = registry.load("backends", "torch").environment(str(cache))
        handle = self._nursery.spawn(cache, environment, confine=False)
        try:
            handle.ask("load", {"baseline": name, "problem": problem, "threads": self.threads})
        except RunnerFailed:
            handle.close()
            raise
        return handle

    def evidence(self, source: str, backend: str) -> Mapping[str, Mapping[str, float]]:
        """What the compiler reported for the kernels of a source; empty for a backend that reports nothing."""
        report = getattr(registry.load("backends", backend), "evidence", None)
        return report(self._cache_of(source)) if report else {}

    def forget(self, source: str) -> None:
        """Remove what was built of a source."""
        remove_tree(self._cache_of(source))

    def close(self) -> None:
        self._nursery.close()

    def _cache_of(self, source: str) -> Path:
        return self._folder / "cache" / source_id(source)[:24]
