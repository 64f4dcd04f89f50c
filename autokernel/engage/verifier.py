"""The process that proves a run on its model; the daemon reads its events.

    python -m autokernel.engage.verifier --run DIR [--model FILE] [--train] [--autocast bf16] [--diagnose] [--mode ours]

A run that was profiled under autocast is verified so without being told.
Writes verification.json (or diagnosis.json) into the run's folder. Its events are "verify" and "error". A mistake of
the user ends it with exit status 2.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autokernel import amdahl
from autokernel.engage import won
from autokernel.engage.verify import QUICK, RESTS, THOROUGH, Verifier
from autokernel.regions import device_process, model
from autokernel.types import AutokernelError

VERSION = 1  # of verification.json


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)

    def work(emit: device_process.Emit) -> None:
        prove(options, lambda message: emit("verify", message))

    return device_process.serve(work, as_child=arguments is None)


def prove(options: argparse.Namespace, on_step: Any) -> None:
    """Verify (or diagnose), and write what was found."""
    folder = Path(options.run)
    found = won.read(folder, options.kernel or None, everything=True)
    path = Path(options.model or found.model)
    on_step(f"loading {path}")
    autocast = options.autocast or json.loads((folder / "profile.json").read_text()).get("autocast")
    loaded = model.load(path, found.device, found.dtype, found.settings, train=options.train, autocast=autocast)
    loaded.module.eval()  # no dropout: two runs of one model must give the same
    verifier = Verifier(loaded, found, effort=QUICK if options.quick else THOROUGH)
    record: dict[str, Any] = {
        "version": VERSION,
        "time": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "model": str(path),
        "device": found.device,
        "dtype": found.dtype,
        "autocast": autocast,
        "settings": dict(found.settings),
        "train": options.train,
    }
    if options.diagnose:
        alone = verifier.diagnose(on_step)
        _write(folder / "diagnosis.json", {**record, "alone": {n: a.to_json() for n, a in alone.items()}})
        return
    result = verifier.verify(options.mode, on_step)
    pays = {step.target for steps in result.steps.values() for step in steps if step.applied}
    kernels = {each.target.name: {"commit": each.commit, "applied": each.target.name in pays} for each in found.won}
    beside_eager = {step.target for step in result.steps.get("ours", ()) if step.applied}
    applied = [each for each in found.won if each.target.name in beside_eager]
    projection = (
        {}
        if options.train
        else {  # Amdahl's law over the shares of a forward: it says nothing of a backward
            "all": _projected(found.won),
            "applied": _projected(applied),
            "walls": _projected(applied, found.attributed_us / found.forward_us),
        }
    )
    _write(folder / "verification.json", {**record, "kernels": kernels, "projection": projection, **result.to_json()})


def _projected(kernels: Sequence[won.Won], attributed: float = 1.0) -> float:
    return amdahl.projected(((each.target.share, each.speedup) for each in kernels), attributed)


def _write(path: Path, data: Any) -> None:
    torn = path.with_name(f"{path.name}.part")
    try:
        torn.write_text(json.dumps(data, indent=1) + "\n")
        torn.replace(path)
    except OSError as error:
        raise AutokernelError(f"{path} was expected to be writable: {error.strerror}") from error


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m autokernel.engage.verifier")
    parser.add_argument("--run", required=True)
    parser.add_argument("--model", default=None)
    parser.add_argument("--kernel", action="append", default=[])
    parser.add_argument("--mode", action="append", default=[], choices=list(RESTS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--autocast", default=None, choices=("bf16", "fp16"))
    parser.add_argument("--diagnose", action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
