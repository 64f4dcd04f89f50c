"""Recipes for C++ and OpenMP in a string of the file, built by ``tvm_ffi.cpp.load_inline``."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping

from autokernel.extension import Brief
from autokernel.proposers._tune import span
from autokernel.proposers.recipes import Recipe

_LOOP = re.compile(r"^(?P<indent>[ \t]*)for \((?:[^()]|\([^()]*\))*\)(?P<body>.*)$")


def call_us(brief: Brief) -> float:
    """What one call takes now, or took in the model where nothing was measured: microseconds."""
    calls = sum(workload.count for workload in brief.target.workloads)
    return (brief.position.latency_us if brief.position else brief.target.eager_us) / max(1, calls)


# ------------------------------------------------------------------------------------------------- compiler flags


def with_flags(*flags: str) -> Callable[[str, Brief], str | None]:
    """Adds flags at the end of ``extra_cflags``, unless the file speaks of the first of them already."""

    def apply(source: str, brief: Brief) -> str | None:
        del brief
        if flags[0].partition("=")[0] in source:
            return None
        return into_list(source, "extra_cflags", *(f'"{flag}"' for flag in flags))

    return apply


def into_list(source: str, keyword: str, *items: str) -> str | None:
    """Appends items (Python source) to the list that ``load_inline`` is given as ``keyword``; None without one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg == keyword and isinstance(node.value, ast.List):
            data = source.encode()
            end = span(source, node.value)[1] - 1
            before = data[:end].rstrip()
            comma = b"" if before.endswith((b",", b"[")) else b","
            return (before + comma + b" " + ", ".join(items).encode() + data[end:]).decode()
    return None


# ------------------------------------------------------------------------------------------------- OpenMP


def scheduled(kind: str) -> Callable[[str, Brief], str | None]:
    """Gives every worksharing loop that is scheduled statically, or not at all, another schedule."""

    def apply(source: str, brief: Brief) -> str | None:
        del brief

        def edit(found: re.Match[str]) -> str:
            line = found.group()
            if "schedule(static)" in line:
                return line.replace("schedule(static)", f"schedule({kind})")
            return line if "schedule" in line else re.sub(r"\bfor\b", f"for schedule({kind})", line, count=1)

        return _changed(source, re.sub(r"#pragma omp (?:parallel )?for\b.*", edit, source))

    return apply


def collapsed(source: str, brief: Brief) -> str | None:
    """collapse(2) where a worksharing loop holds nothing but another loop, whose bounds do not use its variable."""
    del brief
    lines = source.split("\n")
    for number, line in enumerate(lines[:-2]):
        if not re.search(r"#pragma omp (parallel )?for\b", line) or "collapse" in line:
            continue
        outer, inner = _LOOP.match(lines[number + 1]), _LOOP.match(lines[number + 2])
        variable = re.search(r"for \(\w+ (\w+) =", lines[number + 1])
        if outer and inner and variable and outer["body"].strip() in ("", "{"):
            if outer["body"].strip() == "{" or re.search(rf"\b{variable[1]}\b", lines[number + 2]):
                continue
            lines[number] = re.sub(r"\bfor\b", "for collapse(2)", line, count=1)
    return _changed(source, "\n".join(lines))


def bound(source: str, brief: Brief) -> str | None:
    del brief
    if "proc_bind" in source:
        return None
    return _changed(source, re.sub(r"(#pragma omp parallel\b(?: for\b)?)", r"\1 proc_bind(close)", source))


def serial(source: str, brief: Brief) -> str | None:
    """No threads at all; only where a call is so short that waking them may cost more than they do."""
    if call_us(brief) > 60:
        return None
    without = re.sub(r"#pragma omp parallel for\b[^\n]*", "", source)
    return _changed(source, re.sub(r"#pragma omp parallel\b[^\n]*", "", without))


# ------------------------------------------------------------------------------------------------- loops


