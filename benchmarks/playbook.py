"""What a night without a model makes of the starters: a run of each, at the table's sizes, from the shipped constants.

    python benchmarks/playbook.py --device cuda --budget 100 --json playbook.json
    python benchmarks/playbook.py --device cuda --backend triton --only softmax --only "matmul 4096x4096x4096"
    python benchmarks/playbook.py --device cuda --gpus 0,1,2,3    # a starter a GPU at a time
    python benchmarks/playbook.py --device cuda --untuned         # from the first value of every constant
    python benchmarks/playbook.py --show playbook.json            # what was measured, again

Each is ``autokernel init`` on the starter's own file with one case of table4.py for its workload (of each problem the
first, or those that --only names), and ``autokernel run`` there until the budget ends: the playbook proposes, the judge
decides. Prints a row for each starter, Markdown: what was tried and kept, each kept change with its gain over the
version before it, and the file as it stands at last beside what it was. A starter that nothing improved is a row, too.
Exits 1 where a run failed.
"""

from __future__ import annotations

import argparse
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
from contenders import CPU_CASES, CUDA_CASES, DECODE_CASES, OURS, Case

from autokernel import assets, hardware, registry, report
from autokernel.proposers import _tune
from autokernel.regions import extractor
from autokernel.types import AutokernelError

END_S = 300.0  # beyond the budget: the baseline, the headline
STAY = ("--move-on-reverts", "100000", "--move-on-peak", "100", "--move-on-time", "24h")  # only the budget ends it


@dataclasses.dataclass(frozen=True)
class Night:
    """One run: the starter at ``path``, timed on one case. ``untuned``: with the first of each constant's values, as a
    search would begin that knows nothing of the device.
    """

    case: Case
    backend: str
    path: Path
    untuned: bool = False

    @property
    def name(self) -> str:
        return f"{self.case.name}, {self.backend}{', untuned' * self.untuned}"

    def source(self, dtype: str) -> str:
        text = self.path.read_text()
        if self.untuned:
            text = _tune.with_values(text, {each.name: each.choices[0] for each in _tune.constants(text)})
        return extractor.annotate(text, f"Case: {self.name}.", [self.case.workload(dtype)], str(self.path))


def nights(device: str, backends: Sequence[str], only: Sequence[str], untuned: bool) -> list[Night]:
    known = CPU_CASES if device == "cpu" else [*CUDA_CASES, *DECODE_CASES]
    first = {case.problem: case for case in reversed(known)}.values()
    cases = [case for case in known if (any(word in case.name for word in only) if only else case in first)]
    arch = hardware.arch(device)
    found = [(case, backend, assets.starter(case.problem, backend, arch)) for case in cases for backend in backends]
    return [Night(case, backend, path, untuned) for case, backend, path in found if path]


def measure(
    night: Night, device: str, dtype: str, budget_s: float, keep: Path | None, environment: Mapping[str, str]
) -> dict[str, Any]:
    """A row: what the run's report and ledger say, or why there is none."""
    row: dict[str, Any] = {"case": night.case.name, "backend": night.backend, "dtype": dtype}
    with tempfile.TemporaryDirectory(prefix="autokernel-playbook-") as made:
        name = "".join(c if c.isalnum() else "-" for c in f"{night.name}, {dtype}")
        folder = keep.resolve() / name if keep else Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        kernel, place, printed = folder / f"{night.case.problem}.py", folder / "run", folder / "printed.txt"
        kernel.write_text(night.source(dtype))
        commands = [
            ["init", str(place), "--kernel", str(kernel), "--device", device],
            ["run", str(place), "--budget", f"{budget_s:g}s", "--plain", *STAY],
        ]
        try:
            with printed.open("w") as out:
                for command in commands:
                    subprocess.run(
                        [sys.executable, "-m", "autokernel", *command], cwd=folder, env=dict(environment), stdout=out,
                        stderr=subprocess.STDOUT, check=True, timeout=budget_s + END_S,
                    )  # fmt: skip
            found = report.build(place)
        except subprocess.TimeoutExpired:
            return {**row, "failed": f"{command[0]} did not end"}
        except subprocess.CalledProcessError as ended:
            last = (printed.read_text().strip().splitlines() or [""])[-1]
            return {**row, "failed": f"{command[0]} ended with {ended.returncode}: {last}"}
        except AutokernelError as error:
            return {**row, "failed": str(error)}
    target = found.targets[0]
    tried = [each for each in found.rows if each.decision in ("keep", "revert")]
    return {
        **row, "tried": len(tried), "kept": [each.to_json() for each in tried if each.decision == "keep"],
        "latency_us": target.latency_us, "starter_vs_best": target.starter_vs_best,
        "vs_best": target.speedup_vs_best, "pct_peak": target.pct_peak, "source": target.source,
    }  # fmt: skip


