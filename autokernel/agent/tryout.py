"""``autokernel try``: the edited kernel file becomes one experiment, by the same function that the night calls."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from autokernel.agent import place as places
from autokernel.agent import texts
from autokernel.agent.place import Place
from autokernel.evaluate.bench_command import open_judge
from autokernel.evaluate.client import Judge
from autokernel.redact import redact
from autokernel.run import session
from autokernel.run.desk import standing
from autokernel.run.events import Observer
from autokernel.run.experiment import run_one
from autokernel.run.ledger import Ledger
from autokernel.run.session import Opened
from autokernel.run.signals import Signals
from autokernel.types import AutokernelError, Candidate, Experiment, Target, source_id

AUTHOR = "agent"
HYPOTHESIS_CHARS = 500

Judges = Callable[[Place, Target], AbstractContextManager[Judge]]


@dataclasses.dataclass(frozen=True)
class Tried:
    """One experiment and where its target stands after it; ``added`` and ``removed`` count lines, ``next_step`` is what
    to try now.
    """

    place: Place
    experiment: Experiment
    stands: Experiment
    added: int
    removed: int
    next_step: str


def own_judge(place: Place, target: Target) -> AbstractContextManager[Judge]:
    """A judge for this one experiment."""
    return open_judge(target, place.folder / "scratch" / "judge", place.judge_options)


def once(folder: Path, hypothesis: str, observer: Observer, judges: Judges = own_judge) -> Tried:
    """Judges the edited kernel of this folder, decides, commits or resets it, and writes its row and its entry in
    ITERATIONS.md. An experiment that a killed ``try`` left unjudged is judged first.

    Raises AutokernelError where nothing, too much, or something else was edited, or another process works here.
    """
    hypothesis = " ".join(hypothesis.split())
    if not hypothesis:
        raise AutokernelError("a hypothesis was expected: autokernel try -m 'what you changed, and why it should help'")
    place = places.read(folder)
    # What else was edited is told, not put back in silence: its author may believe that it counts.
    hands_off = [*(target.file for target in place.targets), *places.context_files(place)]
    with Signals() as signals, session.opened(folder, observer, held=signals.held, edited=hands_off) as opened:
        ledger = opened.ledger
        finished = _pending(place, opened, observer, judges)
        if finished is not None:
            write_texts(place, ledger)
        target = _edited(place, ledger, finished)
        if target is None:
            assert finished is not None
            return _told(place, ledger, finished)
        source = _source(folder / target.file)
        if ledger.judged(target, source):
            ledger.reset_files()
            raise AutokernelError(
                f"{target.file} is, character for character, a file that was judged before: "
                f"{ledger.outcome(target, source)}; it was put back"
            )
        idea = redact(hypothesis[:HYPOTHESIS_CHARS])
        candidate = Candidate(target.name, source, source_id(ledger.incumbent(target)), idea, AUTHOR)
        with judges(place, target) as judge:
            experiment = run_one(ledger, judge, ledger.propose(target, candidate, "candidate", 0.0), observer)
        ledger.reset_files()
        write_texts(place, ledger)
        return _told(place, ledger, experiment)


def baseline(opened: Opened, target: Target, judge: Judge, observer: Observer) -> Experiment:
    """Judges the file that everything starts from."""
    source = opened.ledger.incumbent(target)
    candidate = Candidate(target.name, source, "", "baseline: the kernel as it was given", "starter")
    return run_one(opened.ledger, judge, opened.ledger.propose(target, candidate, "baseline", 0.0), observer)


def _pending(place: Place, opened: Opened, observer: Observer, judges: Judges) -> Experiment | None:
    """Judges what a killed process left behind; the last such experiment."""
    ledger, done = opened.ledger, None
    if (pending := ledger.pending) is not None:
        with judges(place, pending.target) as judge:
            done = run_one(ledger, judge, pending, observer)
        file = place.folder / pending.target.file
        if file.is_file() and file.read_bytes() == pending.candidate.source.encode():
            ledger.reset_files()  # its edit was this very file
    return done


def _edited(place: Place, ledger: Ledger, finished: Experiment | None) -> Target | None:
    """The target that was edited; None where nothing but an earlier experiment was left to do."""
    changed = ledger.edited_files()
    if strange := sorted(set(places.context_files(place)) - set(ledger.tracked_files())):
        raise AutokernelError(
            f"{place.folder}: context/ is as init made it, and {strange[0]} is new there: move it somewhere else"
        )
    if finished is not None and not changed:
        return None
    target = places.edited(place, changed)
    if standing(ledger.experiments(target.name)) is None:
        raise AutokernelError(f"{place.folder}: {target.name} has no version that passes; make the folder anew: init")
    return target


def _source(path: Path) -> str:
    try:
        source = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise AutokernelError(f"{path}: the edited kernel was expected here: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise AutokernelError(f"{path}: UTF-8 text was expected, got bytes that are not ({error.reason})") from error
    if redact(source) != source:
        raise AutokernelError(f"{path}: something in it looks like a secret (a key, a token): take it out first")
    return source


def write_texts(place: Place, ledger: Ledger) -> None:
    """Brings the texts of the folder up to date: entries of ITERATIONS.md that are missing, TASK.md and BRIEF.md."""
    experiments = sorted((e for t in place.targets for e in ledger.experiments(t.name)), key=lambda e: e.number)
    tried = [e for e in experiments if e.decision in ("keep", "revert")]
    for experiment in texts.without_entry(place, tried):
        done = [e for e in ledger.experiments(experiment.target.name) if e.number <= experiment.number]
        texts.add_entry(place, experiment, change(done), places.next_step(place, experiment.target, done))
    if experiments:
        target = experiments[-1].target
        done = list(ledger.experiments(target.name))
        texts.write_task(place, experiments, places.next_step(place, target, done))
        texts.write_brief(place, places.brief(place, target, done, ledger.incumbent(target)))


def change(experiments: list[Experiment]) -> tuple[int, int]:
    """Lines added and removed by the last of a target's experiments."""
    lines = list(difflib.unified_diff(*before_and_after(experiments), n=0, lineterm=""))[2:]
    return sum(line.startswith("+") for line in lines), sum(line.startswith("-") for line in lines)


def before_and_after(experiments: list[Experiment]) -> tuple[list[str], list[str]]:
    """The lines of the version that stood before a target's last experiment, and of its candidate."""
    stood = standing(experiments[:-1])
    before = stood.candidate.source if stood else ""
    return before.splitlines(), experiments[-1].candidate.source.splitlines()


def _told(place: Place, ledger: Ledger, experiment: Experiment) -> Tried:
    done = list(ledger.experiments(experiment.target.name))
    stands = standing(done)
    assert stands is not None
    return Tried(place, experiment, stands, *change(done), places.next_step(place, experiment.target, done))
