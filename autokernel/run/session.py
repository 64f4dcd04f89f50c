"""What ``autokernel run`` does: open or create the workspace, start the judge, run the loop, measure the headline."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from autokernel import registry
from autokernel.evaluate.client import Assignment, Judge, JudgeClient, JudgeOptions
from autokernel.extension import ProposerOptions
from autokernel.run import history, loop, orchestrator, workspace
from autokernel.run.brief import Desk
from autokernel.run.events import HeadlineStarted, JudgeStage, Note, Observer, RunStarted, Stopped
from autokernel.run.gitstore import told, write_file
from autokernel.run.history import Row
from autokernel.run.ledger import Ledger
from autokernel.run.limits import Limits, StopReason
from autokernel.run.orchestrator import MoveOn
from autokernel.types import AutokernelError, Status, Target


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """One invocation of ``autokernel run``.

    ``backend`` None takes the device's own (cpp on a CPU). ``budget_s`` is wall time of this invocation;
    ``max_experiments``, ``max_tokens`` and ``max_cost_usd`` count the whole run, earlier invocations included, so that
    the same command again goes on to the same end. ``name`` None is the model's file stem and the device; ``fresh``
    starts a new numbered run. ``aa_rate`` is the share of experiments that judge the incumbent against itself.
    ``settings`` are the model's own (size=7b).
    """

    model: Path
    device: str = "cpu"
    dtype: str = "fp32"
    backend: str | None = None
    proposer: str = "auto"
    proposer_options: ProposerOptions = dataclasses.field(default_factory=ProposerOptions)
    strategy: str = "greedy"
    budget_s: float | None = None
    max_experiments: int | None = None
    max_tokens: int | None = None
    max_cost_usd: float | None = None
    name: str | None = None
    fresh: bool = False
    results_dir: Path = Path("results")
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    move_on: MoveOn = dataclasses.field(default_factory=MoveOn)
    aa_rate: float = 0.05
    seed: int = 0
    min_gain: float = 0.005
    threads: int | None = None
    headline: bool = True


@dataclasses.dataclass(frozen=True)
class Summary:
    """How an invocation ended. ``signal`` is the number of the signal that ended it, or None."""

    folder: Path
    reason: StopReason
    targets: tuple[Target, ...]
    rows: tuple[Row, ...]
    projected_speedup: float
    signal: int | None = None


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP came; not an Exception, so that nothing on the way takes it for a failure."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Signals:
    """Turns the signals that end a run into ``Interrupted``; inside ``held`` they wait until the write is whole."""

    def __init__(self) -> None:
        self._depth = 0
        self._waiting: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python has no signal handlers
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                before = signal.getsignal(number)
                if before is not signal.SIG_IGN:  # nohup asked for it
                    self._before[number] = before
                    signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._depth:
            self._waiting = number
        else:
            raise Interrupted(number)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if not self._depth and self._waiting is not None:
            number, self._waiting = self._waiting, None
            raise Interrupted(number)


def start(options: RunOptions, observer: Observer) -> Summary:
    """Runs, or resumes, until a limit, a signal, or nobody has an idea left. Raises AutokernelError: one clear line."""
    limits = Limits(options.budget_s, options.max_experiments, options.max_tokens, options.max_cost_usd)
    proposer = registry.load("proposers", "playbook" if options.proposer == "auto" else options.proposer)(
        options.proposer_options
    )
    create_strategy = registry.load("strategies", options.strategy)
    known = registry.names("backends")
    native = "cpp" if options.device == "cpu" else "triton"
    backend = options.backend or (native if native in known else "torch")
    if backend not in known and "." not in backend:
        raise AutokernelError(registry.unknown("backends", backend, known))
    wanted = {
        "model": str(options.model),
        "model_sha256": workspace.digest(options.model),
        "device": options.device,
        "dtype": options.dtype,
        "backend": backend,
        "settings": dict(options.settings),
    }
    folder = workspace.folder_of(options.results_dir, options.model, options.device, options.name, options.fresh)
    workspace.require(backend)
    with Signals() as signals, workspace.lock(folder):
        workspace.settle(folder, wanted)
        targets: tuple[Target, ...] = ()
        rows: list[Row] = []
        try:
            data = _profile(folder, options, backend, observer)
            targets = tuple(Target.from_json(target) for target in data["targets"])
            ledger = Ledger(
                folder,
                targets,
                starters=lambda: workspace.starters(folder, targets),
                note=lambda text: observer.on_event(Note(text)),
                held=signals.held,
            )
            rows = ledger.rows
            observer.on_event(
                RunStarted(
                    name=folder.name,
                    folder=str(folder),
                    model=str(options.model),
                    device=options.device,
                    proposer=proposer.name,
                    strategy=options.strategy,
                    targets=targets,
                    rows=tuple(rows),
                    budget_s=options.budget_s,
                    max_experiments=options.max_experiments,
                )
            )
            judge_options = JudgeOptions(device=options.device, min_gain=options.min_gain, threads=options.threads)
            with contextlib.closing(ledger), JudgeClient(folder / "scratch" / "judge", judge_options) as judge:
                desk = Desk(
                    ledger,
                    proposer,
                    lambda target: create_strategy(),
                    data.get("hardware", {}),
                    limits,
                    observer,
                    seed=options.seed,
                    aa_rate=options.aa_rate,
                )
                rules = options.move_on.within(options.budget_s, len(targets))
                before = len(ledger.rows)
                reason = loop.run(ledger, targets, desk, judge, limits, rules, observer)
                if reason.kind == "budget" and len(ledger.rows) == before:
                    again = (
                        "before the first experiment, on profile and set-up; the same command again goes on from here"
                    )
                    reason = StopReason("budget", f"{reason.message} {again}")
                if options.headline:
                    headline(ledger, targets, judge, observer)
        except Interrupted as stop:
            reason = StopReason("interrupted", f"{stop} came; the same command again goes on from here")
            observer.on_event(Stopped(reason.message))
            projected = orchestrator.projected_speedup(targets, rows)
            return Summary(folder, reason, targets, tuple(rows), projected, stop.number)
    observer.on_event(Stopped(reason.message))
    return Summary(folder, reason, targets, tuple(rows), orchestrator.projected_speedup(targets, rows))


def _profile(folder: Path, options: RunOptions, backend: str, observer: Observer) -> Mapping[str, Any]:
    """The workspace's profile.json, made first where there is none."""
    path = folder / "profile.json"
    if not path.exists():
        arguments = ["--model", str(options.model), "--device", options.device, "--dtype", options.dtype]
        arguments += ["--backend", backend]
        for name, value in options.settings.items():
            arguments += ["--set", f"{name}={value}"]
        workspace.profile(folder, arguments, observer.on_event)
    return workspace.read_json(path)


