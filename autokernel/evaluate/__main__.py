"""The judge's process: requests and answers pass over the inherited socket FD, ``python -m autokernel.evaluate FD``.

Run by client.py. The nursery is started first: to import torch takes it as long as it takes the judge itself.
"""

from __future__ import annotations

import dataclasses
import gc
import socket
import sys
from pathlib import Path

from autokernel.evaluate import sandbox
from autokernel.evaluate.defences import checked
from autokernel.evaluate.pool import Nursery
from autokernel.evaluate.protocol import Channel, PeerGone
from autokernel.isolation import Limits
from autokernel.types import Target


def main() -> None:
    sandbox.die_with_parent()
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    start, _ = channel.receive()
    off = frozenset(start["isolation_off"])
    if "ptrace" not in off:
        sandbox.traceable(False)
    nursery = Nursery(Path(start["folder"]), start["device"], start["threads"], Limits.from_json(start["limits"]), off)

    from autokernel.evaluate.judge import Judge

    judge = Judge(nursery, start["min_gain"], policy=start["policy"], spares=start["spares"])
    gc.collect()
    gc.freeze()  # what was imported is not looked through again after each verdict
    channel.send({"event": "ready", "hardware": judge.hardware.to_json(), "isolation": dict(judge.isolation)})
    while True:
        judge.idle(channel)
        try:
            request, _ = channel.receive()
        except PeerGone:
            judge.close()
            return
        verdict, comparison = judge.evaluate(
            Target.from_json(request["target"]),
            request["source"],
            request["incumbent"],
            baselines=request["baselines"],
            thorough=request["thorough"],
            on_event=channel.send,
            disabled=checked(request.get("disabled", ())),
        )
        told = dataclasses.asdict(comparison) if comparison else None
        channel.send({"event": "done", "verdict": verdict.to_json(), "comparison": told})


if __name__ == "__main__":
    main()
