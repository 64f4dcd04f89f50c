"""CUDA C++ from a region's loops: whole warps sweep a row, and a block takes several rows where they are short.

A value that differs by column is computed anew in each sweep; one a row is computed once, by every thread of the row.
Without a reduction, blocks divide the columns, too.
"""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from autokernel.regions import cuda_text, generate_c
from autokernel.regions.loops import Axis, Loops, Value
from autokernel.regions.tensors import sources_of, strides_of
from autokernel.types import Problem

LONG = 16384  # columns from which a row has the largest block there is
OPERATION = {"sum": "Sum", "max": "Larger", "min": "Smaller"}
WIDTH = 112


def write(name: str, problem: Problem, loops: Loops, given: Mapping[str, int]) -> str:
    """The kernel file. ``given``: the sizes in the model. Raises NotLoops for an operation that C++ has no word for."""
    return _Writer(name, problem, loops).file(given)


class _Writer(generate_c.Writer):
    dialect = cuda_text.DIALECT

    def __init__(self, name: str, problem: Problem, loops: Loops) -> None:
        super().__init__(name, problem, loops, "T", "narrow<T>")
        self.views = (*self.tensors.items(), (loops.output, "out"))
        self.sizes = {size: f"{n}.size({dim})" for size, (n, dim) in sources_of(self.tensors).items()}

    def file(self, given: Mapping[str, int]) -> str:
        loops, dtypes = self.loops, self.problem.dtypes
        reduces = bool(loops.reductions)
        long = reduces and math.prod(given[a.size] for a in loops.columns) >= LONG
        told = self.python()
        how = cuda_text.SWEPT.format(**told) if reduces else cuda_text.TILED
        how += cuda_text.AGAIN if reduces and told["sweeps"] != "once" else ""
        pointers = [f"static_cast<{self.stored(v, n)}*>({n}.data_ptr())" for v, n in self.views]
        strides = [text for _, text in strides_of(loops, self.tensors)]
        tensors = [f"{n} {_shape(v)}" for v, n in self.tensors.items()]
        return cuda_text.FILE.substitute(
            told,
            tensors=textwrap.fill(f"{', '.join(tensors)} -> {_shape(loops.output)}.", WIDTH),
            dtypes=", ".join(dtypes),
            moved=_moved(loops),
            flops=_total(_flops(loops)),
            how=textwrap.fill(f"{how}.", WIDTH),
            threads=1024 if long else 256,
            includes="".join(cuda_text.INCLUDES.get(d, "") for d in dtypes),
            aliases="".join(cuda_text.ALIASES.get(d, "") for d in dtypes),
            helpers=self._helpers(),
            kernel=self._kernel(),
            views=", ".join(f"TensorView {n}" for _, n in self.views),
            row_count=self._count(loops.rows),
            column_count=self._count(loops.columns),
            geometry=cuda_text.GEOMETRY[reduces],
            call=_listed(pointers, self.sizes.values(), strides, margin=6),
            dispatch=self._dispatch(),
        )

    def _count(self, axes: Sequence[Axis]) -> str:
        return " * ".join(self.sizes[a.size] for a in axes) or "1"

    def _helpers(self) -> str:
        dtypes = self.problem.dtypes
        text = "".join(cuda_text.WIDEN[d] for d in dtypes)
        text += "template <typename T> __device__ inline T narrow(float v);  // round to nearest even\n"
        text += "".join(cuda_text.NARROW[d] for d in dtypes)
        used = dict.fromkeys(OPERATION[v.op] for v in self.loops.reductions)
        return "\n".join([text, *(cuda_text.OPERATIONS[o] for o in used), *([cuda_text.ACROSS_ROW] if used else [])])

    def _dispatch(self) -> str:
        dtypes = self.problem.dtypes
        arguments = ", ".join(n for _, n in self.views)
        calls = [f"run<{cuda_text.ELEMENTS[d]}>({arguments});" for d in dtypes]
        tests = [f"if ({cuda_text.TAKES[d]}) " for d in dtypes[:-1]] + [""]
        return "  " + "\n  else ".join(test + call for test, call in zip(tests, calls, strict=True))

    # ------------------------------------------------------------------------------------------ the kernel

    def _kernel(self) -> str:
        loops = self.loops
        pointers = [f"{self.stored(v, n)}* __restrict__ {n}_at" for v, n in self.views]
        sizes = [f"int64_t {s}" for s in self.sizes]
        strides = [f"int64_t {s}" for s, _ in strides_of(loops, self.tensors)]
        rows = " * ".join(a.size for a in loops.rows) or "1"
        columns = " * ".join(a.size for a in loops.columns)
        self.say(0, "// blockDim = (threads a row, rows a block). 64 bits: a tensor may have more than 2^31 elements.")
        self.say(0, "template <typename T>")
        self.say(0, "__global__ void __launch_bounds__(THREADS) region(")
        self.say(0, f"{_listed(pointers, sizes, strides, margin=4)}) {{")
        if loops.reductions:
            self.say(1, f"__shared__ float scratch[{len(loops.reductions)}][32];")
        self.say(1, "constexpr int ahead = AHEAD;  // a pragma does not see macros")
        self.say(1, "const int64_t mine = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;")
        if loops.reductions:
            self.say(1, f"const bool live = mine < {rows};  // a thread without a row stays for the barriers")
        else:
            self.say(1, f"if (mine >= {rows}) return;")
        if loops.rows:
            self.say(1, f"const int64_t row = {'live ? mine : 0' if loops.reductions else 'mine'};")
        self.say(1, "// This thread's columns, counted: with one exit, a loop can have several loads on their way.")
        if loops.reductions:
            self.say(1, f"const int64_t columns = live ? {columns} : 0, first = threadIdx.x, step = blockDim.x;")
        else:
            self.say(1, f"const int64_t columns = {columns}, first = int64_t(blockIdx.y) * blockDim.x + threadIdx.x;")
            self.say(1, "const int64_t step = int64_t(gridDim.y) * blockDim.x;")
        self.say(1, "const int64_t count = (columns - first + step - 1) / step;")
        ready = self.begin_row(1)
        for reductions in loops.passes():
            self._reduce(reductions)
            ready |= set(reductions)
            self.once(1, ready)
        if loops.by_element(loops.output):
            index = self._sweep([loops.output])
            at = self.at(loops.output, "out", index)
            self.say(2, f"{at} = {self.narrowed(self.names[loops.output])};")
            self.say(1, "}")
        else:
            self.say(1, f"if (live && threadIdx.x == 0) *out_row = {self.narrowed(self.names[loops.output])};")
        self.say(0, "}")
        return "\n".join(self.lines)

    def _reduce(self, reductions: Sequence[Value]) -> None:
        for value in reductions:
            self.say(1, f"float {self.names[value]}_part = {OPERATION[value.op]}::none();")
        self._sweep([v.args[0] for v in reductions])
        for value in reductions:
            name, arg = self.names[value], self.names[value.args[0]]
            self.say(2, f"{name}_part = {OPERATION[value.op]}()({name}_part, {arg});")
        self.say(1, "}")
        for value in reductions:
            name, scratch = self.names[value], f"scratch[{self.loops.reductions.index(value)}]"
            self.say(1, f"const float {name} = across_row({name}_part, {OPERATION[value.op]}(), {scratch});")

    def _sweep(self, wanted: Sequence[Value]) -> Mapping[Axis, str]:
        """The head of a loop over a thread's columns, and the values that are wanted; the indices of a column."""
        columns = self.loops.columns
        self.say(1, "#pragma unroll ahead")
        self.say(1, "for (int64_t k = 0; k < count; ++k) {")
        self.say(2, "const int64_t c = first + k * step;")
        index = {columns[0]: "c"} if len(columns) == 1 else self.unravel(2, "c", "j", columns)
        for value in self.loops.needed(wanted):
            if value in self.tensors:
                self.load(2, value, index)
            elif not value.reduces:
                self.assign(2, value)
        return index


