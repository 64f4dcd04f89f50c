"""A region as loops: rows, and columns along which it reduces; what each value is, in terms of values before it.

The region's function is traced twice, at two sets of sizes, so that numbers that follow from sizes (the divisor of a
mean) are told from those that the code says. Whatever does not fit (two reductions over different dimensions, a
gather, a reshape that merges dimensions) raises NotLoops: such a region stays plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from autokernel.regions.aten import name_of, traced
from autokernel.regions.loops import Axis, Count, Loops, NotLoops, Value
from autokernel.regions.sizes import PRIMES, Sizes, factors, sized
from autokernel.regions.window import REFUSALS

REDUCTIONS = {"sum": "sum", "amax": "max", "amin": "min", "mean": "mean", "var": "var"}
COPIES = frozenset("clone alias detach lift_fresh_copy expand broadcast_in_dim _to_copy convert_element_type".split())
POINTWISE = frozenset(
    "add sub mul div neg abs exp exp2 expm1 log log2 log1p sqrt rsqrt reciprocal sigmoid tanh erf sin cos round floor "
    "ceil trunc sign relu pow maximum minimum clamp where eq ne lt le gt ge logical_not bitwise_not logical_and "
    "bitwise_and logical_or bitwise_or isnan isinf square".split()
)


def lower(function: Callable[..., Any], sizes: Sizes, dtypes: Sequence[torch.dtype]) -> Loops:
    """Raises NotLoops."""
    if not sizes.free:
        raise NotLoops("sizes are written in the code")
    count = len(sizes.given)
    graphs = []
    assignments = [dict(zip(sizes.given, some, strict=False)) for some in (PRIMES[:count], PRIMES[count : 2 * count])]
    if len(assignments[1]) < count:
        raise NotLoops("too many sizes")
    for primes in assignments:
        tensors = [torch.ones(sized(s, primes), dtype=d) for s, d in zip(sizes.shapes, dtypes, strict=True)]
        try:
            graphs.append(list(traced(function, tensors).nodes))
        except REFUSALS as error:
            raise NotLoops(f"it cannot be traced: {error}") from error
    if [n.target for n in graphs[0]] != [n.target for n in graphs[1]]:
        raise NotLoops("what it does depends on sizes")
    return _Lowering(sizes, assignments, graphs[1]).run(graphs[0])


class _Lowering:
    def __init__(self, sizes: Sizes, assignments: Sequence[dict[str, int]], other: Sequence[fx.Node]) -> None:
        self.sizes, self.assignments, self.other = sizes, assignments, other
        self.known: dict[fx.Node, Value] = {}
        self.values: list[Value] = []
        self.reduced: list[list[Axis]] = []

    def run(self, nodes: Sequence[fx.Node]) -> Loops:
        shapes = iter(self.sizes.shapes)
        inputs: list[Value] = []
        for position, node in enumerate(nodes):
            if node.op == "placeholder":
                axes = [Axis(s) if isinstance(s, str) else None for s in next(shapes)]
                self.known[node] = Value("input", (), node.meta["val"].dtype, axes)
                inputs.append(self.known[node])
            elif node.op == "call_function":
                self.known[node] = self._node(node, self.other[position])
            elif node.op == "output":
                return self._loops(inputs, self.known[node.all_input_nodes[0]])
        raise NotLoops("there is no output")

    def _loops(self, inputs: Sequence[Value], output: Value) -> Loops:
        if output in inputs:  # a cast that changes nothing
            output = self._add(Value("copy", (output,), output.dtype, output.axes))
        if not self.values or self.values[-1] is not output:
            raise NotLoops("the output is not the last value")
        own = [a.root for a in output.axes if a is not None]
        sets = {frozenset(a.root for a in axes) for axes in self.reduced}
        if len(sets) > 1:
            raise NotLoops("reductions over different dimensions")
        if sets:
            columns = tuple(dict.fromkeys(a.root for a in self.reduced[0]))
        elif own:
            columns = (own[-1],)
        else:
            raise NotLoops("there is nothing to loop over")
        for value in (*inputs, *self.values):
            roots = [a.root for a in value.axes if a is not None]
            if len(set(roots)) < len(roots):
                raise NotLoops("a dimension meets itself")
            if not value.reduces and not set(roots) <= {*own, *columns}:
                raise NotLoops("a dimension is neither reduced nor in the output")
        rows = tuple(a for a in own if a not in columns)
        loops = Loops(tuple(inputs), tuple(self.values), rows, columns)
        for axis in (*rows, *columns):
            _ = axis.size
        return loops

    # ------------------------------------------------------------------------------------------ one operation

    def _node(self, node: fx.Node, other: fx.Node) -> Value:
        name = name_of(node)
        if not isinstance(node.meta.get("val"), torch.Tensor):
            raise NotLoops(f"{name} gives no tensor")
        args = [self._operand(a, b) for a, b in zip(node.args, other.args, strict=True)]
        if name == "add_" and len(node.args[0].users) == 1:  # type: ignore[union-attr]
            name = "add"
        if name in REDUCTIONS:
            return self._reduction(REDUCTIONS[name], node, args)
        if name in ("unsqueeze", "squeeze", "view", "reshape", "_unsafe_view", "permute", "transpose", "t"):
            return self._view(name, node, args)
        if name in ("expand", "broadcast_in_dim"):
            return self._expand(name, node, args)
        if name in ("scalar_tensor", "full"):
            number = args[1] if name == "full" else args[0]
            if node.meta["val"].dim():
                raise NotLoops("a tensor of one number")
            return self._add(Value("number", (number,), node.meta["val"].dtype, []))
        if name in COPIES:
            value = args[0]
            if value.dtype == node.meta["val"].dtype:
                return self._add(Value("copy", (value,), value.dtype, value.axes))
            return self._add(Value("cast", (value,), node.meta["val"].dtype, value.axes))
        if name not in POINTWISE:
            raise NotLoops(f"{name} is no loop")
        return self._pointwise(name, node, args)

    def _add(self, value: Value) -> Value:
        self.values.append(value)
        return value

    def _operand(self, mine: Any, theirs: Any) -> Any:
        """A value, or a number: a Count where it follows from the sizes."""
        if isinstance(mine, fx.Node):
            return self.known[mine]
        if isinstance(mine, (int, float)) and mine != theirs and not (mine != mine and theirs != theirs):
            first = factors(int(mine), self.assignments[0]) if mine == int(mine) else None
            second = factors(int(theirs), self.assignments[1]) if theirs == int(theirs) else None
            if first is None or first != second:
                raise NotLoops("a number that follows from sizes")
            return Count(first)
        return mine

    def _pointwise(self, name: str, node: fx.Node, args: list[Any]) -> Value:
        kwargs = dict(node.kwargs)
        alpha = kwargs.pop("alpha", 1)
        if kwargs.pop("rounding_mode", None) is not None or any(v is not None for v in kwargs.values()):
            raise NotLoops(f"{name} with {', '.join(kwargs) or 'a rounding mode'}")
        dtype = node.meta["val"].dtype
        if name == "round" and len(args) > 1:
            raise NotLoops("round to decimals")
        if alpha != 1:
            args[1] = self._scaled(args[1], alpha)
        rank = node.meta["val"].dim()
        axes: list[Axis | None] = [None] * rank
        for value in args:
            if isinstance(value, Value):
                for place, axis in enumerate(reversed(value.axes)):
                    mine = axes[rank - 1 - place]
                    if axis is not None and mine is not None:
                        mine.unite(axis)
                    axes[rank - 1 - place] = mine or axis
        return self._add(Value(name, tuple(args), dtype, axes))

    def _scaled(self, value: Any, alpha: Any) -> Any:
        if isinstance(value, Value):
            return self._add(Value("mul", (value, alpha), value.dtype, value.axes))
        return value * alpha

    def _reduction(self, kind: str, node: fx.Node, args: list[Any]) -> Value:
        value: Value = args[0]
        rank = len(value.axes)
        given: Any = node.args[1] if len(node.args) > 1 else None
        dims = [int(d) % rank for d in given] if given else list(range(rank))
        names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
        said = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        keep = bool(said.get("keepdim", False))
        axes = [value.axes[d] for d in dims]
        gone = [a for a in axes if a is not None]
        left = [None if d in dims else a for d, a in enumerate(value.axes) if keep or d not in dims]
        dtype = node.meta["val"].dtype
        if not gone:
            raise NotLoops("a reduction over nothing")
        if not value.dtype.is_floating_point or not dtype.is_floating_point:
            raise NotLoops("a reduction of whole numbers")
        count = Count(tuple(sorted(a.size for a in gone)))
        self.reduced.append(gone)

        def reduce(op: str, of: Value) -> Value:
            return self._add(Value(op, (of,), dtype, left))

        if kind in ("sum", "max", "min"):
            return reduce(kind, value)
        mean = self._add(Value("div", (reduce("sum", value), count), dtype, left))
        if kind == "mean":
            return mean
        correction = said.get("correction", 1)
        wide = [None if d in dims else a for d, a in enumerate(value.axes)]
        kept = self._add(Value("copy", (mean,), dtype, wide))
        apart = self._add(Value("sub", (value, kept), dtype, value.axes))
        squares = reduce("sum", self._add(Value("mul", (apart, apart), dtype, value.axes)))
        free = self._add(
            Value("sub", (self._add(Value("number", (count,), dtype, [])), float(correction or 0)), dtype, [])
        )
        return self._add(Value("div", (squares, free), dtype, left))

    def _view(self, name: str, node: fx.Node, args: list[Any]) -> Value:
        """Views that drop or add dimensions of size 1, or put dimensions in another order."""
        value: Value = args[0]
        if name == "permute":
            axes = [value.axes[d] for d in node.args[1]]  # type: ignore[union-attr, index]
        elif name in ("transpose", "t"):
            a, b = (node.args[1], node.args[2]) if name == "transpose" else (0, 1)
            order = list(range(len(value.axes)))
            order[a], order[b] = order[b], order[a]  # type: ignore[index]
            axes = [value.axes[d] for d in order]
        else:
            before = [s for s in node.args[0].meta["val"].shape if s != 1]  # type: ignore[union-attr]
            after = node.meta["val"].shape
            if before != [s for s in after if s != 1]:
                raise NotLoops("a view that merges or splits dimensions")
            left = iter([a for a, s in zip(value.axes, node.args[0].meta["val"].shape, strict=True) if s != 1])  # type: ignore[union-attr]
            axes = [next(left) if s != 1 else None for s in after]
        return self._add(Value("copy", (value,), value.dtype, axes))

    def _expand(self, name: str, node: fx.Node, args: list[Any]) -> Value:
        value: Value = args[0]
        shape = node.meta["val"].shape
        if name == "expand":
            lead: list[Axis | None] = [None] * (len(shape) - len(value.axes))
            axes = lead + list(value.axes)
        else:
            axes = [None] * len(shape)
            for dim, axis in zip(node.args[2], value.axes, strict=True):  # type: ignore[arg-type]
                axes[dim] = axis
        back = {prime: name for name, prime in self.assignments[0].items()}
        grown = [Axis(back.get(s)) if a is None and s != 1 else a for a, s in zip(axes, shape, strict=True)]
        return self._add(Value("copy", (value,), value.dtype, grown))
