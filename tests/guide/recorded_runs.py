"""What the tests of briefs share: the recorded runs, and the examples of program.md.

The runs are real: `autokernel run` on a model of one RMSNorm and one projection (2048 x 1024, fp32), on two cores of an
AMD EPYC that other work kept busy, hence the wide intervals; some of the ideas were written to fail.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from autokernel.extension import Attempt, Brief
from autokernel.types import Candidate, Comparison, Experiment, Measurements, Target, Verdict

ROOT = Path(__file__).resolve().parents[2]
RECORDED = Path(__file__).parent / "recorded"
HINT = "Rows are always 1024 wide in this model; the number of rows varies with the batch."


def recorded(name: str) -> Brief:
    """The brief of a target as it was in a real run: profile, history and champion come from its workspace."""
    data = json.loads((RECORDED / f"{name}.json").read_text())
    target = Target.from_json(data["target"])
    failed = data.get("failed")
    return Brief(
        target=target,
        source="\n".join(data["source"]) + "\n",
        position=Measurements(**data["position"]),
        history=tuple(_experiment(target, each) for each in data["history"]),
        hardware=data["hardware"],
        seed=0,
        hints=HINT if name == "rmsnorm" else "",
        failed=Attempt(
            source="\n".join(failed["source"]) + "\n",
            idea=failed["idea"],
            verdict=Verdict.from_json(failed["verdict"]),
            number=failed["number"],
        )
        if failed
        else None,
        model=data["model"],
    )


def _experiment(target: Target, data: dict[str, Any]) -> Experiment:
    return Experiment(
        number=data["number"],
        time=data["time"],
        target=target,
        candidate=Candidate(target.name, f"# experiment {data['number']}\n", "", data["idea"], data["author"]),
        verdict=Verdict.from_json(data["verdict"]),
        comparison=Comparison.from_json(data["comparison"]) if data["comparison"] else None,
        decision=data["decision"],
        seconds=data["seconds"],
        commit=data["commit"],
    )


def examples(language: str) -> list[tuple[str, str]]:
    """(section, source) of every fenced example of this language in program.md."""
    found, section = [], ""
    for part in re.split(r"(?m)^(?=<!-- section: |```)", (ROOT / "program.md").read_text()):
        if marker := re.match(r"<!-- section: ([\w-]+)", part):
            section = marker[1]
        elif part.startswith(f"```{language}\n"):
            found.append((section, part.removeprefix(f"```{language}\n")))
    return found
