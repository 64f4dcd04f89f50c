"""The device process that turns a model file into a profile and kernel files; the daemon reads its events.

    python -m autokernel.regions.worker --model llama.py --device cpu --dtype fp32 --backend cpp --out DIR

Writes DIR/profile.json, DIR/kernels/<target>.py, and DIR/context/<problem>.py for each region that is a problem of its
own. Its events are "capture", "time", "match", "levers", "extract" and "error". A mistake of the user ends it with exit
status 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autokernel import hardware, modelref
from autokernel.regions import device_process, extractor, levers, model, rank, recorded, sets, uncovered
from autokernel.regions.device_process import Emit
from autokernel.types import DTYPES, AutokernelError

VERSION = 1  # of profile.json
IMPOSSIBLE = 0.85  # headroom: below it a region beats its ceiling by more than any measurement is off


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    return device_process.serve(lambda emit: run(options, emit), as_child=arguments is None)


def run(options: argparse.Namespace, emit: Emit) -> None:
    """The whole way: load, capture, match, time, rank, extract, write."""
    settings = _settings(options.set)
    if options.memory:
        recorded.check_memory(options.device)
    emit("capture", f"loading {options.model}")
    loaded = model.load(
        Path(options.model), options.device, options.dtype, settings, train=options.train, autocast=options.autocast
    )
    for note in loaded.notes:
        emit("capture", note)
    ceilings = hardware.measure(options.device)
    trace = Path(options.trace) if options.trace else None
    out = Path(options.out).resolve()
    shelf = uncovered.Shelf(out / "context", _title(options.model, settings))
    measured = sets.measure(loaded, options.warmup, options.iters, trace, emit, shelf)
    timing = measured.timing
    if options.compile_log:
        recorded.compile_log(loaded, Path(options.compile_log))
    if options.memory:
        recorded.memory(loaded, Path(options.memory))
    pulled = []
    if options.levers_s:
        pulled = levers.measure(loaded, measured.attention, options.levers_s, lambda name: emit("levers", name))
    rows = rank.rows(measured.graphs, measured.matches, timing, ceilings)
    if any(row.headroom is not None and row.headroom < IMPOSSIBLE for row in rows):
        emit("time", "the ceilings again: a region beats them, so the machine was busy when they were measured")
        ceilings = hardware.measure(options.device, refresh=True)
        rows = rank.rows(measured.graphs, measured.matches, timing, ceilings)
    backends = {r.problem: extractor.backend_for(r.problem, options.backend) for r in rows if r.problem}
    targets = rank.targets_of(rows, backends, out)
    sources = {}
    arch = hardware.arch(options.device)
    for i, row in enumerate(r for r in rows if r.problem is not None):
        sources[row.name] = extractor.extract(row, options.backend, _title(options.model, settings), arch)
        emit("extract", f"{row.name}: {backends[row.problem or '']}", i + 1, len(targets))
    profile = {
        "version": VERSION,
        "model": options.model,
        "model_name": loaded.name,
        "device": options.device,
        "dtype": options.dtype,
        "autocast": options.autocast,
        "train": options.train,
        "settings": settings,
        "notes": [*loaded.notes, *(f"{reason}: operations only, no region was looked for" for reason in measured.lost)],
        "round": list(measured.forwards),
        "waiting": {**dataclasses.asdict(timing.waiting), "advice": timing.waiting.advice} if timing.waiting else None,
        "fingerprint": model.fingerprint(loaded.module),
        "hardware": ceilings.to_json(),
        "forward_us": timing.forward_us,
        "attributed_us": timing.attributed_us,
        "graph_breaks": measured.graph_breaks,
        "levers": [dataclasses.asdict(lever) for lever in pulled],
        "rows": [row.to_json() for row in rows],
        "targets": [target.to_json() for target in targets],
    }
    _write(out, profile, sources)


def _write(out: Path, profile: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    """Kernel files first: a profile.json that exists has all its kernels beside it."""
    try:
        (out / "kernels").mkdir(parents=True, exist_ok=True)
        for name, source in sources.items():
            (out / "kernels" / f"{name}.py").write_text(source)
        torn = out / "profile.json.part"
        torn.write_text(json.dumps(profile, indent=1) + "\n")
        torn.replace(out / "profile.json")
    except OSError as error:
        raise AutokernelError(f"the profile was expected to be writable in {out}: {error.strerror}") from error


def _title(path: str, settings: Mapping[str, str]) -> str:
    name = Path(path).name if modelref.huggingface(path) is None else path
    return name + "".join(f" {n}={v}" for n, v in settings.items())


def _settings(pairs: Sequence[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise AutokernelError(f"--set was expected to be NAME=VALUE; got '{pair}'")
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m autokernel.regions.worker")
    parser.add_argument("--model", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", choices=DTYPES)
    parser.add_argument("--autocast", default=None, choices=("bf16", "fp16"))
    parser.add_argument("--train", action="store_true", help="a step is a forward, a loss and its backward")
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--iters", type=int, default=10)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--backend", default="cpp")
    parser.add_argument("--out", required=True)
    parser.add_argument("--trace", default=None)
    parser.add_argument("--memory", default=None)
    parser.add_argument("--compile-log", default=None)
    parser.add_argument("--levers-s", type=float, default=0.0, help="seconds for each lever; 0: none is tried")
    options = parser.parse_args(arguments)
    if options.warmup < 0 or options.iters < 1:
        parser.error("--warmup was expected to be at least 0 and --iters at least 1")
    return options


if __name__ == "__main__":
    sys.exit(main())
