"""C++ with OpenMP from a region's loops: threads share the rows, and each sweep over a row computes what it needs.

A value that differs by column is computed anew in each sweep, or kept in a buffer where it is costly; one a row is
computed once. Sums run in float32 over pieces of a row, and the pieces add up in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from autokernel.regions import generate_c
from autokernel.regions.cpp_text import FILE, HELPERS, NEEDS, SUM_PIECE
from autokernel.regions.loops import Loops, Value
from autokernel.regions.tensors import sources_of, strides_of
from autokernel.types import Problem


def write(name: str, problem: Problem, loops: Loops, given: Mapping[str, int]) -> str:
    """The kernel file, one for all sizes. Raises NotLoops for an operation that C++ has no function for."""
    return _Writer(name, problem, loops).file()


class _Writer(generate_c.Writer):
    def __init__(self, name: str, problem: Problem, loops: Loops) -> None:
        element = {"fp32": "float", "bf16": "bf16", "fp16": "f16"}[problem.dtypes[0]]
        super().__init__(name, problem, loops, element, None if element == "float" else "narrow")
        self.kept = loops.worth_keeping() if len(loops.columns) == 1 else []  # in a buffer of each thread
        self.there: set[Value] = set()  # those of them that an earlier sweep has left there

    def file(self) -> str:
        launch = self._launch()
        used = [h for h in HELPERS if f"{h}(" in launch]
        wanted = {self.problem.dtypes[0], *used, *(n for h in used for n in NEEDS.get(h, ()))}
        helpers = "\n".join(text for h, text in HELPERS.items() if h in wanted)
        return FILE.substitute(self.python(), helpers=helpers, launch=launch)

    # ------------------------------------------------------------------------------------------ C++

    def _launch(self) -> str:
        loops = self.loops
        views = ", ".join(f"TensorView {n}" for n in (*self.tensors.values(), "out"))
        self.say(0, f"void launch({views}) {{")
        for size, (name, dim) in sources_of(self.tensors).items():
            self.say(1, f"const int64_t {size} = {name}.size({dim});")
        for value, name in (*self.tensors.items(), (loops.output, "out")):
            self.say(1, f"auto* {name}_at = static_cast<{self.stored(value, name)}*>({name}.data_ptr());")
        for stride, expression_of in strides_of(loops, self.tensors):
            self.say(1, f"const int64_t {stride} = {expression_of};")
        rows, columns = (" * ".join(a.size for a in axes) or "1" for axes in (loops.rows, loops.columns))
        many = f"if (({rows}) * ({columns}) > GRAIN)"
        if self.kept:
            self.say(1, f"#pragma omp parallel {many}")
            self.say(1, "{")
            self.margin = 1
            for value in self.kept:
                self.say(1, f"std::vector<float> {self.names[value]}_kept({columns});")
        self.say(
            1,
            "#pragma omp for schedule(SCHEDULE)"
            if self.kept
            else f"#pragma omp parallel for schedule(SCHEDULE) {many}",
        )
        self.say(1, f"for (int64_t row = 0; row < {rows}; ++row) {{")
        self._rows()
        self.say(1, "}")
        if self.kept:
            self.say(0, "}")
            self.margin = 0
        self.say(0, "}")
        return "\n".join(self.lines)

    def _rows(self) -> None:
        loops = self.loops
        ready = self.begin_row(2)
        for reductions in loops.passes():
            self._reduce(reductions)
            ready |= set(reductions)
            self.once(2, ready)
        if loops.by_element(loops.output):
            self._sweep([loops.output], [])
        else:
            self.say(2, f"*out_row = {self.narrowed(self.names[loops.output])};")

    def _reduce(self, reductions: Sequence[Value]) -> None:
        for value in reductions:
            name = self.names[value]
            if value.op == "sum":
                self.say(2, f"double {name}_sum = 0;")
            else:
                start = "-INFINITY" if value.op == "max" else "INFINITY"
                self.say(2, f"float {name}_best = {start};")
                self.say(2, f"int {name}_nan = 0;")
        self._sweep([v.args[0] for v in reductions], reductions)
        for value in reductions:
            name = self.names[value]
            result = f"float({name}_sum)" if value.op == "sum" else f"{name}_nan ? NAN : {name}_best"
            self.say(2, f"const float {name} = {result};")

    def _sweep(self, wanted: Sequence[Value], reductions: Sequence[Value]) -> None:
        """Once over the columns: the values that are wanted, into the reductions, or stored where there are none."""
        loops = self.loops
        inner = loops.columns[-1].size
        index = {axis: f"j{depth}" for depth, axis in enumerate(loops.columns[:-1])} | {loops.columns[-1]: "c"}
        deep = 2
        for depth, axis in enumerate(loops.columns[:-1]):
            self.say(deep, f"for (int64_t j{depth} = 0; j{depth} < {axis.size}; ++j{depth})")
            deep += 1
        sums = [v for v in reductions if v.op == "sum"]
        if sums:
            self.say(deep, f"for (int64_t from = 0; from < {inner}; from += {SUM_PIECE}) {{")
            deep += 1
            self.say(deep, f"const int64_t to = std::min<int64_t>(from + {SUM_PIECE}, {inner});")
            for value in sums:
                self.say(deep, f"float {self.names[value]}_part = 0;")
        clauses = [f" reduction({sign} : {self.names[v]}_{what})" for v in reductions for sign, what in _clauses(v)]
        self.say(deep, f"#pragma omp simd{''.join(clauses)}")
        span = ("from", "to") if sums else ("0", inner)
        self.say(deep, f"for (int64_t c = {span[0]}; c < {span[1]}; ++c) {{")
        for value in loops.needed(wanted, self.there):
            if value in self.tensors:
                self.load(deep + 1, value, index)
            elif value in self.there:
                self.say(deep + 1, f"const float {self.names[value]} = {self.names[value]}_kept[c];")
            elif not value.reduces:
                self.assign(deep + 1, value)
                if value in self.kept:
                    self.say(deep + 1, f"{self.names[value]}_kept[c] = {self.names[value]};")
                    self.there.add(value)
        for value in reductions:
            name, arg = self.names[value], self.names[value.args[0]]
            if value.op == "sum":
                self.say(deep + 1, f"{name}_part += {arg};")
            else:
                sign = ">" if value.op == "max" else "<"
                self.say(deep + 1, f"{name}_best = {arg} {sign} {name}_best ? {arg} : {name}_best;")
                self.say(deep + 1, f"{name}_nan |= {arg} != {arg};")
        if not reductions:
            at = self.at(loops.output, "out", index)
            self.say(deep + 1, f"{at} = {self.narrowed(self.names[loops.output])};")
        self.say(deep, "}")
        if sums:
            for value in sums:
                self.say(deep, f"{self.names[value]}_sum += {self.names[value]}_part;")
            self.say(deep - 1, "}")


def _clauses(value: Value) -> Iterator[tuple[str, str]]:
    if value.op == "sum":
        yield "+", "part"
    else:
        yield value.op, "best"
        yield "|", "nan"
