"""The C++ of generated starters: how each operation is written, helpers that vectorise, and the file around them."""

from __future__ import annotations

import math
import string

import torch

from autokernel.regions.expressions import Dialect
from autokernel.regions.loops import NotLoops

C_TYPES = {
    torch.bool: "bool", torch.uint8: "uint8_t", torch.int8: "int8_t", torch.int16: "int16_t", torch.int32: "int32_t",
    torch.int64: "int64_t",
}  # fmt: skip
SUM_PIECE = 1024  # columns that are summed in float32
TENSORS = {"fp32": "", "bf16": "bf16", "fp16": "f16"}


def c_type(dtype: torch.dtype) -> str:
    if dtype.is_floating_point:
        return "float"
    if dtype not in C_TYPES:
        raise NotLoops(f"{dtype} has no type in C++")
    return C_TYPES[dtype]


def _number(x: float) -> str:
    if x != x:
        return "NAN"
    if math.isinf(x):
        return "INFINITY" if x > 0 else "-INFINITY"
    return f"{x!r}f"


DIALECT = Dialect(
    functions={
        "abs": "std::abs({0})", "exp": "exponential({0})", "exp2": "std::exp2({0})",
        "expm1": "exponential_minus_1({0})",
        "log": "std::log({0})", "log2": "std::log2({0})", "log1p": "std::log1p({0})", "sqrt": "std::sqrt({0})",
        "rsqrt": "1.0f / std::sqrt({0})", "reciprocal": "1.0f / {0}", "sigmoid": "1.0f / (1.0f + exponential(-{0}))",
        "tanh": "hyperbolic_tangent({0})", "erf": "error_function({0})", "sin": "std::sin({0})", "cos": "std::cos({0})",
        "round": "std::nearbyint({0})", "floor": "std::floor({0})", "ceil": "std::ceil({0})",
        "trunc": "std::trunc({0})", "sign": "float(({0} > 0.0f) - ({0} < 0.0f))", "pow": "std::pow({0}, {1})",
    },
    number=_number,
    cast=lambda text, dtype: f"{c_type(dtype)}({text})",
    size=lambda text, dtype: f"{c_type(dtype)}({text})",
    select="({0} ? {1} : {2})",
    both="({0} && {1})",
    either="({0} || {1})",
    negate="!({0})",
    divide="{0} / {1}",
)  # fmt: skip

HELPERS = {
    "bf16": """\
enum class bf16 : uint16_t {};
inline float widen(bf16 v) { const uint32_t u = uint32_t(v) << 16; float f; std::memcpy(&f, &u, 4); return f; }
inline bf16 narrow(float v) {  // round to nearest, ties to even; a NaN stays one
  uint32_t u;
  std::memcpy(&u, &v, 4);
  return bf16(v != v ? 0x7fc0 : (u + 0x7fff + (u >> 16 & 1)) >> 16);
}
""",
    "fp16": """\
using f16 = _Float16;
inline float widen(f16 v) { return float(v); }
inline f16 narrow(float v) { return f16(v); }
""",
    "reduced": """\
// x = n ln 2 + r with |r| <= ln 2 / 2: exp(r) - 1 by its Taylor polynomial, and 2^n from its bits. Written so that it
// vectorises. Beyond float32's normal range exp gives 0 or infinity; a NaN stays one.
struct Reduced { float less_1, scale; };
inline Reduced reduced(float x) {
  const float clamped = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  const float n = std::nearbyint(clamped * 1.44269504f);
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts: no digit of r is lost
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r * r + r;
  const uint32_t bits = uint32_t(int32_t(n) + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, 4);
  return {p, scale};
}
""",
    "exponential_minus_1": """\
inline float exponential_minus_1(float x) {  // a small x keeps all its digits
  const Reduced e = reduced(x);
  return x > 88.7f ? INFINITY : x != x ? x : e.scale * e.less_1 + (e.scale - 1.0f);
}
""",
    "exponential": """\
inline float exponential(float x) {
  const Reduced e = reduced(x);
  return x < -87.0f ? 0.0f : x > 88.7f ? INFINITY : x != x ? x : e.scale + e.scale * e.less_1;
}
""",
    "error_function": """\
// erf(x): x times a polynomial of x^2 below 1, 1 - exp(-x^2) times a polynomial of 1 / (1 + x) above, both fitted at
// Chebyshev's points; within 2e-7 of the value everywhere.
inline float error_function(float x) {
  const float a = std::abs(x), s = a * a, t = 1.0f / (1.0f + a);
  float near = 7.882497448e-05f;
  near = near * s - 8.018855006e-04f;
  near = near * s + 5.189312156e-03f;
  near = near * s - 2.685432881e-02f;
  near = near * s + 1.128359735e-01f;
  near = near * s - 3.761262596e-01f;
  near = near * s + 1.128379107e+00f;
  float far = -6.019992828e-01f;
  far = far * t + 1.299274325e+00f;
  far = far * t - 6.128096581e-01f;
  far = far * t - 6.337063909e-01f;
  far = far * t + 4.287582040e-01f;
  far = far * t + 5.346180201e-01f;
  far = far * t + 5.672464967e-01f;
  far = far * t - 1.300531732e-04f;
  const float whole = a > 4.0f ? 1.0f : 1.0f - far * exponential(s > 16.0f ? -16.0f : -s);
  return a < 1.0f ? near * x : x != x ? x : std::copysign(whole, x);
}
""",
    "hyperbolic_tangent": """\
inline float hyperbolic_tangent(float x) {
  const float twice = 2.0f * x;
  const float e = exponential_minus_1(twice > 40.0f ? 40.0f : twice);
  return e / (e + 2.0f);
}
""",
}
NEEDS = {
    "exponential": ("reduced",),
    "exponential_minus_1": ("reduced",),
    "error_function": ("reduced", "exponential"),
    "hyperbolic_tangent": ("reduced", "exponential_minus_1"),
}

FILE = string.Template('''\
"""$name, C++ and OpenMP: written from the operations of the model's graph.

Rows: $rows; columns: $columns. Threads share the rows; each row is swept $sweeps. What costs much
and is needed twice is kept for a row; the rest is computed anew in each sweep. Sums in float32, in pieces.
"""

import torch
import tvm_ffi.cpp

KERNEL_TYPE = "$name"
BACKEND = "cpp"

GRAIN = 8192  # tune: 1, 2048, 8192, 65536 | elements under which one thread does all the work
SCHEDULE = "static"  # tune: "static", "static,1", "dynamic,4", "dynamic,32", "guided" | how work goes to threads
CFLAGS = "-O3"  # tune: "-O3", "-O2", "-O3 -funroll-loops", "-O3 -mprefer-vector-width=512"

SOURCE = """
#include <tvm/ffi/container/tensor.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

using tvm::ffi::TensorView;

$helpers
$launch
"""

module = tvm_ffi.cpp.load_inline(
    "$name",
    cpp_sources=SOURCE,
    functions=["launch"],
    extra_cflags=[
        *CFLAGS.split(),
        "-march=native",
        "-fno-trapping-math",  # nobody reads the exception flags: comparisons may be vectorised
        "-fno-math-errno",
        "-fopenmp",
        f"-DGRAIN={GRAIN}",
        f"-DSCHEDULE={SCHEDULE}",
    ],
    extra_ldflags=["-fopenmp"],
)


def kernel_fn($arguments):
$prepared    out = torch.empty($shape, dtype=$first.dtype)
    if out.numel():
        module.launch($arguments, out)
    return out
''')
