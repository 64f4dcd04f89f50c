"""Recipes for Triton: edits of loads, stores, loops and launches, found in the syntax tree of any kernel file."""

from __future__ import annotations

import ast
from collections.abc import Callable

from autokernel.extension import Brief
from autokernel.proposers._tune import span
from autokernel.proposers.recipes import Recipe

Edits = list[tuple[int, int, str]]  # from byte, to byte, new text


def _kernels(source: str) -> list[tuple[ast.FunctionDef, bool]]:
    """The functions that are compiled (decorated with triton.jit), each with whether it multiplies tiles, by itself or
    in a function that it calls: what bounds such a kernel is rarely memory.
    """
    compiled = [
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef)
        and any(ast.unparse(mark).partition("(")[0] in ("triton.jit", "jit") for mark in node.decorator_list)
    ]
    calls = {
        kernel.name: {ast.unparse(node.func) for node in ast.walk(kernel) if isinstance(node, ast.Call)}
        for kernel in compiled
    }
    multiplying = {"tl.dot"}
    for _ in compiled:  # as deep as calls can be nested
        multiplying |= {name for name, called in calls.items() if called & multiplying}
    return [(kernel, kernel.name in multiplying) for kernel in compiled]


def _calls(node: ast.AST, name: str) -> list[ast.Call]:
    return [inner for inner in ast.walk(node) if isinstance(inner, ast.Call) and ast.unparse(inner.func) == name]


def _edited(source: str, edits: Edits) -> str | None:
    data = source.encode()
    for start, end, text in sorted(set(edits), reverse=True):
        data = data[:start] + text.encode() + data[end:]
    return data.decode() if edits else None


def _with_keyword(source: str, call: ast.Call, keyword: str) -> tuple[int, int, str]:
    """The edit that appends a keyword argument to a call."""
    _, end = span(source, call)
    inside = source.encode()[: end - 1].rstrip()
    comma = "" if inside.endswith((b",", b"(")) else ","
    return len(inside), len(inside), f"{comma} {keyword}"


def on_calls(function: str, keyword: str, *, products: bool) -> Callable[[str, Brief], str | None]:
    """Gives every load or store (``function``) that says nothing of caches the keyword argument: in kernels that
    multiply tiles (``products``), or in those that do not.
    """

    def apply(source: str, brief: Brief) -> str | None:
        del brief
        calls = [
            c for kernel, multiplies in _kernels(source) if multiplies is products for c in _calls(kernel, function)
        ]
        bare = [c for c in calls if not any(k.arg in ("cache_modifier", "eviction_policy") for k in c.keywords)]
        return _edited(source, [_with_keyword(source, call, keyword) for call in bare])

    return apply


def on_loops(keyword: str) -> Callable[[str, Brief], str | None]:
    """Gives every loop that loads, in kernels that multiply no tiles, the option ``keyword`` of tl.range, unless it has
    it; range becomes tl.range.
    """
    name = keyword.partition("=")[0]

    def apply(source: str, brief: Brief) -> str | None:
        del brief
        edits: Edits = []
        for kernel, multiplies in _kernels(source):
            for loop in (node for node in ast.walk(kernel) if isinstance(node, ast.For) and not multiplies):
                call = loop.iter
                if not isinstance(call, ast.Call) or ast.unparse(call.func) not in ("range", "tl.range"):
                    continue
                if not _calls(loop, "tl.load") or any(k.arg == name for k in call.keywords):
                    continue
                edits.append(_with_keyword(source, call, keyword))
                if ast.unparse(call.func) == "range":
                    edits.append((*span(source, call.func), "tl.range"))
        return _edited(source, edits)

    return apply


def with_registers(most: int) -> Callable[[str, Brief], str | None]:
    """Launches kernels that multiply no tiles with at most so many registers a thread. Those that do would not build:
    a wgmma of 64 x 256 takes 154 on its own.
    """

    def apply(source: str, brief: Brief) -> str | None:
        del brief
        kernels = {kernel.name for kernel, multiplies in _kernels(source) if not multiplies}
        launches = [
            node
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
            if isinstance(node.func.value, ast.Name) and node.func.value.id in kernels
        ]
        if any(k.arg == "maxnreg" for launch in launches for k in launch.keywords):
            return None
        return _edited(source, [_with_keyword(source, launch, f"maxnreg={most}") for launch in launches])

    return apply


RECIPES = (
    Recipe("streamed stores", "results that nobody reads soon do not push inputs out of the L2 cache", 6.0,
           on_calls("tl.store", 'cache_modifier=".cs"', products=False)),
    Recipe("pipelined loops", "the next blocks are fetched while this one is worked on", 5.5,
           on_loops("num_stages=3")),
    Recipe("loads past the L1", "what is read once gains nothing from the L1 cache", 5.0,
           on_calls("tl.load", 'cache_modifier=".cg"', products=False)),
    Recipe("streamed loads", "what is read once leaves the caches first", 4.5,
           on_calls("tl.load", 'eviction_policy="evict_first"', products=False)),
    Recipe("kept operands", "tiles that other programs read, too, stay in the L2 cache", 4.0,
           on_calls("tl.load", 'eviction_policy="evict_last"', products=True)),
    Recipe("unrolled loops", "twice the loads in flight before the first is used", 3.5,
           on_loops("loop_unroll_factor=2")),
    Recipe("32 registers", "as many warps on an SM as it can hold hide more of memory's latency", 3.0,
           with_registers(32)),
)  # fmt: skip
