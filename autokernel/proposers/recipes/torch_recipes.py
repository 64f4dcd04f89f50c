"""Recipes for plain PyTorch in a file."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable

from autokernel.extension import Brief
from autokernel.proposers._tune import span
from autokernel.proposers.recipes import Recipe

# KERNEL_TYPE -> one expression over the signature's names that is a single library call
_LIBRARY = {
    "matmul": "torch.matmul(A, B)",
    "softmax": "torch.softmax(x, dim=-1)",
    "layernorm": "torch.nn.functional.layer_norm(x, weight.shape, weight, bias, eps)",
    "rmsnorm": "torch.nn.functional.rms_norm(x, weight.shape, weight, eps)",
    "cross_entropy": "torch.nn.functional.cross_entropy(logits, targets)",
    "flash_attention": "torch.nn.functional.scaled_dot_product_attention("
    "Q, K, V, is_causal=causal, scale=sm_scale, enable_gqa=Q.shape[1] != K.shape[1])",
    "reduce": "torch.sum(x, dim)",
}


def library_call(source: str, brief: Brief) -> str | None:
    """The body of ``kernel_fn`` becomes the library's own call, where its arguments are those of the signature."""
    expression = _LIBRARY.get(brief.target.problem)
    function = _kernel_fn(source)
    if expression is None or function is None:
        return None
    names = {node.id for node in ast.walk(ast.parse(expression)) if isinstance(node, ast.Name)} - {"torch"}
    if not names <= {argument.arg for argument in function.args.args} or expression in source:
        return None
    lines = source.split("\n")
    first, last = function.body[0].lineno - 1, function.end_lineno or function.lineno
    return "\n".join([*lines[:first], f"    return {expression}", *lines[last:]])


def compiled(source: str, brief: Brief) -> str | None:
    del brief
    function = _kernel_fn(source)
    if function is None or function.decorator_list:
        return None
    lines = source.split("\n")
    lines.insert(function.lineno - 1, "@torch.compile(dynamic=True)")
    return "\n".join(lines)


def rewritten(pattern: str, replacement: str) -> Callable[[str, Brief], str | None]:
    def apply(source: str, brief: Brief) -> str | None:
        del brief
        edited = re.sub(pattern, replacement, source)
        return None if edited == source else edited

    return apply


def in_place(source: str, brief: Brief) -> str | None:
    """A product or sum that is taken of a fresh intermediate, named once and used once more, overwrites it."""
    del brief
    function = _kernel_fn(source)
    if function is None:
        return None
    fresh = {
        node.targets[0].id
        for node in function.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.BinOp)
    }
    for node in ast.walk(function):
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mult, ast.Add)) and isinstance(node.left, ast.Name):
            name = node.left.id
            uses = sum(isinstance(n, ast.Name) and n.id == name for n in ast.walk(function))
            if name in fresh and uses == 2:
                start, end = span(source, node)
                data, method = source.encode(), "mul_" if isinstance(node.op, ast.Mult) else "add_"
                right = data[slice(*span(source, node.right))].decode()
                return (data[:start] + f"{name}.{method}({right})".encode() + data[end:]).decode()
    return None


def _kernel_fn(source: str) -> ast.FunctionDef | None:
    found = (n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == "kernel_fn")
    return next(found, None)


_square = rewritten(r"\.pow\(2\)", ".square()")
_rsqrt = rewritten(r"\b1(?:\.0)? / torch\.sqrt\(", "torch.rsqrt(")

RECIPES = (
    Recipe("library call", "one fused operator of the library in place of several", 5.0, library_call),
    Recipe("square", "x.square() reads x once; x.pow(2) takes the general power", 4.0, _square),
    Recipe("rsqrt", "one operator in place of a root and a division", 3.5, _rsqrt),
    Recipe("in place", "an intermediate that nobody needs again is overwritten: one allocation less", 3.0, in_place),
    Recipe("compiled", "torch.compile fuses what is left into few loops", 1.0, compiled),
)  # fmt: skip
