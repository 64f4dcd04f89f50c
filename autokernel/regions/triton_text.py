"""The Triton of generated starters: how each operation is written, helpers, and the file around them."""

from __future__ import annotations

import dataclasses
import math
import string

import torch

from autokernel.regions.expressions import Dialect
from autokernel.regions.loops import NotLoops

TYPES = {
    torch.bool: "tl.int1", torch.uint8: "tl.uint8", torch.int8: "tl.int8", torch.int16: "tl.int16",
    torch.int32: "tl.int32", torch.int64: "tl.int64",
}  # fmt: skip


def _type(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return "tl.float32"
    if dtype not in TYPES:
        raise NotLoops(f"{dtype} has no type in Triton")
    return TYPES[dtype]


def _number(x: float) -> str:
    return repr(x) if math.isfinite(x) else f'float("{x}")'


DIALECT = Dialect(
    functions={
        "abs": "tl.abs({0})", "exp": "tl.exp({0})", "exp2": "tl.exp2({0})", "expm1": "expm1({0})", "log": "tl.log({0})",
        "log2": "tl.log2({0})", "log1p": "log1p({0})", "sqrt": "tl.sqrt({0})", "rsqrt": "tl.rsqrt({0})",
        "reciprocal": "1.0 / {0}", "sigmoid": "tl.sigmoid({0})", "tanh": "tanh({0})", "erf": "tl.erf({0})",
        "sin": "tl.sin({0})", "cos": "tl.cos({0})", "round": "rounded({0})", "floor": "tl.floor({0})",
        "ceil": "tl.ceil({0})", "trunc": "tl.where({0} < 0, tl.ceil({0}), tl.floor({0}))",
        "sign": "tl.where({0} > 0, 1.0, tl.where({0} < 0, -1.0, 0.0))",
    },
    number=_number,
    cast=lambda text, dtype: f"{text}.to({_type(dtype)})",
    size=lambda text, dtype: f"({text} * 1.0)" if dtype.is_floating_point else f"({text})",
    select="tl.where({0}, {1}, {2})",
    both="(({0}) & ({1}))",
    either="(({0}) | ({1}))",
    negate="(({0}) == 0)",
    divide="{0} / {1}",
)  # fmt: skip
EXACT = dataclasses.replace(DIALECT, divide="tl.div_rn({0}, {1})")  # a rounding after it shows a last digit

HELPERS = {
    "tanh": """\
@triton.jit
def tanh(x):
    t = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - t) / (1.0 + t)
    s = x * x
    near = x * (1.0 - s * (1 / 3 - s * (2 / 15 - s * (17 / 315 - s * (62 / 2835)))))  # a small x keeps its digits
    return tl.where(tl.abs(x) < 0.25, near, tl.where(x < 0, -far, far))
""",
    "expm1": """\
@triton.jit
def expm1(x):
    # A small x keeps its digits.
    near = x * (1.0 + x / 2 * (1.0 + x / 3 * (1.0 + x / 4 * (1.0 + x / 5 * (1.0 + x / 6)))))
    return tl.where(tl.abs(x) < 0.25, near, tl.exp(x) - 1.0)
""",
    "log1p": """\
@triton.jit
def log1p(x):
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.where(u == float("inf"), u, tl.log(u) * (x / (u - 1.0))))
""",
    "rounded": """\
@triton.jit
def rounded(x):
    shifted = (tl.abs(x) + 8388608.0) - 8388608.0  # 2^23: to nearest, ties to even
    return tl.where(tl.abs(x) < 8388608.0, tl.where(x < 0, -shifted, shifted), x)
""",
    "row_max": """\
@triton.jit
def row_max(x):  # NaN where one is
    missing = tl.sum(tl.where(x != x, 1, 0), axis=1, keep_dims=True)
    return tl.where(missing > 0, float("nan"), tl.max(x, axis=1, keep_dims=True))
""",
    "row_min": """\
@triton.jit
def row_min(x):  # NaN where one is
    missing = tl.sum(tl.where(x != x, 1, 0), axis=1, keep_dims=True)
    return tl.where(missing > 0, float("nan"), tl.min(x, axis=1, keep_dims=True))
""",
    "larger": """\
@triton.jit
def larger(a, b):  # NaN where one is
    return tl.where((a > b) | (a != a), a, b)
""",
}

FILE = string.Template('''\
"""$name, Triton: written from the operations of the model's graph.

Rows: $rows; columns: $columns. $how
Everything in between is in float32.
"""

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "$name"
BACKEND = "triton"

PER_THREAD = 16  # tune: 4, 8, 16, 32, 64 | elements of a tile that one thread holds
TILE = $tile  # tune: 512, 1024, 2048, 4096, 8192 | elements of a tile, at least a row where rows are held


$helpers@triton.jit
def region_kernel(
    $pointers, out_ptr,
    $sizes,
    $strides
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
$body


def cdiv(n, block):
    """How many blocks hold n."""
    return -(-n // block)


def power_of_2(n):
    """The least power of two that is not less than n."""
    return 1 << (n - 1).bit_length()


def kernel_fn($arguments):
$prepared    out = torch.empty($shape, dtype=$first.dtype, device=$first.device)
    if out.numel() == 0:
        return out
$named    rows, columns = $row_count, $column_count
    block = $block
    tile_rows = max(1, min(TILE // block, power_of_2(rows)))
    warps = max(1, min(16, tile_rows * block // (32 * PER_THREAD)))
    region_kernel[$grid](
        $arguments, out,
        $sizes,
        $given
        ROWS=tile_rows, BLOCK=block, num_warps=warps,
    )  # fmt: skip
    return out
''')
