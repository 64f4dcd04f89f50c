"""A starter for a region that is a problem of its own: a plain, correct kernel, written from its loops."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Mapping

import torch

from autokernel import registry
from autokernel.regions import generate_cpp, generate_cuda, generate_triton
from autokernel.regions.loops import Loops, NotLoops
from autokernel.regions.lower import lower
from autokernel.regions.sizes import find
from autokernel.types import Problem, kernel_type

LANGUAGES: Mapping[str, Callable[[str, Problem, Loops, Mapping[str, int]], str]] = {
    "cpp": generate_cpp.write,
    "cuda": generate_cuda.write,
    "triton": generate_triton.write,
}

# A plain reduction of a long row keeps one core, or one multiprocessor, at work, where PyTorch splits it: with fewer
# rows than this there is no starter, and the search begins from PyTorch's own code.
LONG = 1 << 17  # columns
LEAST_ROWS = {"cpp": len(os.sched_getaffinity(0)), "cuda": 64, "triton": 64}


@functools.cache
def starter(problem: str, backend: str) -> str | None:
    """The kernel file of a problem that is a file; None where this backend has no generator for it, or what it would
    write leaves most of the machine idle.

    A generator refuses by NotLoops what is not elementwise or a reduction along rows.
    """
    write = LANGUAGES.get(backend)
    if write is None or not problem.endswith(".py"):
        return None
    known: Problem = registry.load("problems", problem)
    tensors = known.make_inputs({}, known.dtypes[0], torch.Generator().manual_seed(0))
    dtypes = [t.dtype for t in tensors]
    try:
        sizes = find(known.reference, [tuple(t.shape) for t in tensors], dtypes)
        loops = lower(known.reference, sizes, dtypes)
        rows, columns = (math.prod(sizes.given[a.size] for a in axes) for axes in (loops.rows, loops.columns))
        if loops.reductions and columns >= LONG and rows < LEAST_ROWS[backend]:
            return None
        return write(kernel_type(problem), known, loops, sizes.given)
    except NotLoops:
        return None
