"""Answers, as one line of JSON on stdout, the questions of the command line that need torch or the sandbox.

    python -m autokernel.probe machine cpu                 what this machine's torch, sandbox and backends can do
    python -m autokernel.probe isolation cpu               which levels of isolation a candidate runs under
    python -m autokernel.probe workloads rmsnorm cpu       (a JSON list of workloads, or null, on stdin) the workloads
                                                           to judge and the roofline floor of one pass over them

A process of its own, because the daemon never imports torch. A mistake of the user ends it with status 2 and the line
on stderr.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from autokernel import registry
from autokernel.types import AutokernelError, Problem, Workload, is_file

OWN_SHAPES = (
    3  # how many of the problem's own shapes stand in for a file that names no workloads; of an owner's file, 1
)


def machine(device: str) -> dict[str, Any]:
    """Torch's build, what is missing for each backend, and the levels of the sandbox that this kernel grants."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "device": device,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        "cuda_build": torch.version.cuda,
        "backends": {
            name: [{"what": m.what, "mend": m.mend} for m in registry.load("backends", name).missing()]
            for name in registry.names("backends")
        },
        "isolation": isolation(device),
    }


def isolation(device: str) -> dict[str, Any]:
    """The levels of isolation that a runner reaches here, tried for real with a runner that loads nothing."""
    from autokernel.evaluate import landlock
    from autokernel.evaluate.pool import levels_here

    return {"levels": dict(levels_here(device)), "landlock_abi": landlock.abi()}


def workloads(problem_name: str, device: str, given: Sequence[Any] | None) -> dict[str, Any]:
    """The workloads to judge and their floor in µs: those given, or the problem's largest shapes in its first dtype."""
    from autokernel.hardware import measure

    problem: Problem = registry.load("problems", problem_name)
    kind = device.split(":")[0]
    if given:
        chosen = [Workload.from_json(w) for w in given]
    else:
        shapes = problem.shapes.get(kind) or problem.shapes["cpu"]
        every = [Workload(dims=dims, dtype=problem.dtypes[0], scalars=problem.scalars) for dims in shapes]
        chosen = sorted(every, key=problem.bytes)[-1 if is_file(problem_name) else -OWN_SHAPES :]
    ceilings = measure(device)
    floor_us = sum(w.count * ceilings.floor_us(problem.flops(w), problem.bytes(w), w.dtype) for w in chosen)
    memory_us = sum(w.count * ceilings.memory_us(problem.bytes(w)) for w in chosen)
    compute_us = sum(w.count * ceilings.compute_us(problem.flops(w), w.dtype) for w in chosen)
    bound_by = "memory" if memory_us >= compute_us else "compute"
    listed = [w.to_json() for w in chosen]
    parameters = [*problem.inputs, *(f"{name}={value!r}" for name, value in problem.scalars.items())]
    return {
        "workloads": listed,
        "floor_us": floor_us,
        "bound_by": bound_by,
        "hardware": ceilings.to_json(),
        "signature": f"kernel_fn({', '.join(parameters)})",
    }


def main(arguments: Sequence[str]) -> int:
    try:
        if arguments[0] == "machine":
            answer = machine(arguments[1])
        elif arguments[0] == "isolation":
            answer = isolation(arguments[1])
        else:
            answer = workloads(arguments[1], arguments[2], json.loads(sys.stdin.read() or "null"))
    except AutokernelError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
