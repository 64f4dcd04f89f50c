"""C++ with OpenMP from a region's loops: threads share the rows, and each sweep over a row computes what it needs.

A value that differs by column is computed anew in each sweep, or kept in a buffer where it is costly; one a row is
computed once. Sums run in float32 over pieces of a row, and the pieces add up in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from autokernel.regions.cpp_text import DIALECT, FILE, HELPERS, NEEDS, SUM_PIECE, c_type
from autokernel.regions.expressions import expression
from autokernel.regions.loops import Axis, Loops, Value
from autokernel.regions.tensors import shape_of, sources_of, strides_of, unit_stride
from autokernel.types import Problem


def write(name: str, problem: Problem, loops: Loops) -> str:
    """The kernel file. Raises NotLoops for an operation that C++ has no function for."""
    return _Writer(name, problem, loops).file()


class _Writer:
    def __init__(self, name: str, problem: Problem, loops: Loops) -> None:
        self.name, self.problem, self.loops = name, problem, loops
        self.tensors = dict(zip(loops.inputs, problem.inputs, strict=True))
        self.element = {"fp32": "float", "bf16": "bf16", "fp16": "f16"}[problem.dtypes[0]]
        self.wide = problem.dtypes[0] == "fp32"
        self.names: dict[Value, str] = {v: f"{n}_v" for v, n in self.tensors.items()}
        for number, value in enumerate(loops.values):
            self.names[value] = self.names[value.args[0]] if value.op == "copy" else f"v{number}"
        self.kept = loops.worth_keeping() if len(loops.columns) == 1 else []  # in a buffer of each thread
        self.there: set[Value] = set()  # those of them that an earlier sweep has left there
        self.lines: list[str] = []
        self.margin = 0

    def file(self) -> str:
        loops = self.loops
        launch = self._launch()
        used = [h for h in HELPERS if f"{h}(" in launch]
        wanted = {self.problem.dtypes[0], *used, *(n for h in used for n in NEEDS.get(h, ()))}
        first = next(n for v, n in self.tensors.items() if v.dtype.is_floating_point)
        prepared = [
            f"    {n} = {n} if {n}.stride(-1) == 1 else {n}.contiguous()\n"
            for v, n in self.tensors.items()
            if unit_stride(loops, v)
        ]
        sweeps = len(loops.passes()) + loops.by_element(loops.output)
        return FILE.substitute(
            name=self.name,
            rows=" x ".join(a.size for a in loops.rows) or "one",
            columns=" x ".join(a.size for a in loops.columns),
            sweeps={1: "once", 2: "twice"}.get(sweeps, f"{sweeps} times"),
            helpers="\n".join(text for h, text in HELPERS.items() if h in wanted),
            launch=launch,
            arguments=", ".join(self.problem.inputs),
            prepared="".join(prepared),
            shape=shape_of(loops, self.tensors),
            first=first,
        )

    # ------------------------------------------------------------------------------------------ C++

    def _launch(self) -> str:
        loops = self.loops
        views = ", ".join(f"TensorView {n}" for n in (*self.tensors.values(), "out"))
        self._say(0, f"void launch({views}) {{")
        for size, (name, dim) in sources_of(self.tensors).items():
            self._say(1, f"const int64_t {size} = {name}.size({dim});")
        for value, name in (*self.tensors.items(), (loops.output, "out")):
            self._say(1, f"auto* {name}_at = static_cast<{self._stored(value, name)}*>({name}.data_ptr());")
        for stride, expression_of in strides_of(loops, self.tensors):
            self._say(1, f"const int64_t {stride} = {expression_of};")
        rows, columns = (" * ".join(a.size for a in axes) or "1" for axes in (loops.rows, loops.columns))
        many = f"if (({rows}) * ({columns}) > GRAIN)"
        if self.kept:
            self._say(1, f"#pragma omp parallel {many}")
            self._say(1, "{")
            self.margin = 1
            for value in self.kept:
                self._say(1, f"std::vector<float> {self.names[value]}_kept({columns});")
        self._say(
            1,
            "#pragma omp for schedule(SCHEDULE)"
            if self.kept
            else f"#pragma omp parallel for schedule(SCHEDULE) {many}",
        )
        self._say(1, f"for (int64_t row = 0; row < {rows}; ++row) {{")
        self._rows()
        self._say(1, "}")
        if self.kept:
            self._say(0, "}")
            self.margin = 0
        self._say(0, "}")
        return "\n".join(self.lines)

    def _rows(self) -> None:
        loops = self.loops
        left = "row"
        for depth in range(len(loops.rows) - 1, 0, -1):
            size = loops.rows[depth].size
            self._say(2, f"const int64_t i{depth} = {left} % {size};")
            left = f"({left} / {size})" if left == "row" else f"({left[1:-1]} / {size})"
        if loops.rows:
            self._say(2, f"const int64_t i0 = {left.strip('()') if left != 'row' else 'row'};")
        index = {axis: f"i{depth}" for depth, axis in enumerate(loops.rows)}
        for value, name in (*self.tensors.items(), (loops.output, "out")):
            terms = [f"{index[a.root]} * {name}_{d}" for d, a in enumerate(value.axes) if a and a.root in index]
            self._say(2, f"auto* {name}_row = {' + '.join([f'{name}_at', *terms])};")
        ready: set[Value] = set()
        for value, name in self.tensors.items():
            if not loops.by_element(value):
                self._say(
                    2, f"const {c_type(value.dtype)} {self.names[value]} = {self._widened(value, f'*{name}_row')};"
                )
                ready.add(value)
        self._once(ready)
        for reductions in loops.passes():
            self._reduce(reductions)
            ready |= set(reductions)
            self._once(ready)
        if loops.by_element(loops.output):
            self._sweep([loops.output], [])
        else:
            self._say(2, f"*out_row = {self._narrowed(self.names[loops.output])};")

    def _once(self, ready: set[Value]) -> None:
        """The values of a row that can be computed now."""
        for value in self.loops.values:
            if value in ready or value.reduces or self.loops.by_element(value):
                continue
            if all(arg in ready for arg in value.args if isinstance(arg, Value)):
                self._assign(2, value)
                ready.add(value)

    def _reduce(self, reductions: Sequence[Value]) -> None:
        for value in reductions:
            name = self.names[value]
            if value.op == "sum":
                self._say(2, f"double {name}_sum = 0;")
            else:
                start = "-INFINITY" if value.op == "max" else "INFINITY"
                self._say(2, f"float {name}_best = {start};")
                self._say(2, f"int {name}_nan = 0;")
        self._sweep([v.args[0] for v in reductions], reductions)
        for value in reductions:
            name = self.names[value]
            result = f"float({name}_sum)" if value.op == "sum" else f"{name}_nan ? NAN : {name}_best"
            self._say(2, f"const float {name} = {result};")

    def _sweep(self, wanted: Sequence[Value], reductions: Sequence[Value]) -> None:
        """Once over the columns: the values that are wanted, into the reductions, or stored where there are none."""
        loops = self.loops
        inner = loops.columns[-1].size
        index = {axis: f"j{depth}" for depth, axis in enumerate(loops.columns[:-1])} | {loops.columns[-1]: "c"}
        deep = 2
        for depth, axis in enumerate(loops.columns[:-1]):
            self._say(deep, f"for (int64_t j{depth} = 0; j{depth} < {axis.size}; ++j{depth})")
            deep += 1
        sums = [v for v in reductions if v.op == "sum"]
        if sums:
            self._say(deep, f"for (int64_t from = 0; from < {inner}; from += {SUM_PIECE}) {{")
            deep += 1
            self._say(deep, f"const int64_t to = std::min<int64_t>(from + {SUM_PIECE}, {inner});")
            for value in sums:
                self._say(deep, f"float {self.names[value]}_part = 0;")
        clauses = [f" reduction({sign} : {self.names[v]}_{what})" for v in reductions for sign, what in _clauses(v)]
        self._say(deep, f"#pragma omp simd{''.join(clauses)}")
        span = ("from", "to") if sums else ("0", inner)
        self._say(deep, f"for (int64_t c = {span[0]}; c < {span[1]}; ++c) {{")
        for value in loops.needed(wanted, self.there):
            if value in self.tensors:
                self._load(deep + 1, value, index)
            elif value in self.there:
                self._say(deep + 1, f"const float {self.names[value]} = {self.names[value]}_kept[c];")
            elif not value.reduces:
                self._assign(deep + 1, value)
                if value in self.kept:
                    self._say(deep + 1, f"{self.names[value]}_kept[c] = {self.names[value]};")
                    self.there.add(value)
        for value in reductions:
            name, arg = self.names[value], self.names[value.args[0]]
            if value.op == "sum":
                self._say(deep + 1, f"{name}_part += {arg};")
            else:
                sign = ">" if value.op == "max" else "<"
                self._say(deep + 1, f"{name}_best = {arg} {sign} {name}_best ? {arg} : {name}_best;")
                self._say(deep + 1, f"{name}_nan |= {arg} != {arg};")
        if not reductions:
            at = self._at(loops.output, "out", index)
            self._say(deep + 1, f"{at} = {self._narrowed(self.names[loops.output])};")
        self._say(deep, "}")
        if sums:
            for value in sums:
                self._say(deep, f"{self.names[value]}_sum += {self.names[value]}_part;")
            self._say(deep - 1, "}")

    # ------------------------------------------------------------------------------------------ pieces

    def _say(self, depth: int, text: str) -> None:
        self.lines.append("  " * (depth + self.margin) + text)

    def _assign(self, depth: int, value: Value) -> None:
        if value.op == "copy":
            return  # another name for the same
        text = expression(value, self.names, DIALECT)
        self._say(depth, f"const {c_type(value.dtype)} {self.names[value]} = {text};")

    def _load(self, depth: int, value: Value, index: Mapping[Axis, str]) -> None:
        at = self._at(value, self.tensors[value], index)
        self._say(depth, f"const {c_type(value.dtype)} {self.names[value]} = {self._widened(value, at)};")

    def _at(self, value: Value, name: str, index: Mapping[Axis, str]) -> str:
        unit = unit_stride(self.loops, value)
        terms = []
        for dim, axis in enumerate(value.axes):
            if axis is not None and axis.root in index:
                at = index[axis.root]
                terms.append(at if unit and dim == len(value.axes) - 1 else f"{at} * {name}_{dim}")
        return f"{name}_row[{' + '.join(terms) or '0'}]"

    def _stored(self, value: Value, name: str) -> str:
        kind = self.element if value.dtype.is_floating_point else c_type(value.dtype)
        return kind if name == "out" else f"const {kind}"

    def _widened(self, value: Value, text: str) -> str:
        return text if self.wide or not value.dtype.is_floating_point else f"widen({text})"

    def _narrowed(self, text: str) -> str:
        return text if self.wide else f"narrow({text})"


def _clauses(value: Value) -> Iterator[tuple[str, str]]:
    if value.op == "sum":
        yield "+", "part"
    else:
        yield value.op, "best"
        yield "|", "nan"
