"""Triton from a region's loops: a program holds a tile of whole rows, or sweeps rows that are too long for that.

Where rows are held, every input is read once; where they are swept, what differs by column is computed anew in each
sweep. Without a reduction, tiles divide the columns, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from autokernel.regions.expressions import expression
from autokernel.regions.loops import Axis, Loops, Value
from autokernel.regions.tensors import shape_of, sources_of, strides_of, unit_stride
from autokernel.regions.triton_text import DIALECT, EXACT, FILE, HELPERS
from autokernel.types import Problem

LONGEST = 16384  # columns of a row that a program holds
ROUNDING = frozenset(("round", "floor", "ceil", "trunc", "cast"))


def write(name: str, problem: Problem, loops: Loops, given: Mapping[str, int]) -> str:
    """The kernel file. ``given``: the sizes in the model. Raises NotLoops for what Triton has no function for."""
    return _Writer(name, problem, loops, given).file()


class _Writer:
    def __init__(self, name: str, problem: Problem, loops: Loops, given: Mapping[str, int]) -> None:
        self.name, self.problem, self.loops = name, problem, loops
        self.tensors = dict(zip(loops.inputs, problem.inputs, strict=True))
        self.swept = bool(loops.reductions) and math.prod(given[a.size] for a in loops.columns) > LONGEST
        self.dialect = EXACT if any(v.op in ROUNDING for v in loops.values) else DIALECT
        self.names: dict[Value, str] = {v: f"{n}_v" for v, n in self.tensors.items()}
        for number, value in enumerate(loops.values):
            self.names[value] = self.names[value.args[0]] if value.op == "copy" else f"v{number}"
        self.lines: list[str] = []

    def file(self) -> str:
        loops, tensors = self.loops, self.tensors
        body = self._body()
        strides = strides_of(loops, tensors)
        sources = sources_of(tensors)
        tiled, whole = not loops.reductions, "power_of_2(columns)"
        count = {axes: " * ".join(a.size for a in axes) or "1" for axes in (loops.rows, loops.columns)}
        how = {
            (True, False): "Tiles of rows and columns: nothing is reduced, every byte moves once.",
            (False, False): "A program holds whole rows: every input is read once, and reduced in registers.",
            (False, True): "Rows too long to be held: swept in blocks, and what differs by column is computed again.",
        }[tiled, self.swept]
        return FILE.substitute(
            name=self.name,
            rows=" x ".join(a.size for a in loops.rows) or "one",
            columns=" x ".join(a.size for a in loops.columns),
            how=how,
            tile=4096 if self.swept else 1024,
            helpers="".join(f"{text}\n\n" for h, text in HELPERS.items() if f" {h}(" in body or f"({h}(" in body),
            pointers=", ".join(f"{n}_ptr" for n in tensors.values()),
            sizes=", ".join(sources),
            strides="".join(f"{s}, " for s, _ in strides).rstrip(),
            given="".join(f"{g}, " for _, g in strides).rstrip(),
            body=body,
            arguments=", ".join(self.problem.inputs),
            prepared="".join(f"    {n} = {n} if {n}.stride(-1) == 1 else {n}.contiguous()\n"
                             for v, n in tensors.items() if unit_stride(loops, v)),
            shape=shape_of(loops, tensors),
            first=next(n for v, n in tensors.items() if v.dtype.is_floating_point),
            named="".join(f"    {size} = {n}.shape[{dim}]\n" for size, (n, dim) in sources.items()),
            row_count=count[loops.rows],
            column_count=count[loops.columns],
            block=f"min({whole}, TILE)" if tiled or self.swept else whole,
            grid=f"(cdiv(rows, tile_rows), {'cdiv(columns, block)' if tiled else ''})".replace(" )", ")"),
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------ the kernel

    def _body(self) -> str:
        loops = self.loops
        rows = " * ".join(a.size for a in loops.rows) or "1"
        self._say(1, "# 64-bit offsets: a tensor may have more than 2^31 elements.")
        self._say(1, "row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]")
        self._say(1, f"there = row < {rows}")
        left = "row"
        for depth in range(len(loops.rows) - 1, -1, -1):
            size = loops.rows[depth].size
            self._say(1, f"i{depth} = {left} % {size}" if depth else f"i0 = {left}")
            left = f"{left} // {size}"
        self.index: dict[Axis, str] = {axis: f"i{depth}" for depth, axis in enumerate(loops.rows)}
        ready: set[Value] = set()
        for value in self.tensors:
            if not loops.by_element(value):
                self._load(1, value, "there")
                ready.add(value)
        if self.swept:
            self._sweeps(ready)
            return "\n".join(self.lines)
        start = " + tl.program_id(1) * BLOCK" if not loops.reductions else ""
        self._columns(1, f"(tl.arange(0, BLOCK){start})[None, :]")
        for value in self.tensors:
            if loops.by_element(value):
                self._load(1, value, "inside")
        for value in loops.values:
            if value.reduces:
                self._say(1, f"{self.names[value]} = {self._reduced(value)}")
            else:
                self._assign(1, value)
        self._store(1, "inside" if loops.by_element(loops.output) else "there")
        return "\n".join(self.lines)

    def _sweeps(self, ready: set[Value]) -> None:
        loops = self.loops
        columns = " * ".join(a.size for a in loops.columns)
        self._once(ready)
        for reductions in loops.passes():
            for value in reductions:
                start = {"sum": "0.0", "max": 'float("-inf")', "min": 'float("inf")'}[value.op]
                self._say(1, f"{self.names[value]} = tl.full([ROWS, 1], {start}, tl.float32)")
            self._say(1, f"for start in range(0, {columns}, BLOCK):")
            self._inner([v.args[0] for v in reductions])
            for value in reductions:
                name, part = self.names[value], self._reduced(value)
                joined = f"{name} + {part}" if value.op == "sum" else f"larger({name}, {part})"
                if value.op == "min":
                    joined = f"-larger(-{name}, -{part})"
                self._say(2, f"{name} = {joined}")
            ready |= set(reductions)
            self._once(ready)
        if loops.by_element(loops.output):
            self._say(1, f"for start in range(0, {columns}, BLOCK):")
            self._inner([loops.output])
            self._store(2, "inside")
        else:
            self._store(1, "there")

    def _inner(self, wanted: Sequence[Value]) -> None:
        self._columns(2, "(start + tl.arange(0, BLOCK))[None, :]")
        for value in self.loops.needed(wanted):
            if value in self.tensors:
                self._load(2, value, "inside")
            elif not value.reduces:
                self._assign(2, value)

    def _once(self, ready: set[Value]) -> None:
        for value in self.loops.values:
            if value in ready or value.reduces or self.loops.by_element(value):
                continue
            if all(arg in ready for arg in value.args if isinstance(arg, Value)):
                self._assign(1, value)
                ready.add(value)

    def _columns(self, depth: int, column: str) -> None:
        columns = self.loops.columns
        self._say(depth, f"column = {column}")
        self._say(depth, f"inside = there & (column < {' * '.join(a.size for a in columns)})")
        left = "column"
        for place in range(len(columns) - 1, -1, -1):
            name = "column" if len(columns) == 1 else f"j{place}"
            if len(columns) > 1:
                self._say(depth, f"{name} = {left} % {columns[place].size}" if place else f"{name} = {left}")
                left = f"{left} // {columns[place].size}"
            self.index[columns[place]] = name

    def _reduced(self, value: Value) -> str:
        fill = {"sum": "0.0", "max": 'float("-inf")', "min": 'float("inf")'}[value.op]
        kept = f"tl.where(inside, {self.names[value.args[0]]}, {fill})"
        if value.op == "sum":
            return f"tl.sum({kept}, axis=1, keep_dims=True)"
        return f"row_{value.op}({kept})"

    def _load(self, depth: int, value: Value, mask: str) -> None:
        kept = "" if not value.dtype.is_floating_point else ".to(tl.float32)"
        at = self._at(value, f"{self.tensors[value]}")
        masked = f", mask={mask}, other=0" if any(value.axes) else ""
        self._say(depth, f"{self.names[value]} = tl.load({at}{masked}){kept}")

    def _store(self, depth: int, mask: str) -> None:
        out = self.loops.output
        name = self.names[out]
        self._say(depth, f"tl.store({self._at(out, 'out')}, {name}.to(out_ptr.dtype.element_ty), mask={mask})")

    def _at(self, value: Value, name: str) -> str:
        unit = unit_stride(self.loops, value)
        terms = []
        for dim, axis in enumerate(value.axes):
            if axis is not None:
                at = self.index[axis.root]
                terms.append(at if unit and dim == len(value.axes) - 1 else f"{at} * {name}_{dim}")
        if name == "out" and not terms:
            terms = ["row * 0"]
        return " + ".join([f"{name}_ptr", *terms])

    def _assign(self, depth: int, value: Value) -> None:
        if value.op != "copy":  # another name for the same
            self._say(depth, f"{self.names[value]} = {expression(value, self.names, self.dialect)}")

    def _say(self, depth: int, text: str) -> None:
        self.lines.append("    " * depth + text)
