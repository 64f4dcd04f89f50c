"""Recipes for CUDA C++ in a string of the file, built by ``tvm_ffi.cpp.load_inline``."""

from __future__ import annotations

import re
from collections.abc import Callable

from autokernel.extension import Brief
from autokernel.proposers.recipes import Recipe
from autokernel.proposers.recipes.cpp_recipes import into_list, launched_directly

_KERNEL = re.compile(r"__global__ void[^{;]*?\b\w+\((?P<parameters>[^{};]*)\)\s*\{")
_POINTER = re.compile(r"(\bconst \w+\*) (\w+)(?=\s*[,)]|$)")
_BOUNDS = re.compile(r"__launch_bounds__\(([^(),]+)\)")


def with_flag(flag: str) -> Callable[[str, Brief], str | None]:
    """Adds one compiler flag, unless the file speaks of it already."""

    def apply(source: str, brief: Brief) -> str | None:
        del brief
        return None if flag.partition("=")[0] in source else into_list(source, "extra_cuda_cflags", f'"{flag}"')

    return apply


def blocks_per_multiprocessor(count: int) -> Callable[[str, Brief], str | None]:
    """Asks the compiler for as few registers as let ``count`` blocks run on a multiprocessor at once."""

    def apply(source: str, brief: Brief) -> str | None:
        del brief
        return _changed(source, _BOUNDS.sub(rf"__launch_bounds__(\1, {count})", source))

    return apply


def read_only(source: str, brief: Brief) -> str | None:
    """``const T*`` parameters of kernels become ``const T* __restrict__``."""
    del brief
    if "__restrict__" in source:
        return None

    def edit(found: re.Match[str]) -> str:
        parameters = found["parameters"]
        return found[0].replace(parameters, _POINTER.sub(r"\1 __restrict__ \2", parameters))

    return _changed(source, _KERNEL.sub(edit, source))


def replaced(pattern: str, replacement: str) -> Callable[[str, Brief], str | None]:
    def apply(source: str, brief: Brief) -> str | None:
        del brief
        return _changed(source, re.sub(pattern, replacement, source))

    return apply


def _changed(before: str, after: str) -> str | None:
    return None if after == before else after


RECIPES = (
    Recipe("read-only pointers", "the compiler may move loads over stores, and use the read-only path", 6.0, read_only),
    Recipe("two blocks a multiprocessor", "one loads while the other computes; costs registers", 5.0,
           blocks_per_multiprocessor(2)),
    Recipe("copies fetch 128 bytes", "the L2 reads whole lines ahead of the copies into shared memory", 4.5,
           replaced(r"cp\.async\.cg\.shared\.global \[", "cp.async.cg.shared.global.L2::128B [")),
    Recipe("inputs stay cached", "what one kernel reads may be in the L2 when it reads it again", 4.0,
           replaced(r"\b__ldcs\(", "__ldg(")),
    Recipe("outputs stay cached", "the next kernel of the model finds this one's output in the L2", 3.5,
           replaced(r"\b__stcs\(", "__stcg(")),
    Recipe("direct launch", "a call this short should not look its launcher up", 3.0, launched_directly),
    Recipe("fast math", "divisions, roots and exponentials by the special function unit; denormals are flushed", 2.5,
           with_flag("--use_fast_math")),
    Recipe("loads past the L1", "a stream that is read once need not go through the L1", 2.0,
           with_flag("-Xptxas=-dlcm=cg")),
)  # fmt: skip
