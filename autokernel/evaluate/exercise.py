"""Calls a kernel file on a problem's inputs for a profiler or a sanitizer to watch. It measures and decides nothing.

    python -m autokernel.evaluate.exercise REQUEST.json

Started by toolrun.py, and run as it is: such a tool reaches into the process that it watches and talks to it over
sockets and shared files, which every level of the sandbox would forbid. Hence it is for files that passed the judge.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from autokernel import registry, runfile
from autokernel.evaluate.memory import extent, flat, relaid
from autokernel.evaluate.stages import odd_strides
from autokernel.types import Problem, Scalar, Workload

# Every allocator that a model meets hands out memory in units of more than this, and the hardware reads in aligned
# pieces of it: a kernel that reads the whole of an input's last piece reads what is there. Beyond that it is an error.
PIECE_BYTES = 16
SMALL_BYTES, SMALL_FLOPS = 8 << 20, 2 * 10**8  # of a case for a sanitizer, which makes a kernel 10 to 100 times slower
SMALL_SHAPES, EDGE_SHAPES = 2, 6

Call = tuple[tuple[torch.Tensor, ...], Mapping[str, Scalar]]


def main(path: str) -> None:
    """Exits 0, having written the number of calls to the request's ``told``, if and only if every call returned."""
    request = json.loads(Path(path).read_text())
    device = request["device"]
    torch.set_grad_enabled(False)
    if index := torch.device(device).index:
        torch.cuda.set_device(index)
    torch.zeros(1, device=device)  # the tool waits for CUDA: it should not have to wait for a build
    function = runfile.run(Path(request["kernel"]), "kernel").kernel_fn
    problem: Problem = registry.load("problems", request["problem"])
    given = [Workload.from_json(w) for w in request["workloads"]]
    count = 0
    for tensors, scalars in calls(problem, given) if given else small_calls(problem):
        placed = tuple(on_device(tensor, device) for tensor in tensors)
        if request["profile"]:
            profiled(function, placed, scalars)
        else:
            function(*placed, **scalars)
        synchronize(device)
        count += 1
    Path(request["told"]).write_text(json.dumps({"calls": count}))


def calls(problem: Problem, workloads: list[Workload]) -> Iterator[Call]:
    """One call of each workload, on the CPU."""
    for number, work in enumerate(workloads):
        tensors = problem.make_inputs(work.dims, work.dtype, torch.Generator().manual_seed(number))
        named = zip(problem.inputs, tensors, strict=True)
        laid = tuple(relaid(t, work.strides[n]) if n in work.strides else t for n, t in named)
        yield laid, {**problem.scalars, **work.scalars}


def small_calls(problem: Problem) -> Iterator[Call]:
    """Few and small calls: every dtype, with regular and odd sizes, other scalars, other strides."""

    def small(work: Workload) -> bool:
        return problem.bytes(work) <= SMALL_BYTES and problem.flops(work) <= SMALL_FLOPS

    for dtype in problem.dtypes:
        every = [Workload(dims, dtype, scalars=problem.scalars) for dims in problem.shapes["cpu"]]
        regular = sorted(filter(small, every), key=problem.bytes)[-SMALL_SHAPES:]
        edges = filter(small, (Workload(dims, dtype, scalars=problem.scalars) for dims in problem.edge_shapes))
        yield from calls(problem, [*regular, *itertools.islice(edges, EDGE_SHAPES)])
        for work in regular[:1]:
            yield from calls(problem, [Workload(work.dims, dtype, scalars=each) for each in problem.edge_scalars])
            if problem.strided:
                ((tensors, scalars),) = calls(problem, [work])
                yield tuple(odd_strides(tensor, position) for position, tensor in enumerate(tensors)), scalars


def on_device(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """The tensor with its strides, in an allocation of its own that ends with its last piece of PIECE_BYTES, all of it
    written by one copy: nothing in it is uninitialised.
    """
    size = tensor.element_size()
    count = extent(tensor.shape, tensor.stride())
    whole = torch.zeros(-(-count * size // PIECE_BYTES) * PIECE_BYTES // size, dtype=tensor.dtype)
    whole[:count].copy_(flat(tensor))
    return whole.to(device).as_strided(tensor.shape, tensor.stride())


def profiled(function: Callable[..., Any], tensors: tuple[torch.Tensor, ...], scalars: Mapping[str, Scalar]) -> None:
    """A call that builds and warms up, then one that the profiler sees."""
    function(*tensors, **scalars)
    torch.cuda.synchronize()
    torch.cuda.profiler.start()  # type: ignore[no-untyped-call]
    function(*tensors, **scalars)
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()  # type: ignore[no-untyped-call]


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1])
