"""Where the seconds of a verdict go: every starter judged as a candidate against itself, stage by stage.

    python benchmarks/judge_speed.py --device cuda --backend triton --backend cuda --json judge_speed.json

Each starter is judged several times: the first verdict of a target also starts its baselines and the incumbent, later
ones find them warm, as all but the first of a night do. The source differs by a comment each time, so that nothing is
answered from a build cache. Besides: a file that fails smoke, and one that is not Python. Run it on an otherwise idle
machine.

Between candidates it pauses, on a GPU for 3 s, which is less than any proposer takes to think of the next: in that time
the judge makes runners ahead. ``--pause 0`` hands in one candidate right after the other, and finds none made. On a CPU
there are none to make, and no pause.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autokernel import assets, hardware, registry
from autokernel.evaluate.client import Assignment, Evaluation, JudgeClient, JudgeOptions
from autokernel.types import Target, Workload

LIMITS_S = {"matmul": 8.0, "flash_attention": 8.0, "fused_mlp": 8.0}
DEFAULT_LIMIT_S, CPU_LIMIT_S, SMOKE_LIMIT_S = 5.0, 6.0, 1.0
PAUSE_S = {"cpu": 0.0, "cuda": 3.0}
WRONG = """

_honest = kernel_fn


def kernel_fn(*tensors, **scalars):
    return _honest(*tensors, **scalars).zero_()
"""
REAL: Mapping[str, tuple[dict[str, int], str]] = {  # what a model asks for, by device kind: dims, dtype
    "cuda rmsnorm": ({"R": 4096, "C": 4096}, "fp16"),
    "cuda softmax": ({"R": 4096, "C": 4096}, "fp16"),
    "cuda layernorm": ({"R": 4096, "C": 5120}, "fp16"),
    "cuda matmul": ({"M": 4096, "N": 4096, "K": 4096}, "fp16"),
    "cuda flash_attention": ({"B": 2, "H": 32, "G": 32, "S": 2048, "T": 2048, "D": 64}, "fp16"),
    "cpu rmsnorm": ({"R": 512, "C": 768}, "fp32"),
    "cpu softmax": ({"R": 512, "C": 512}, "fp32"),
    "cpu layernorm": ({"R": 512, "C": 768}, "fp32"),
    "cpu matmul": ({"M": 512, "N": 768, "K": 768}, "fp32"),
    "cpu flash_attention": ({"B": 1, "H": 12, "G": 12, "S": 512, "T": 512, "D": 64}, "fp32"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backend", action="append", default=[], help="default: cpp on a CPU, triton and cuda else")
    parser.add_argument("--problem", action="append", default=[])
    parser.add_argument("--no-baselines", action="store_true", help="do not time eager, torch.compile and the library")
    parser.add_argument("--pause", type=float, metavar="SECONDS", help="before each candidate; default: 3 on a GPU")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    kind = options.device.split(":")[0]
    pause_s = PAUSE_S[kind] if options.pause is None else options.pause
    backends = options.backend or (["cpp"] if kind == "cpu" else ["triton", "cuda"])
    arch = hardware.arch(options.device)
    rows: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="autokernel-speed-") as scratch,
        JudgeClient(Path(scratch) / "judge", JudgeOptions(device=options.device)) as judge,
    ):
        for backend in backends:
            for case, (dims, dtype) in REAL.items():
                where, name = case.split()
                path = assets.starter(name, backend, arch)
                if where != kind or path is None or (options.problem and name not in options.problem):
                    continue
                scalars = dict(registry.load("problems", name).scalars)
                work = Workload(dims, dtype, 1, {}, scalars)  # type: ignore[arg-type]
                target = Target(name, name, backend, (work,), 1.0, 0.0, 0.0)
                limit_s = CPU_LIMIT_S if kind == "cpu" else None
                rows += judged(judge, target, path.read_text(), limit_s, pause_s, baselines=not options.no_baselines)
                if options.json:
                    options.json.write_text(json.dumps(rows, indent=1))
    print(table(rows))


def judged(
    judge: JudgeClient, target: Target, source: str, limit_s: float | None, pause_s: float, *, baselines: bool
) -> list[dict[str, Any]]:
    """The verdicts on one starter: cold, warm, wrong in smoke, not building."""
    broken = source.replace("def kernel_fn(", "def kernel_fn(:", 1)
    limit_s = limit_s or LIMITS_S.get(target.problem, 8.0 if target.backend == "cuda" else DEFAULT_LIMIT_S)
    tries = (
        ("first of its target", fresh(source), source, None),
        ("passing", fresh(source), source, limit_s),
        ("passing", fresh(source), source, limit_s),
        ("wrong", fresh(source) + WRONG, source, SMOKE_LIMIT_S),
        ("not Python", broken, source, SMOKE_LIMIT_S),
    )
    rows = []
    for what, candidate, incumbent, limit in tries:
        time.sleep(pause_s)
        found = judge.evaluate(Assignment(target, candidate, incumbent, baselines=baselines))
        rows.append({**row_of(target, what, found, limit), "pause_s": pause_s})
        print(f"{target.backend} {target.problem}, {what}: {found.seconds:.2f} s", file=sys.stderr, flush=True)
    return rows


def fresh(source: str) -> str:
    """The same kernel in a file, and so in a build, of its own."""
    return f"{source.rstrip()}\n# {secrets.token_hex(8)}\n"


def row_of(target: Target, what: str, found: Evaluation, limit_s: float | None) -> dict[str, Any]:
    return {
        "backend": target.backend,
        "problem": target.problem,
        "what": what,
        "status": found.verdict.status.value,
        "reason": found.comparison.reason if found.comparison else found.verdict.reason,
        "seconds": found.seconds,
        "limit_s": limit_s,
        "stages_s": dict(found.verdict.seconds),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, a column a stage; above them, how long the judge had for itself before each candidate."""
    stages = list(dict.fromkeys(stage for row in rows for stage in row["stages_s"]))
    head = ["backend", "problem", "candidate", "verdict", "seconds", "asked", *stages]
    pauses = ", ".join(sorted({f"{row['pause_s']:g} s" for row in rows}))
    lines = [f"Pause before each candidate: {pauses}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        asked = (
            ""
            if row["limit_s"] is None
            else f"{'≤' if row['seconds'] <= row['limit_s'] else '**over**'} {row['limit_s']:g}"
        )
        cells = [row["backend"], row["problem"], row["what"], row["status"], f"{row['seconds']:.2f}", asked]
        cells += [f"{row['stages_s'][stage]:.2f}" if stage in row["stages_s"] else "" for stage in stages]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