def before_innermost(pragma: str, *, elementwise: bool = False) -> Callable[[str, Brief], str | None]:
    """Puts a pragma before every innermost loop that has none. ``elementwise``: only loops that carry no value on."""

    def apply(source: str, brief: Brief) -> str | None:
        del brief
        lines, edited = source.split("\n"), list[str]()
        for number, line in enumerate(lines):
            loop = _LOOP.match(line)
            if loop and "#pragma" not in (lines[number - 1] if number else ""):
                body = _body(lines, number, loop["body"])
                carries = re.search(r"(?<![\w\])])\w+ [-+*/]?= ", re.sub(r"\w+\[[^\]]*\] [-+*/]?= ", "", body))
                canonical = re.search(r"for \(\w+ \w+ = ", line)  # the only loops that OpenMP takes
                fits = not elementwise or (canonical and not carries)
                if body and fits and not re.search(r"\bfor \(|\bbreak\b|\breturn\b", body):
                    edited.append(f"{loop['indent']}{pragma}")
            edited.append(line)
        return _changed(source, "\n".join(edited))

    return apply


def _body(lines: list[str], number: int, rest: str) -> str:
    """The text of a loop's body: what follows on its line, the next line, or the block in braces; "" if not found."""
    if rest.strip() not in ("", "{"):
        return rest
    if not rest.strip():
        return lines[number + 1] if number + 1 < len(lines) and "#pragma" not in lines[number + 1] else "for ("
    depth, block = 1, list[str]()
    for line in lines[number + 1 : number + 60]:
        depth += line.count("{") - line.count("}")
        if depth <= 0:
            return "\n".join(block)
        block.append(line)
    return ""


# ------------------------------------------------------------------------------------------------- memory


def restricted(source: str, brief: Brief) -> str | None:
    """__restrict__ on the pointer parameters of function definitions."""
    del brief

    def edit(found: re.Match[str]) -> str:
        parameter = r"((?:const )?\b\w+ ?\*)(?: ?const)? ?(\w+)(?=[,)])"
        return re.sub(parameter, r"\1 __restrict__ \2", found.group())

    definition = r"(?m)^(?:inline |static )*(?:void|float|int|int64_t) \w+\([^;{}]*\) \{"
    return None if "__restrict" in source else _changed(source, re.sub(definition, edit, source))


def unfilled(source: str, brief: Brief) -> str | None:
    """Buffers that std::vector fills with zeros become memory that is only allocated."""
    del brief
    edited = source
    for kind, name in re.findall(r"std::vector<(\w+)> (\w+)\(", source):
        if re.search(rf"\b{name}\.(?!data\(\))\w+", source):
            continue  # it is used as more than a place
        edited = re.sub(
            rf"std::vector<{kind}> {name}\((.*)\);", rf"std::unique_ptr<{kind}[]> {name}(new {kind}[\1]);", edited
        )
        edited = edited.replace(f"{name}.data()", f"{name}.get()")
    return None if edited == source else _include(edited, "memory")


def huge_pages(source: str, brief: Brief) -> str | None:
    """Asks for huge pages under each output: a fresh one is otherwise faulted in 4 KB at a time, at every call."""
    module = re.search(r"(?m)^(\w+) = tvm_ffi\.cpp\.load_inline\(", source)
    output = re.search(r"(?m)^( +)(\w+) = (?:torch\.empty|\w+\.new_empty)[^\n]*\)$", source)
    if module is None or output is None or "madvise" in source or call_us(brief) < 100:
        return None
    function = """
void ask_for_huge_pages(TensorView t) {  // advice for the whole huge pages inside the tensor; never an error
  int64_t bytes = t.dtype().bits / 8;
  for (int i = 0; i < t.ndim(); ++i) bytes *= t.size(i);
  const uintptr_t page = uintptr_t(1) << 21, start = reinterpret_cast<uintptr_t>(t.data_ptr());
  const uintptr_t first = (start + page - 1) / page * page, last = (start + bytes) / page * page;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
}
"""
    call = f"{output[0]}\n{output[1]}{module[1]}.ask_for_huge_pages({output[2]})"
    edited = into_list(source.replace(output[0], call, 1), "functions", '"ask_for_huge_pages"')
    launch = re.search(r"(?m)^void launch\(", edited or "")
    if edited is None or launch is None:
        return None
    return _include(edited[: launch.start()] + function.lstrip() + "\n" + edited[launch.start() :], "sys/mman.h")


