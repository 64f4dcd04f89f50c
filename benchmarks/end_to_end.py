"""Whole models: a run of each, then what it gains end to end, beside eager and torch.compile on the same machine.

    python benchmarks/end_to_end.py --device cuda --budget 90s --json end_to_end.json
    python benchmarks/end_to_end.py --device cuda --gpus 0,1,2,3 --only llama     # a model a GPU at a time
    python benchmarks/end_to_end.py --budget 3m                                   # the CPU's models
    python benchmarks/end_to_end.py --show end_to_end.json                        # what was measured, again

Each model is one call of ``autokernel run``, in a process of its own, whose last act verifies: right outputs, kernels
added one at a time and kept where they pay, then whole forwards of every variant against each other. Prints two tables
in Markdown: the models, and every kernel's trial, those that were left out included. A run that has nothing to apply is
a row that says so. Exits 1 where there is no row, where outputs are wrong, and where a model is slower with what was
applied than without it (beside eager, torch.compile, or on a GPU torch.compile with CUDA graphs), beyond the interval.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gpus

from autokernel import assets, hardware, proof
from autokernel.types import AutokernelError

RUN_S = 1800.0  # beyond the budget: building and verifying a model of billions of parameters


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and the settings of its file. ``train``: whole steps are timed, and every gradient is compared."""

    name: str
    model: str
    settings: Mapping[str, str]
    dtype: str
    train: bool = False

    def command(self, device: str, budget: str, results: Path) -> list[str]:
        words = [sys.executable, "-m", "autokernel", "run", self.model, "--device", device, "--dtype", self.dtype]
        words += ["--budget", budget, "--results", str(results), "--run", "run", "--plain"]
        for key, value in self.settings.items():
            words += ["--set", f"{key}={value}"]
        return [*words, *(["--random-weights"] if self.model.startswith("hf:") else []), *["--train"] * self.train]


def _own(name: str, stem: str, dtype: str, train: bool = False, **settings: str) -> Case:
    return Case(name, str(assets.root() / "models" / f"{stem}.py"), settings, dtype, train)


CUDA_CASES = [  # the one that takes longest first: others share the remaining GPUs
    _own("llama-7b 1x2048", "llama", "fp16", size="7b", batch="1", seq="2048"),
    _own("gpt2 1x1024", "gpt2", "fp16", batch="1", seq="1024"),
    _own("llama-160m 1x512", "llama", "fp16", size="160m", batch="1", seq="512"),
    _own("bert 8x512", "bert", "fp16", batch="8", seq="512"),
    Case("hf:phi 1x1024", "hf:phi", {"batch": "1", "seq": "1024"}, "fp16"),
    _own("llama-160m 1x512, training", "llama", "fp32", train=True, size="160m", batch="1", seq="512"),
]
CPU_CASES = [
    _own("llama", "llama", "fp32"),
    _own("gpt2", "gpt2", "fp32"),
    _own("bert", "bert", "fp32"),
]


def measure(case: Case, device: str, budget: str, keep: Path | None, environment: Mapping[str, str]) -> dict[str, Any]:
    """A row: what the run's verification.json says, or why there is none."""
    row: dict[str, Any] = {"case": case.name, "dtype": case.dtype}
    with contextlib.ExitStack() as stack:
        if keep:
            folder = keep.resolve() / "".join(each if each.isalnum() else "-" for each in case.name)
            folder.mkdir(parents=True)
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="autokernel-end-to-end-")))
        printed = folder / "printed.txt"
        started = time.monotonic()
        with printed.open("w") as out:
            try:
                done = subprocess.run(
                    case.command(device, budget, folder), cwd=folder, env=dict(environment), stdout=out,
                    stderr=subprocess.STDOUT, check=False, timeout=RUN_S,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                return {**row, "failed": f"no end within {RUN_S:.0f} s"}
        row["seconds"] = round(time.monotonic() - started, 1)
        try:
            found = proof.read(folder / "run")
        except AutokernelError as error:
            return {**row, "failed": str(error)}
        if found is None:
            words = printed.read_text().strip().splitlines() or [f"exit status {done.returncode}"]
            return {**row, "failed": next((line for line in words if line.startswith("not verified")), words[-1])}
        return {**row, "verification": dataclasses.asdict(found)}


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: the models with their times, then every kernel's trial in its model."""
    head = ("model", *proof.NAMES.values(), "what to run", "over eager", "kernels over the best without", "projected",
            "outputs", "seconds")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    trials: list[str] = []
    missing: list[str] = []
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['case']} | {row['failed']} |" + " |" * (len(head) - 2))
            continue
        found = proof.Proof(**row["verification"])
        times = [f"{found.forward_us[m] / 1e3:.2f} ms" if m in found.forward_us else "–" for m in proof.NAMES]
        cells = [f"{row['case']}, {row['dtype']}", *times, proof.NAMES[found.advised]]
        cells.append(found.gain(found.advised, "eager") or "–")
        cells.append(found.gain(found.fastest, found.rival) if found.fastest else "nothing to apply")
        cells.append(f"{found.projection['all']:.2f}x" if found.projection else "–")
        cells.append("right" if all(each["passed"] for each in found.outputs.values()) else "WRONG")
        lines.append("| " + " | ".join([*cells, f"{row['seconds']:.0f}"]) + " |")
        heading, *each = proof.tables(found)[1]
        trials = trials or ["| model | " + " | ".join(heading) + " |", "|" + "---|" * (len(heading) + 1)]
        trials += [f"| {row['case']} | " + " | ".join(cells) + " |" for cells in each]
        missing += [
            f"- {row['case']}: {proof.NAMES[n]} not to be had: {why['reason']}" for n, why in found.failed.items()
        ]
    return "\n".join([*lines, "", *trials, *(["", *missing] if missing else [])])


def bad(row: Mapping[str, Any]) -> bool:
    """Whether this row is one that must not be."""
    if "failed" in row:
        return True
    found = proof.Proof(**row["verification"])
    broken = bool(found.commits) and not found.steps  # kernels that won, and no mode that runs
    slower = any(found.speedup[mode][proof.BESIDE[mode]]["high"] < 1 for mode in found.applied)
    return broken or slower or not all(each["passed"] for each in found.outputs.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--budget", default="3m", help="of each model's run")
    parser.add_argument("--only", action="append", default=[], help="models whose name contains this; repeatable")
    parser.add_argument("--gpus", default="", help="ids of equal GPUs, such as 0,1: as many models at a time")
    parser.add_argument("--show", type=Path, help="measure nothing; show this JSON")
    parser.add_argument("--keep", type=Path, help="a new folder that keeps every run, with all that it printed")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.show:
        print(tables(json.loads(options.show.read_text())["rows"]))
        return
    known = CPU_CASES if options.device == "cpu" else CUDA_CASES
    cases = [case for case in known if not options.only or any(word in case.name for word in options.only)]
    if not cases:
        parser.error(f"no model contains {options.only}; there are: {', '.join(case.name for case in known)}")
    ids = gpus.listed(options.gpus)
    machine = hardware.measure(options.device)  # once, for all

    def run(case: Case, environment: Mapping[str, str]) -> dict[str, Any]:
        return measure(case, options.device, options.budget, options.keep, environment)

    told = {"machine": machine.to_json(), "budget": options.budget, "time": time.strftime("%Y-%m-%d")}
    rows = gpus.rows(cases, ids, run, told, options.json, lambda row: f"{row['case']}: {row.get('failed', 'verified')}")
    print(tables(rows))
    sys.exit(1 if any(map(bad, rows)) else 0)


if __name__ == "__main__":
    main()
