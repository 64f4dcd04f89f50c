"""The operations of a region's loops as expressions of a language; what differs between languages is a ``Dialect``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from autokernel.regions.loops import Count, NotLoops, Value

COMPARES = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
INFIX = {"add": "+", "sub": "-", "mul": "*"}
LOGIC = {"logical_and": "and", "bitwise_and": "and", "logical_or": "or", "bitwise_or": "or"}
MOST_FACTORS = 4  # a power of a whole number up to this is written as products


@dataclasses.dataclass(frozen=True)
class Dialect:
    """``functions`` maps an operation to the template of its call ("std::sqrt({0})"); ``number`` writes a float,
    ``cast(text, dtype)`` converts a value and ``size`` a size or a product of sizes; ``select`` is the template of a
    choice, ``both`` and ``either`` of two truths.
    """

    functions: Mapping[str, str]
    number: Callable[[float], str]
    cast: Callable[[str, torch.dtype], str]
    size: Callable[[str, torch.dtype], str]
    select: str
    both: str
    either: str
    negate: str
    divide: str


def expression(value: Value, names: Mapping[Value, str], dialect: Dialect) -> str:
    """What a value is, given the names of its arguments. Whatever is a float in the region is a float32 here.

    Raises NotLoops for an operation that the language lacks.
    """
    op = value.op

    def operand(arg: Any, dtype: torch.dtype) -> str:
        if isinstance(arg, Value):
            return names[arg] if _same(arg.dtype, dtype) else dialect.cast(names[arg], dtype)
        return _literal(arg, dtype, dialect)

    def all_as(dtype: torch.dtype) -> list[str]:
        return [operand(arg, dtype) for arg in value.args]

    if op == "copy":
        return names[value.args[0]]
    if op in ("cast", "number"):
        return operand(value.args[0], value.dtype)
    if op in COMPARES:
        left, right = all_as(_meeting(value.args))
        return f"{left} {COMPARES[op]} {right}"
    if op in LOGIC or op in ("logical_not", "bitwise_not"):
        if value.dtype != torch.bool:
            raise NotLoops(f"{op} of whole numbers")
        texts = all_as(torch.bool)
        template = dialect.negate if len(texts) == 1 else dialect.both if LOGIC[op] == "and" else dialect.either
        return template.format(*texts)
    if op == "where":
        condition = operand(value.args[0], torch.bool)
        return dialect.select.format(condition, *(operand(a, value.dtype) for a in value.args[1:]))
    if op in ("isnan", "isinf"):
        x = operand(value.args[0], torch.float32)
        return f"{x} != {x}" if op == "isnan" else f"{dialect.functions['abs'].format(x)} == {dialect.number(math.inf)}"
    if op == "clamp":
        return _clamp(value, operand, dialect)
    if op == "pow":
        return _pow(value, operand, dialect)
    texts = all_as(value.dtype)
    if op in INFIX:
        return f"{texts[0]} {INFIX[op]} {texts[1]}"
    if not value.dtype.is_floating_point and op not in ("abs", "neg", "maximum", "minimum", "relu"):
        raise NotLoops(f"{op} of whole numbers")
    if op == "div":
        return dialect.divide.format(*texts)
    if op == "neg":
        return f"-{texts[0]}"
    if op == "square":
        return f"{texts[0]} * {texts[0]}"
    if op == "relu":
        texts.append(operand(0, value.dtype))
    if op in ("maximum", "minimum", "relu"):
        return _extreme("<" if op == "minimum" else ">", texts[0], texts[1], dialect)
    if op not in dialect.functions:
        raise NotLoops(f"{op} has no name in this language")
    return dialect.functions[op].format(*texts)


def _extreme(sign: str, a: str, b: str, dialect: Dialect) -> str:
    """The larger or smaller of two; NaN where one is."""
    wins = dialect.either.format(f"{a} {sign} {b}", f"{a} != {a}")
    return dialect.select.format(wins, a, b)


def _clamp(value: Value, operand: Callable[[Any, torch.dtype], str], dialect: Dialect) -> str:
    text = operand(value.args[0], value.dtype)
    for bound, sign in zip(value.args[1:], "<>", strict=False):
        if bound is not None:
            limit = operand(bound, value.dtype)
            text = dialect.select.format(f"{text} {sign} {limit}", limit, text)
    return text


def _pow(value: Value, operand: Callable[[Any, torch.dtype], str], dialect: Dialect) -> str:
    base, exponent = value.args
    if isinstance(base, Value) and isinstance(exponent, (int, float)) and value.dtype.is_floating_point:
        x = operand(base, value.dtype)
        if exponent == int(exponent) and 1 <= abs(exponent) <= MOST_FACTORS:
            product = " * ".join([x] * int(abs(exponent)))
            return product if exponent > 0 else dialect.divide.format(dialect.number(1.0), f"({product})")
        if exponent in (0.5, -0.5):
            return dialect.functions["sqrt" if exponent > 0 else "rsqrt"].format(x)
    if "pow" in dialect.functions and value.dtype.is_floating_point:
        return dialect.functions["pow"].format(operand(base, value.dtype), operand(exponent, value.dtype))
    raise NotLoops("a power that is no product")


def _literal(number: Any, dtype: torch.dtype, dialect: Dialect) -> str:
    if isinstance(number, Count):
        return dialect.size(" * ".join(number.sizes) or "1", dtype)
    if dtype.is_floating_point:
        return dialect.number(float(number))
    if dtype == torch.bool:
        return dialect.size(str(int(number)), dtype)
    if number != int(number):
        raise NotLoops("a fraction among whole numbers")
    return str(int(number))


def _same(a: torch.dtype, b: torch.dtype) -> bool:
    return a == b or (a.is_floating_point and b.is_floating_point)


def _meeting(args: tuple[Any, ...]) -> torch.dtype:
    """The type in which two numbers are compared."""
    if any(a.dtype.is_floating_point if isinstance(a, Value) else isinstance(a, float) for a in args):
        return torch.float32
    return next(a.dtype for a in args if isinstance(a, Value))