def said(row: Mapping[str, Any]) -> str:
    told = row["failed"] if "failed" in row else f"{len(row['kept'])} kept"
    return f"{row['case']}, {row['backend']}: {told}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, a line for each starter; each kept change with its gain over the version before it."""
    head = ("case", "backend", "tried", "starter over best rival", "last over best rival", "last, us", "kept")
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row["case"], row["backend"]]
        if "failed" in row:
            cells += [row["failed"]]
        else:
            ratios = [f"{value:.2f}" if (value := row[key]) else "–" for key in ("starter_vs_best", "vs_best")]
            time_us = f"{row['latency_us']:.1f}" if row["latency_us"] else "–"
            kept = "; ".join(
                f"{each['idea']}: {each['speedup']:.3f}x [{each['ci_low']:.3f}, {each['ci_high']:.3f}]"
                for each in row["kept"]
            )
            cells += [str(row["tried"]), *ratios, time_us, kept or "nothing"]
        lines.append("| " + " | ".join(cells) + " |")
    won = [row for row in rows if row.get("kept")]
    measured = [row for row in rows if "failed" not in row]
    tried = sum(row["tried"] for row in measured)
    lines.append(f"\n{len(won)} of {len(measured)} starters improved, {tried} experiments")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", help="default: fp32 on a CPU, fp16 on a GPU")
    parser.add_argument("--backend", action="append", help="repeatable; default: all that this device runs")
    parser.add_argument("--budget", type=float, default=100.0, help="seconds of each run")
    parser.add_argument("--only", action="append", default=[], help="cases whose name contains this; repeatable")
    parser.add_argument("--untuned", action="store_true", help="start from the first value of every constant")
    parser.add_argument("--gpus", default="", help="ids of equal GPUs, such as 0,1: as many runs at a time")
    parser.add_argument("--show", type=Path, help="measure nothing; show this JSON")
    parser.add_argument("--keep", type=Path, help="a folder that keeps every run, with all that it printed")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.show:
        print(table(json.loads(options.show.read_text())["rows"]))
        return
    runnable = [each for each in OURS if options.device.split(":")[0] in registry.load("backends", each).devices]
    wanted = nights(options.device, options.backend or runnable, options.only, options.untuned)
    if not wanted:
        parser.error(f"no starter in {options.backend or runnable} for a case that contains {options.only}")
    ids = gpus.listed(options.gpus)
    machine = hardware.measure(options.device)  # once, for all
    dtype = options.dtype or ("fp32" if options.device == "cpu" else "fp16")

    def run(night: Night, environment: Mapping[str, str]) -> dict[str, Any]:
        return measure(night, options.device, dtype, options.budget, options.keep, environment)

    told = {"machine": machine.to_json(), "budget_s": options.budget, "time": time.strftime("%Y-%m-%d")}
    told["untuned"] = options.untuned
    rows = gpus.rows(wanted, ids, run, told, options.json, said)
    print(table(rows))
    sys.exit(1 if any("failed" in row for row in rows) else 0)


if __name__ == "__main__":
    main()
