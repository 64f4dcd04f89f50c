"""How the tensors of a region's loops lie in memory, as a generated file's Python side sees them."""

from __future__ import annotations

from collections.abc import Mapping

from autokernel.regions.loops import Loops, Value


def sources_of(tensors: Mapping[Value, str]) -> dict[str, tuple[str, int]]:
    """For each size, an input and its dimension that tell it."""
    found: dict[str, tuple[str, int]] = {}
    for value, name in tensors.items():
        for dim, axis in enumerate(value.axes):
            if axis is not None:
                found.setdefault(axis.size, (name, dim))
    return found


def shape_of(loops: Loops, tensors: Mapping[Value, str]) -> str:
    """The output's shape."""
    sources = sources_of(tensors)

    def size(name: str, dim: int) -> str:
        return f"{name}.shape[{dim}]"

    sizes = ["1" if a is None else size(*sources[a.size]) for a in loops.output.axes]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def unit_stride(loops: Loops, value: Value) -> bool:
    """Whether the columns of this tensor lie one after the other: the generated file sees to it."""
    last = value.axes[-1] if value.axes else None
    return last is not None and last.root is loops.columns[-1]


def strides_of(loops: Loops, tensors: Mapping[Value, str]) -> list[tuple[str, str]]:
    """(name, expression) of each stride that a kernel has to be told, the output's last."""
    found = []
    for value, name in (*tensors.items(), (loops.output, "out")):
        for dim, axis in enumerate(value.axes):
            if axis is not None and not (unit_stride(loops, value) and dim == len(value.axes) - 1):
                found.append((f"{name}_{dim}", f"{name}.stride({dim})"))
    return found
