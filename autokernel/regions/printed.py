"""A region of a graph as a file that stands for a problem: its own code as readable Python, inputs like its own, costs.

The format is that of an owner's reference (``problems/_from_file.py``), with one thing more: ``GRAPH``, the lines of
the program, by which the region is found again in the model when a kernel was won for it. A region that rounds on the
way says so, for it is judged otherwise near a tie.
"""

from __future__ import annotations

import builtins
import itertools
import keyword
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from autokernel.evaluate.jumps import has_jumps
from autokernel.regions.aten import work
from autokernel.regions.capture import TensorSpec, module_path
from autokernel.regions.program import ordered, program
from autokernel.regions.sizes import PRIMES, Shape, Sizes, factors, find, sized
from autokernel.regions.spell import spelled
from autokernel.regions.values import Values
from autokernel.regions.window import REFUSALS, Window

LETTERS = "xyzuvwabdefghkmnpqrst"
RESERVED = {"torch", "F", "wide", "reference", "make_inputs", *keyword.kwlist, *dir(builtins)}
WIDTH = 110
LONGEST_TITLE = 32
JUMPS = """\
# It rounds on the way. A value that was rounded before may fall to either side of a tie that is as near as its last
# digits; one that is exact may not (in Triton, tl.div_rn divides exactly).
JUMPS = True"""
LEAST_SPREAD = 0.25  # of an input that the model leaves at one value: 1 and 0 would hide a missing product or sum


def printed(window: Window, *, name: str, values: Sequence[Values], model: str) -> str | None:
    """The file of a window's problem; None where it cannot be printed, or has no size that names a workload.

    ``values`` tells what its inputs, in the program's order, look like. Its float inputs are of its output's dtype.
    """
    nodes, inputs = ordered(window.graph, window.output, set(window.nodes))
    specs = [window.graph.specs[n.name] for n in inputs]
    dtype = window.graph.specs[window.output.name].dtype
    code = _code(nodes, inputs, specs, dtype)
    if code is None:
        return None
    arguments, head, lines = code
    reference = _function(head, lines)
    sizes = find(reference, [s.shape for s in specs], [s.dtype for s in specs])
    if not sizes.given:
        return None
    told = ", ".join(f"{a} [{', '.join(map(str, s))}]" for a, s in zip(arguments, sizes.shapes, strict=True))
    graph = "".join(f"    {line!r},\n" for line in program(window.graph, window.output, set(window.nodes)))
    fixed = [window.fixed.get(n.name) for n in inputs]
    parts = [
        _doc(name, window, model),
        "import torch" + ("\nimport torch.nn.functional as F" if any("F." in line for line in lines) else ""),
        f"# What the graph of a model holds where it holds this region.\nGRAPH = (\n{graph})",
        "\n" + _indented(head, [f'"""{told}."""', *lines]),
        "\n" + _make_inputs(arguments, specs, sizes, values, fixed),
    ]
    if rounds(reference, specs):
        parts.insert(3, JUMPS)
    if sizes.free:
        takes = ", ".join(sizes.given)
        parts.append(f"\ndef flops({takes}):\n    return {_flops(reference, specs, sizes)}")
        if all(s.dtype.is_floating_point or s.dtype == torch.bool for s in specs):  # else how much is read is not known
            parts.append(f"\ndef bytes_moved({takes}):\n    return {_bytes(specs, sizes, dtype)}")
    return "\n\n".join(parts) + "\n"


def rounds(function: Callable[..., Any], specs: Sequence[TensorSpec]) -> bool:
    """Whether the judge sees a function of such tensors round on the way. Run without data, where that is possible."""
    for device in ("meta", "cpu"):
        try:
            return has_jumps(function, [torch.zeros(s.shape, dtype=s.dtype, device=device) for s in specs])
        except REFUSALS:
            continue
    return False