def prefetched(source: str, brief: Brief) -> str | None:
    """Fetches the beginning of the next row while this one is worked on."""
    del brief
    row = r"(?m)^( +)(const \w+ ?\* ?(\w+) = \w+ \+ \w+ \* ([\w.]+);)$"
    return _changed(source, re.sub(row, r"\1\2\n\1__builtin_prefetch(\3 + \4);", source))


def launched_directly(source: str, brief: Brief) -> str | None:
    """The launcher looked up once and not at every call; only where a call is short."""
    module = re.search(r"(?m)^(\w+) = tvm_ffi\.cpp\.load_inline\((?:.|\n)*?^\)\n", source)
    if module is None or call_us(brief) > 60 or f"{module[1]}.launch(" not in source:
        return None
    edited = source.replace(f"{module[1]}.launch(", "_launch(")
    return edited.replace(module[0], f"{module[0]}_launch = {module[1]}.launch\n", 1)


def _include(source: str, header: str) -> str:
    return source if f"<{header}>" in source else source.replace("#include <", f"#include <{header}>\n#include <", 1)


def _changed(before: str, after: str) -> str | None:
    return None if after == before else after


_FLAGS: Mapping[str, tuple[tuple[str, ...], float, str]] = {
    "wide vectors": (
        ("-mprefer-vector-width=512",),
        6.0,
        "the compiler halves its vectors by default where 512 bits exist",
    ),
    "reordered sums": (
        ("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math"),
        5.0,
        "sums may be taken in any order, so that they vectorise",
    ),
    "no errno": (("-fno-math-errno", "-fno-trapping-math"), 4.0, "square roots and comparisons need no branch"),
    "unrolled loops": (("-funroll-loops",), 3.5, "fewer branches, more independent work in flight"),
    "vectors at any price": (("-fvect-cost-model=unlimited",), 3.0, "vectorise what the cost model leaves alone"),
    "own functions": (("-fno-semantic-interposition",), 2.5, "functions of a shared library may be inlined again"),
    "early scheduling": (("-fschedule-insns", "-fsched-pressure"), 1.5, "loads move ahead of their use"),
    "compiler prefetch": (("-fprefetch-loop-arrays",), 1.0, "long streams are fetched before they are needed"),
}

RECIPES = (
    *(Recipe(name, f"{' '.join(f)}: {why}", worth, with_flags(*f)) for name, (f, worth, why) in _FLAGS.items()),
    Recipe("huge pages", "a fresh output costs one page fault for 2 MB, not for 4 KB", 7.0, huge_pages),
    Recipe("no zero fill", "a buffer that is overwritten need not be filled with zeros first", 5.5, unfilled),
    Recipe("simd", "#pragma omp simd on element-wise inner loops that have none", 5.2,
           before_innermost("#pragma omp simd", elementwise=True)),
    Recipe("restrict", "the compiler may assume that pointers do not overlap", 4.5, restricted),
    Recipe("dynamic schedule", "threads take work as they finish, none waits for another", 4.2, scheduled("dynamic")),
    Recipe("guided schedule", "large pieces first, small ones to even out the end", 3.2, scheduled("guided")),
    Recipe("collapse", "two loops share their iterations: enough for every thread when rows are few", 3.8, collapsed),
    Recipe("one thread", "a call this short may take less time than waking threads", 3.6, serial),
    Recipe("direct launch", "a call this short should not look its launcher up", 2.8, launched_directly),
    Recipe("unroll by 4", "#pragma GCC unroll 4 on inner loops without a pragma", 2.6,
           before_innermost("#pragma GCC unroll 4")),
    Recipe("no aliasing", "#pragma GCC ivdep on inner loops without a pragma: no iteration needs another's result", 2.4,
           before_innermost("#pragma GCC ivdep")),
    Recipe("next row", "the next row is fetched while this one is worked on", 2.0, prefetched),
    Recipe("bound threads", "threads stay on their cores, and their data in their caches", 1.8, bound),
)  # fmt: skip