def headline(ledger: Ledger, targets: tuple[Target, ...], judge: Judge, observer: Observer) -> None:
    """Measures each improved target's champion against its baselines, thoroughly and in one session: headline.json.

    Only this figure is published: gains of single steps are never multiplied. A champion measured before is not
    measured again.
    """
    path = ledger.folder / "headline.json"
    known: dict[str, Any] = workspace.read_json(path)["targets"] if path.exists() else {}
    champions = {target.name: history.champion(ledger.rows, target.name) for target in targets}
    improved = {name: row for name, row in champions.items() if row and row.decision == "keep"}
    due = [t for t in targets if t.name in improved and known.get(t.name, {}).get("commit") != improved[t.name].commit]
    for done, target in enumerate(due):
        observer.on_event(HeadlineStarted(target, done, len(due)))
        row = improved[target.name]
        assignment = Assignment(target=target, source=ledger.incumbent(target), baselines=True, thorough=True)

        def on_event(event: Mapping[str, Any], number: int = row.experiment) -> None:
            if event.get("event") == "stage":
                observer.on_event(JudgeStage(number, event["stage"], event["done"], event["of"]))

        verdict = judge.evaluate(assignment, on_event).verdict
        measured = verdict.measurements
        known[target.name] = {
            "commit": row.commit,
            "experiment": row.experiment,
            "status": verdict.status.value,
            "reason": verdict.reason,
            **(dataclasses.asdict(measured) if measured else {}),
            "speedup_vs_eager": measured.speedup_vs_eager if measured else None,
            "speedup_vs_best": measured.speedup_vs_best if measured else None,
        }
        if verdict.status is not Status.PASS:
            failed = f"its champion failed the thorough judgement: {verdict.status.value}, {verdict.reason}"
            observer.on_event(Note(f"{target.name}: {failed}"))
        with told(path):
            write_file(path, json.dumps({"version": workspace.VERSION, "targets": known}, indent=1).encode())
