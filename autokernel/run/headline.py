"""The figures that are published: champions against their baselines, thoroughly and in one session."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from autokernel.evaluate.client import Assignment, Judge
from autokernel.run import history, workspace
from autokernel.run.events import HeadlineStarted, JudgeStage, Note, Observer
from autokernel.run.gitstore import told, write_file
from autokernel.run.ledger import Ledger
from autokernel.types import Status, Target


def measure(ledger: Ledger, targets: tuple[Target, ...], judge: Judge, observer: Observer) -> None:
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
