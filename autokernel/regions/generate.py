"""A starter for a region that is a problem of its own: a plain, correct kernel, written from its loops."""

from __future__ import annotations

import functools
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


@functools.cache
def starter(problem: str, backend: str) -> str | None:
    """The kernel file of a problem that is a file; None where this backend has no generator for it.

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
        return write(kernel_type(problem), known, lower(known.reference, sizes, dtypes), sizes.given)
    except NotLoops:
        return None
