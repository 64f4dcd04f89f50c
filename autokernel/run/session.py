"""What ``autokernel run`` does: open or create the workspace, start the judge, run the loop, measure the headline."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from autokernel import modelref, registry
from autokernel.evaluate.bench_command import open_judge
from autokernel.evaluate.client import JudgeOptions
from autokernel.evaluate.sanitizer import Sanitizing
from autokernel.extension import ProposerOptions
from autokernel.run import headline, loop, orchestrator, workspace
from autokernel.run.desk import Desk
from autokernel.run.events import Note, Observer, RunStarted, Stopped
from autokernel.run.history import Row
from autokernel.run.ledger import Ledger
from autokernel.run.limits import Limits, StopReason
from autokernel.run.orchestrator import MoveOn
from autokernel.run.signals import Interrupted, Signals
from autokernel.types import AutokernelError, Target


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """One invocation of ``autokernel run``.

    ``backend`` None takes the device's own (cpp on a CPU). ``budget_s`` is wall time of this invocation;
    ``max_experiments``, ``max_tokens`` and ``max_cost_usd`` count the whole run, earlier invocations included, so that
    the same command again goes on to the same end. ``name`` None is the model's file stem and the device; ``fresh``
    starts a new numbered run. ``aa_rate`` is the share of experiments that judge the incumbent against itself.
    ``sanitize`` asks compute-sanitizer before a candidate is kept. ``settings`` are the model's own (size=7b). Where
    ``model`` is the folder of a run, that run goes on, with its own device, dtype, backend and settings. ``autocast``
    is the dtype that a float32 model's forward runs under.
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
    require: frozenset[str] = frozenset()
    sanitize: bool = False
    autocast: str | None = None
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


@dataclasses.dataclass(frozen=True)
class Opened:
    """A workspace that this process holds: its targets in rank order, its device's facts, and its ledger."""

    folder: Path
    targets: tuple[Target, ...]
    hardware: Mapping[str, Any]
    ledger: Ledger


@contextlib.contextmanager
def opened(
    folder: Path,
    observer: Observer,
    *,
    prepare: Callable[[], None] = lambda: None,
    held: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    edited: Collection[str] = (),
) -> Iterator[Opened]:
    """Holds a workspace and opens its ledger, which finishes what a killed run began.

    ``prepare`` runs once the lock is held and before anything is read: it makes what a new workspace lacks. ``held``
    and ``edited`` are the ledger's. Raises AutokernelError: another run works here, or something in it is broken.
    """
    with workspace.lock(folder):
        prepare()
        data = workspace.read_json(folder / "profile.json")
        targets = tuple(Target.from_json(target, folder) for target in data["targets"])
        ledger = Ledger(
            folder,
            targets,
            starters=lambda: workspace.starters(folder, targets),
            note=lambda text: observer.on_event(Note(text)),
            held=held,
            edited=edited,
        )
        with contextlib.closing(ledger):
            yield Opened(folder, targets, data.get("hardware", {}), ledger)


def start(options: RunOptions, observer: Observer) -> Summary:
    """Runs, or resumes, until a limit, a signal, nobody has an idea left, or the proposer fails for good. Raises
    AutokernelError: one clear line.
    """
    limits = Limits(options.budget_s, options.max_experiments, options.max_tokens, options.max_cost_usd)
    proposer = registry.load("proposers", "playbook" if options.proposer == "auto" else options.proposer)(
        dataclasses.replace(options.proposer_options, max_cost_usd=options.max_cost_usd)
    )
    create_strategy = registry.load("strategies", options.strategy)
    folder, options, prepare = _where(options, observer)
    targets: tuple[Target, ...] = ()
    rows: list[Row] = []
    number: int | None = None
    with Signals() as signals:
        try:
            with opened(folder, observer, prepare=prepare, held=signals.held) as place:
                targets, rows = place.targets, place.ledger.rows
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
                        max_cost_usd=options.max_cost_usd,
                    )
                )
                for note in getattr(proposer, "notes", ()):
                    observer.on_event(Note(note))
                desk = Desk(
                    place.ledger,
                    proposer,
                    lambda target: create_strategy(),
                    place.hardware,
                    limits,
                    observer,
                    model=modelref.title(options.model),
                    seed=options.seed,
                    aa_rate=options.aa_rate,
                )
                judge_options = JudgeOptions(
                    device=options.device, min_gain=options.min_gain, threads=options.threads, require=options.require
                )
                with open_judge(targets[0], folder / "scratch" / "judge", judge_options) as plain:
                    judge = Sanitizing(plain, targets, options.device) if options.sanitize else plain
                    rules = options.move_on.within(options.budget_s, len(targets))
                    before = len(rows)
                    with contextlib.closing(desk):
                        reason = loop.run(place.ledger, targets, desk, judge, limits, rules, observer)
                    if reason.kind == "budget" and len(rows) == before:
                        early = "before the first experiment, on profile and set-up"
                        again = f"{reason.message} {early}; the same command again goes on from here"
                        reason = StopReason("budget", again)
                    if options.headline:
                        headline.measure(place.ledger, targets, judge, observer)
        except Interrupted as stop:
            number = stop.number
            reason = StopReason("interrupted", f"{stop} came; the same command again goes on from here")
    observer.on_event(Stopped(reason.message))
    return Summary(folder, reason, targets, tuple(rows), orchestrator.projected_speedup(targets, rows), number)


def _where(options: RunOptions, observer: Observer) -> tuple[Path, RunOptions, Callable[[], None]]:
    """The run's folder, the options as that folder has them, and what makes what a new one lacks."""
    if options.model.is_dir():  # a run that is there, made by ``autokernel init`` or by an earlier night
        folder = options.model.absolute()
        made = workspace.read_json(folder / "run.json")
        own = {name: made[name] for name in ("device", "dtype", "backend", "settings")} | {
            "autocast": made.get("autocast")
        }
        return folder, dataclasses.replace(options, model=Path(made["model"]), **own), lambda: None
    known = registry.names("backends")
    backend = options.backend or workspace.native_backend(options.device)
    if backend not in known and "." not in backend:
        raise AutokernelError(registry.unknown("backends", backend, known))
    wanted = {
        "model": str(options.model),
        "model_sha256": modelref.digest(options.model),
        "device": options.device,
        "dtype": options.dtype,
        "backend": backend,
        "settings": dict(options.settings),
        "autocast": options.autocast,
    }
    folder = workspace.folder_of(options.results_dir, options.model, options.device, options.name, options.fresh)
    workspace.require(backend)

    def prepare() -> None:
        workspace.settle(folder, wanted)
        _profile(folder, options, backend, observer)

    return folder, options, prepare


def _profile(folder: Path, options: RunOptions, backend: str, observer: Observer) -> None:
    """Makes the workspace's profile.json where there is none."""
    if not (folder / "profile.json").exists():
        arguments = workspace.worker_arguments(
            options.model, options.device, options.dtype, backend, options.settings, options.autocast
        )
        workspace.profile(folder, arguments, observer.on_event)
