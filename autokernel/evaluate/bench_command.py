"""A kernel that its owner's own command judges: exit status 0 is correct, a line ``metric: NUMBER [UNIT]`` the speed.

Such a problem is a JSON file, ``context/<target>.json`` of a workspace: {"command": "python context/bench.py $KERNEL",
"higher_is_better": false, "time_limit_s": 120}. Its command is run by a shell in a folder of its own that holds a copy
of the file's folder as ``context/`` and the kernel under its name in a workspace; ``$KERNEL`` is the kernel's path.
Two versions are compared as everywhere here: interleaved (ABBA), screened, confirmed on fresh runs, decided by
decision.py. A metric is a time, or with ``higher_is_better`` any rate, of which one over the number counts.

What is weaker than the judge of a problem: the command loads the candidate into a process of its own making, so that a
candidate may print a metric of its own (two such lines are refused), patch the clock, or read the command's files;
inputs and tolerances are the command's. Its process is confined as a runner is, and each run is a fresh process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from autokernel import isolation
from autokernel.evaluate.bench_metric import BenchCommand, RunFailed, metric_us, read
from autokernel.evaluate.client import Assignment, Evaluation, JudgeClient, JudgeFailed, JudgeOptions, OnEvent
from autokernel.evaluate.decision import FIRST_LOOK, LAST_LOOK, Block, confirm, interval, middle, percent, screen
from autokernel.isolation import remove_tree
from autokernel.types import Comparison, Measurements, Status, Target, Verdict

SCREEN_BLOCKS, ROUNDS, THOROUGH_ROUNDS = 2, 3, 9
TAIL_BYTES, METRIC_BYTES = 4000, 1 << 20
KEY = "bench"  # the one workload that there is


@dataclasses.dataclass
class _Side:
    """One version of the kernel in its own folder, and the microseconds of its runs."""

    folder: Path
    kernel: Path
    samples_us: list[float] = dataclasses.field(default_factory=list)


class BenchJudge:
    """Judges one target's kernels by its owner's command. A context manager; ``scratch`` is removed at the end."""

    def __init__(self, scratch: Path, options: JudgeOptions | None = None) -> None:
        self.options = options or JudgeOptions()
        self._scratch = scratch.absolute()
        self._rng = random.Random()
        self._levels: Mapping[str, Any] = {}
        remove_tree(self._scratch)

    def __enter__(self) -> BenchJudge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def hardware(self) -> Mapping[str, Any]:
        """Nothing: the command alone knows what it measures on."""
        return {}

    def close(self) -> None:
        """Remove the scratch folder. Idempotent; no command outlives ``evaluate``."""
        remove_tree(self._scratch)

    def evaluate(self, assignment: Assignment, on_event: OnEvent = lambda _: None) -> Evaluation:
        """Raises JudgeFailed where the version that stands fails, AutokernelError where the JSON file is none, or a
        level of isolation is required that a bench command does not reach (``reads``: what it reads, its owner knows).
        """
        started = time.perf_counter()
        bench = read(Path(assignment.target.problem))
        stage, seconds = "smoke", dict[str, float]()
        measurements = comparison = None
        status, reason, log_tail = Status.PASS, "", ""
        new: _Side | None = None
        old: _Side | None = None

        def at(name: str, done: int = 0, of: int = 1) -> None:
            nonlocal stage
            stage = name
            seconds.setdefault(name, 0.0)
            on_event({"event": "stage", "stage": name, "done": done, "of": of})

        try:
            new = self._side("new", assignment.target, assignment.source)
            if self.options.require and not self._levels:
                with contextlib.suppress(RunFailed):  # a run of nothing tells which levels there are
                    self._run(BenchCommand("true"), new)
                isolation.demand(self.options.require, self._levels)
            at("smoke")
            self._run(bench, new)
            new.samples_us.clear()  # the first run may have built things
            at("timing")
            if assignment.incumbent is None:
                for _ in range(THOROUGH_ROUNDS if assignment.thorough else ROUNDS):
                    self._run(bench, new)
            else:
                old = self._side("old", assignment.target, assignment.incumbent)
                self._incumbent(bench, old)
                old.samples_us.clear()
                comparison = self._compare(bench, old, new, at)
            measurements = _measured(new.samples_us)
        except RunFailed as failure:
            status, reason, log_tail = failure.status, failure.reason, failure.log_tail
            measurements = comparison = None
        finally:
            for side in (new, old):
                if side is not None:
                    remove_tree(side.folder)
        wall_s = time.perf_counter() - started
        environment = {"bench": bench.to_json(), "isolation": dict(self._levels)}
        end = "done" if status is Status.PASS else stage
        verdict = Verdict(status, end, reason, {}, measurements, log_tail, environment, {"bench": round(wall_s, 3)})
        return Evaluation(verdict, comparison, wall_s)

    # ------------------------------------------------------------------------------------------ comparing

    def _compare(self, bench: BenchCommand, old: _Side, new: _Side, at: Any) -> Comparison:
        blocks: list[Block] = []
        for done in range(SCREEN_BLOCKS):
            at("screen", done, SCREEN_BLOCKS)
            blocks.append(self._block(bench, old, new))
        if screen(blocks, self.options.min_gain) == "hopeless":
            overall = interval([b.log_ratio for b in blocks])
            reason = f"screened out: {percent(middle(blocks))} over {len(blocks)} blocks"
            return _comparison(blocks, overall.mean, overall.low, overall.high, keep=False, reason=reason)
        pairs: list[list[Block]] = []
        while True:
            at("confirm", len(pairs), LAST_LOOK)
            pairs.append([self._block(bench, old, new)])
            if len(pairs) in (FIRST_LOOK, LAST_LOOK):
                outcome = confirm(pairs, self.options.min_gain)
                if outcome.final:
                    break
        flat, overall = [pair[0] for pair in pairs], outcome.overall
        return _comparison(flat, overall.mean, overall.low, overall.high, keep=outcome.keep, reason=outcome.reason)

    def _block(self, bench: BenchCommand, old: _Side, new: _Side) -> Block:
        """Four runs, ABBA or BAAB."""
        outer, inner = (old, new) if self._rng.random() < 0.5 else (new, old)
        sums = {"old": 0.0, "new": 0.0}
        for side in (outer, inner, inner, outer):
            if side is old:
                sums["old"] += self._incumbent(bench, old) / 2
            else:
                sums["new"] += self._run(bench, new) / 2
        ratio = math.log(sums["old"] / sums["new"])
        return Block(ratio, {KEY: ratio}, sums["old"], sums["new"])

    def _incumbent(self, bench: BenchCommand, side: _Side) -> float:
        try:
            return self._run(bench, side)
        except RunFailed as failure:
            raise JudgeFailed(f"the bench command fails for the version that stands: {failure.reason}") from failure

    # ------------------------------------------------------------------------------------------ running

    def _side(self, name: str, target: Target, source: str) -> _Side:
        """A folder that looks like the workspace to the command."""
        folder = self._scratch / name
        remove_tree(folder)
        shutil.copytree(
            Path(target.problem).parent, folder / "context", symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
        kernel = folder / target.file
        kernel.parent.mkdir(parents=True, exist_ok=True)
        kernel.write_bytes(source.encode())
        return _Side(folder, kernel)

    def _run(self, bench: BenchCommand, side: _Side) -> float:
        """Microseconds that one run of the command tells. Raises RunFailed."""
        out, err = side.folder / ".stdout", side.folder / ".stderr"
        read_end, write_end = os.pipe()
        line = [sys.executable, "-m", "autokernel.evaluate.confine", str(write_end), str(side.folder), "--"]
        with out.open("wb") as stdout, err.open("wb") as stderr, os.fdopen(read_end, "rb") as levels:
            process = subprocess.Popen(
                [*line, bench.command],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                pass_fds=[write_end],
                env={**os.environ, "KERNEL": str(side.kernel)},
                start_new_session=True,
            )
            os.close(write_end)
            try:
                code: int | None = process.wait(bench.time_limit_s)
            except subprocess.TimeoutExpired:
                code = None
            finally:  # also when we are interrupted: nothing of it goes on
                _kill(process)
            self._levels = json.loads(levels.readline() or b"{}")
        tail = _tail(out, TAIL_BYTES) + _tail(err, TAIL_BYTES)
        if code is None:
            raise RunFailed(
                Status.TIMEOUT, f"the bench command ran longer than {bench.time_limit_s:.0f} s: killed", tail
            )
        if code > 128:
            raise RunFailed(Status.CRASH, f"the bench command was ended by {_signal(code - 128)}", tail)
        if code:
            raise RunFailed(Status.SMOKE, f"the bench command ended with exit status {code}: not correct", tail)
        side.samples_us.append(metric_us(_tail(out, METRIC_BYTES), bench, tail))
        return side.samples_us[-1]


def open_judge(target: Target, scratch: Path, options: JudgeOptions) -> BenchJudge | JudgeClient:
    """The judge of this target's kernels: its owner's command where the problem is one, else the judge of problems."""
    return BenchJudge(scratch, options) if target.problem.endswith(".json") else JudgeClient(scratch, options)


def _measured(samples_us: list[float]) -> Measurements:
    spread = interval([math.log(us) for us in samples_us])
    latency_us = statistics.median(samples_us)
    return Measurements(
        latency_us=latency_us,
        baselines_us={},
        pct_peak=None,
        workloads_us={KEY: latency_us},
        noise_pct=100 * math.expm1(min(spread.high - spread.mean, 5.0)),
    )


def _comparison(
    blocks: list[Block], log_ratio: float, ci_low: float, ci_high: float, *, keep: bool, reason: str
) -> Comparison:
    return Comparison(
        log_ratio=log_ratio,
        ci_low=ci_low,
        ci_high=ci_high,
        blocks=len(blocks),
        keep=keep,
        reason=reason,
        incumbent_us=statistics.median(b.incumbent_us for b in blocks),
        candidate_us=statistics.median(b.candidate_us for b in blocks),
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the whole process group; what left it ends with its namespace."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"exit status {number + 128}"


def _tail(path: Path, nbytes: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - nbytes))
            return file.read(nbytes).decode(errors="replace")
    except OSError:
        return ""
