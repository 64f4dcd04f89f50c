"""Every starter under compute-sanitizer: memcheck, racecheck and initcheck over small calls of every dtype.

    python benchmarks/sanitize.py --backend triton --backend cuda
    python benchmarks/sanitize.py --only softmax --tool racecheck --jobs 4 --json sanitize.json

Needs a GPU and the CUDA toolkit. What counts as an error, and what does not: autokernel/evaluate/sanitizer.py. Exits 0
if and only if every tool watched every starter and found nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from autokernel import assets, hardware, kernelfile
from autokernel.evaluate import sanitizer
from autokernel.evaluate.toolrun import Exercise
from autokernel.types import AutokernelError


def starters(backends: Sequence[str], only: Sequence[str], arch: str | None) -> list[Path]:
    """The starters of these backends that run on this architecture, by problem."""
    folders = [assets.root() / "kernels" / backend / part for backend in backends for part in ("", arch or "none")]
    found = [path for folder in folders for path in sorted(folder.glob("*.py"))]
    return [path for path in found if not only or path.stem in only]


def examine(path: Path, tools: Sequence[sanitizer.Tool], device: str) -> dict[str, Any]:
    """One row: what each tool said."""
    kernel = kernelfile.read(path)
    row: dict[str, Any] = {"starter": str(path.relative_to(assets.root() / "kernels").with_suffix(""))}
    began = time.monotonic()
    try:
        results = sanitizer.check(Exercise(kernel.source, kernel.problem, kernel.backend, device), tools)
        row["tools"] = {each.tool: {"errors": each.errors, "told": each.told, "text": each.text} for each in results}
    except AutokernelError as error:
        row["tools"] = {tool: {"errors": None, "told": str(error), "text": ""} for tool in tools}
    row["seconds"] = round(time.monotonic() - began, 1)
    told = ", ".join(f"{tool}: {said['told']}" for tool, said in row["tools"].items())
    print(f"{row['starter']} {row['seconds']} s: {told}", file=sys.stderr, flush=True)
    return row


def table(rows: Sequence[dict[str, Any]], tools: Sequence[str]) -> str:
    """The rows as Markdown, and below them what was found."""
    lines = ["| starter | " + " | ".join(tools) + " | s |", "|" + "---|" * (len(tools) + 2)]
    below = []
    for row in rows:
        errors = [row["tools"][tool]["errors"] for tool in tools]
        cells = ["not watched" if count is None else str(count) for count in errors]
        lines.append(f"| {row['starter']} | {' | '.join(cells)} | {row['seconds']:.0f} |")
        below += [f"- {row['starter']}, {t}: {said['told']}" for t, said in row["tools"].items() if said["errors"] != 0]
    return "\n".join([*lines, "", *below])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", action="append", choices=("triton", "cuda"), help="default: both; repeatable")
    parser.add_argument("--tool", action="append", choices=tuple(sanitizer.TOOLS), help="default: all; repeatable")
    parser.add_argument("--only", action="append", default=[], metavar="PROBLEM", help="repeatable")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--jobs", type=int, default=1, help="starters at a time")
    parser.add_argument("--json", type=Path, help="write every row there, with the first report of each error")
    options = parser.parse_args()
    tools = options.tool or list(sanitizer.TOOLS)
    try:
        sanitizer.required(options.device)
    except AutokernelError as error:
        parser.error(str(error))
    found = starters(options.backend or ("triton", "cuda"), options.only, hardware.arch(options.device))
    if not found:
        parser.error(f"no starter for {options.only}")
    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(lambda path: examine(path, tools, options.device), found))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows, tools))
    clean = all(said["errors"] == 0 for row in rows for said in row["tools"].values())
    sys.exit(0 if clean else 1)


if __name__ == "__main__":
    main()