# ------------------------------------------------------------------------------------------------- what the header says


def _shape(value: Value) -> str:
    return f"[{', '.join(a.size if a else '1' for a in value.axes)}]"


def _sizes(value: Value) -> tuple[str, ...]:
    return tuple(a.size for a in value.axes if a is not None)


def _flops(loops: Loops) -> Counter[tuple[str, ...]]:
    """One for each element of each value that is computed, or that is reduced."""
    computed = [v for v in loops.values if v.op not in ("copy", "cast", "number")]
    return Counter(_sizes(v.args[0] if v.reduces else v) for v in computed)


def _moved(loops: Loops) -> str:
    """Bytes of the inputs and of the output."""
    floats = Counter(_sizes(v) for v in (*loops.inputs, loops.output) if v.dtype.is_floating_point)
    others: Counter[tuple[str, ...]] = Counter()
    for value in loops.inputs:
        if not value.dtype.is_floating_point:
            others[_sizes(value)] += value.dtype.itemsize
    told = _total(floats)
    told = f"({told}) · itemsize" if len(floats) > 1 else f"{told} · itemsize"
    return f"{told} + {_total(others)}" if others else told


def _total(terms: Mapping[tuple[str, ...], int]) -> str:
    """3·R·C + C for {("R", "C"): 3, ("C",): 1}."""
    listed = sorted(terms.items(), key=lambda term: -len(term[0]))
    return " + ".join("·".join([*([str(n)] if n > 1 or not names else []), *names]) for names, n in listed) or "0"


def _listed(*groups: Iterable[str], margin: int) -> str:
    """Arguments, each group on lines of its own."""
    lead = " " * margin
    lines = []
    for group in groups:
        whole = ", ".join(each.replace(" ", "\0") for each in group)  # no line ends inside an argument
        lines += textwrap.wrap(whole, WIDTH, initial_indent=lead, subsequent_indent=lead, break_long_words=False)
    return ",\n".join(line.rstrip(",").replace("\0", " ") for line in lines)