def title(window: Window) -> str:
    """A name for the region from what it computes: "add_pow_mean_rsqrt_mul", without repetitions."""
    words: list[str] = []
    for node in ordered(window.graph, window.output, set(window.nodes))[0]:
        target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        word = re.sub(r"\W+", "", str(target).strip("_")).replace("truediv", "div")
        if node.name not in window.graph.free and word not in ("", "to", "float", *words):
            words.append(word)
    while len("_".join(words)) > LONGEST_TITLE and len(words) > 1:
        del words[len(words) // 2]
    return "_".join(words) or "region"


def _code(
    nodes: Sequence[fx.Node], inputs: Sequence[fx.Node], specs: Sequence[TensorSpec], dtype: torch.dtype
) -> tuple[list[str], str, list[str]] | None:
    """The reference's arguments, its ``def`` line and its body."""
    names = _named(inputs, nodes)
    arguments = [names[n] for n in inputs]
    first = next((a for a, s in zip(arguments, specs, strict=True) if s.dtype == dtype), "")
    lines = []
    for node in nodes:
        expression = spelled(node, names, dtype, first)
        if expression is None:
            return None
        lines.append(f"return {expression}" if node is nodes[-1] else f"{names[node]} = {expression}")
    if any(re.search(r"\bwide\b", line) for line in lines):
        lines.insert(0, f"wide = torch.promote_types({first}.dtype, torch.float32)")
    return arguments, f"def reference({', '.join(arguments)}):", lines


def _named(inputs: Sequence[fx.Node], nodes: Sequence[fx.Node]) -> dict[fx.Node, str]:
    """Parameters and buffers keep their names, other inputs are letters, values keep the graph's names."""
    names: dict[fx.Node, str] = {}
    letters = iter(LETTERS)

    def take(node: fx.Node, *wanted: str) -> None:
        taken = RESERVED | set(names.values())
        options = itertools.chain(wanted, (f"{wanted[0]}{i}" for i in itertools.count(2)))
        names[node] = next(name for name in options if name not in taken)

    for node in inputs:
        known = re.search(r"(?:parameters|buffers)_(\w+?)_?$", node.name) if node.op == "placeholder" else None
        take(node, known[1] if known else next(letters, "t"))
    for node in nodes:
        take(node, re.sub(r"_\d+$", "", node.name), node.name)
    return names


def _function(head: str, lines: Sequence[str]) -> Callable[..., Any]:
    scope: dict[str, Any] = {"torch": torch, "F": F}
    exec(compile(_indented(head, lines), "<reference>", "exec"), scope)
    function: Callable[..., Any] = scope["reference"]
    return function


def _make_inputs(
    arguments: Sequence[str],
    specs: Sequence[TensorSpec],
    sizes: Sizes,
    values: Sequence[Values],
    fixed: Sequence[torch.Tensor | None],
) -> str:
    head = f"def make_inputs({', '.join(f'{n}={v}' for n, v in sizes.given.items())}):"
    drawn = [
        f"{a} = {_drawn(shape, spec, look, value)}"
        for a, shape, spec, look, value in zip(arguments, sizes.shapes, specs, values, fixed, strict=True)
    ]
    return _indented(head, [*drawn, f"return [{', '.join(arguments)}]"])


def _drawn(shape: Shape, spec: TensorSpec, look: Values, fixed: torch.Tensor | None) -> str:
    """An expression that draws a tensor like this one; a triangular mask stays one."""
    size = ", ".join(map(str, shape)) or "()"
    if spec.dtype == torch.bool:
        if fixed is not None and len(shape) == 2:
            for corner, diagonal in (("tril", 0), ("tril", -1), ("triu", 0), ("triu", 1)):
                if torch.equal(fixed, getattr(torch.ones_like(fixed), corner)(diagonal)):
                    return f"torch.ones({size}, dtype=torch.bool).{corner}({diagonal or ''})"
        return f"torch.rand({size}) < {min(max(look.mean, 0.05), 0.95):.2g}"
    if not spec.dtype.is_floating_point:
        whole = f"({size},)" if shape else "()"
        return f"torch.randint({int(look.low)}, {int(look.high) + 1}, {whole}, dtype={spec.dtype})"
    dtype = "" if spec.dtype == torch.float32 else f", dtype={spec.dtype}"
    if look.std <= 1e-6 * max(abs(look.mean), 1e-6):
        text = f"torch.rand({size}{dtype}) * {LEAST_SPREAD}{_plus(look.mean)}"
    elif look.low >= 0:
        text = f"torch.rand({size}{dtype}) * {look.high - look.low:.3g}{_plus(look.low)}"
    else:
        spread = f" * {look.std:.2g}" if abs(look.std - 1) > 0.05 else ""
        text = f"torch.randn({size}{dtype}){spread}{_plus(look.mean) if abs(look.mean) > look.std / 10 else ''}"
    if look.masked:
        text = f'({text}).masked_fill(torch.rand({size}) < {look.masked:.2g}, float("-inf"))'
    return text


def _plus(number: float) -> str:
    return f" {'-' if number < 0 else '+'} {abs(number):.3g}" if number else ""


def _flops(reference: Callable[..., Any], specs: Sequence[TensorSpec], sizes: Sizes) -> str:
    """One operation for each element of each value that is computed, as an expression of the sizes."""
    primes = dict(zip(sizes.given, PRIMES, strict=False))
    tensors = [torch.ones(sized(s, primes), dtype=p.dtype) for s, p in zip(sizes.shapes, specs, strict=True)]
    return _sum(Counter(f for f in (factors(n, primes) for n in work(reference, tensors)) if f is not None))


def _bytes(specs: Sequence[TensorSpec], sizes: Sizes, dtype: torch.dtype) -> str:
    """Each input once, and the output."""
    moved: Counter[tuple[str, ...]] = Counter()
    for shape, item in [*zip(sizes.shapes, (s.dtype for s in specs), strict=True), (sizes.output, dtype)]:
        moved[tuple(sorted(s for s in shape if isinstance(s, str)))] += item.itemsize
    return _sum(moved)


def _sum(terms: Mapping[tuple[str, ...], int]) -> str:
    listed = sorted(terms.items(), key=lambda term: (-len(term[0]), term[0]))
    return " + ".join(" * ".join([*([str(n)] if n > 1 or not names else []), *names]) for names, n in listed) or "0"


def _doc(name: str, window: Window, model: str) -> str:
    paths = list(dict.fromkeys(module_path(n) or "the model itself" for n in window.nodes))
    text = (
        f"{name}: {len(window.nodes)} operations of {model} ({', '.join(paths[:3])}) that no built-in problem covers "
        "as a whole.\n\nPrinted from the model's graph; inputs are drawn like those that its forward had."
    )
    return '"""' + "\n".join(textwrap.fill(part, WIDTH) for part in text.split("\n")) + '\n"""'


def _indented(head: str, lines: Sequence[str]) -> str:
    return "\n".join([head, *(f"    {line}" for line in lines)])
