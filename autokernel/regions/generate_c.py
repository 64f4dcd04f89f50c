"""What the C++ and the CUDA generator write alike: where a row lies, loads, and the values of a row or of a column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autokernel.regions.cpp_text import DIALECT, c_type
from autokernel.regions.expressions import Dialect, expression
from autokernel.regions.loops import Axis, Loops, Value
from autokernel.regions.tensors import shape_of, unit_stride
from autokernel.types import Problem


class Writer:
    """``element`` is the C++ type of the problem's floats; ``narrow`` is the function that rounds a float32 to it, None
    where it is one. ``lines`` is what was written. Methods raise NotLoops for what C++ has no word for.
    """

    dialect: Dialect = DIALECT

    def __init__(self, name: str, problem: Problem, loops: Loops, element: str, narrow: str | None) -> None:
        self.name, self.problem, self.loops = name, problem, loops
        self.element, self.narrow = element, narrow
        self.tensors = dict(zip(loops.inputs, problem.inputs, strict=True))
        self.names: dict[Value, str] = {v: f"{n}_v" for v, n in self.tensors.items()}
        for number, value in enumerate(loops.values):
            self.names[value] = self.names[value.args[0]] if value.op == "copy" else f"v{number}"
        self.lines: list[str] = []
        self.margin = 0

    def python(self) -> dict[str, str]:
        """What the file around the source is told."""
        loops, tensors = self.loops, self.tensors
        sweeps = len(loops.passes()) + loops.by_element(loops.output)
        prepared = [
            f"    {n} = {n} if {n}.stride(-1) == 1 else {n}.contiguous()\n"
            for v, n in tensors.items()
            if unit_stride(loops, v)
        ]
        return {
            "name": self.name,
            "rows": " x ".join(a.size for a in loops.rows) or "one",
            "columns": " x ".join(a.size for a in loops.columns),
            "sweeps": {1: "once", 2: "twice"}.get(sweeps, f"{sweeps} times"),
            "arguments": ", ".join(self.problem.inputs),
            "prepared": "".join(prepared),
            "shape": shape_of(loops, tensors),
            "first": next(n for v, n in tensors.items() if v.dtype.is_floating_point),
        }

    # ------------------------------------------------------------------------------------------ a row

    def begin_row(self, depth: int) -> set[Value]:
        """From ``row`` its indices, the start of every tensor's row, and the values that a row has from the start:
        these are what is returned.
        """
        loops = self.loops
        index = self.unravel(depth, "row", "i", loops.rows)
        for value, name in (*self.tensors.items(), (loops.output, "out")):
            terms = [f"{index[a.root]} * {name}_{d}" for d, a in enumerate(value.axes) if a and a.root in index]
            self.say(depth, f"auto* {name}_row = {' + '.join([f'{name}_at', *terms])};")
        ready = set()
        for value, name in self.tensors.items():
            if not loops.by_element(value):
                text = self.widened(value, f"*{name}_row")
                self.say(depth, f"const {c_type(value.dtype)} {self.names[value]} = {text};")
                ready.add(value)
        self.once(depth, ready)
        return ready

    def unravel(self, depth: int, flat: str, letter: str, axes: Sequence[Axis]) -> dict[Axis, str]:
        """The indices along each axis of a flat index, by division."""
        left = flat
        for place in range(len(axes) - 1, 0, -1):
            size = axes[place].size
            self.say(depth, f"const int64_t {letter}{place} = {left} % {size};")
            left = f"({left} / {size})" if left == flat else f"({left[1:-1]} / {size})"
        if axes:
            self.say(depth, f"const int64_t {letter}0 = {left.strip('()')};")
        return {axis: f"{letter}{place}" for place, axis in enumerate(axes)}

    def once(self, depth: int, ready: set[Value]) -> None:
        """The values of a row that can be computed now."""
        for value in self.loops.values:
            if value in ready or value.reduces or self.loops.by_element(value):
                continue
            if all(arg in ready for arg in value.args if isinstance(arg, Value)):
                self.assign(depth, value)
                ready.add(value)

    # ------------------------------------------------------------------------------------------ pieces

    def say(self, depth: int, text: str) -> None:
        self.lines.append("  " * (depth + self.margin) + text)

    def assign(self, depth: int, value: Value) -> None:
        if value.op == "copy":
            return  # another name for the same
        text = expression(value, self.names, self.dialect)
        self.say(depth, f"const {c_type(value.dtype)} {self.names[value]} = {text};")

    def load(self, depth: int, value: Value, index: Mapping[Axis, str]) -> None:
        text = self.widened(value, self.at(value, self.tensors[value], index))
        self.say(depth, f"const {c_type(value.dtype)} {self.names[value]} = {text};")

    def at(self, value: Value, name: str, index: Mapping[Axis, str]) -> str:
        """The element of a row at these indices of the columns."""
        unit = unit_stride(self.loops, value)
        terms = []
        for dim, axis in enumerate(value.axes):
            if axis is not None and axis.root in index:
                at = index[axis.root]
                terms.append(at if unit and dim == len(value.axes) - 1 else f"{at} * {name}_{dim}")
        return f"{name}_row[{' + '.join(terms) or '0'}]"

    def stored(self, value: Value, name: str) -> str:
        """The type of a tensor's elements, const but for the output's."""
        kind = self.element if value.dtype.is_floating_point else c_type(value.dtype)
        return kind if name == "out" else f"const {kind}"

    def widened(self, value: Value, text: str) -> str:
        return text if self.narrow is None or not value.dtype.is_floating_point else f"widen({text})"

    def narrowed(self, text: str) -> str:
        return text if self.narrow is None else f"{self.narrow}({text})"
