"""Rotary position embedding, C++ and OpenMP: each pair (a, b) of features becomes (a cos - b sin, b cos + a sin).

x [B, H, S, D], cos and sin [S, D/2], or [S, D] with a value for each feature -> [B, H, S, D]; float32, float16 or
bfloat16, products in float32. Pairs are (2i, 2i + 1), or (i, i + D/2) when not interleaved.
Bytes: x is read, y is written, the tables stay in the cache: 2·B·H·S·D · itemsize. Flops: 3·B·H·S·D. Memory decides.
A task is a run of positions of one head. x is read and y is written with the strides that it has, so that the
transposed view [B, H, S, D] of [B, S, H, D] costs no copy. Pairs and tables
differ only in steps and offsets.
"""

import torch
import tvm_ffi.cpp

KERNEL_TYPE = "rotary_embedding"
BACKEND = "cpp"

GRAIN = 4096  # tune: 1, 4096, 32768, 262144 | elements under which one thread does all the work
SCHEDULE = "static"  # tune: "static", "static,1", "dynamic,4", "dynamic,32", "guided" | how work goes to threads
POSITIONS = 64  # tune: 8, 16, 32, 64, 128, 512 | positions of one head that make a task
CFLAGS = "-O3"  # tune: "-O3", "-O2", "-O3 -funroll-loops", "-O3 -mprefer-vector-width=512"

SOURCE = """
#include <tvm/ffi/container/tensor.h>
#include <algorithm>
#include <cstdint>
#include <cstring>

using tvm::ffi::TensorView;

inline uint32_t to_bits(float f) { uint32_t u; std::memcpy(&u, &f, 4); return u; }
inline float from_bits(uint32_t u) { float f; std::memcpy(&f, &u, 4); return f; }

// Half precision as bits: GCC 12 vectorises neither _Float16's conversions nor the store of a struct.
enum class f16 : uint16_t {};
enum class bf16 : uint16_t {};

inline float widen(float v) { return v; }
inline float widen(bf16 v) { return from_bits(uint32_t(v) << 16); }
inline float widen(f16 v) {  // 2^112 is the difference of the exponents' biases; denormals come out right, too
  const uint32_t magnitude = (uint32_t(v) & 0x7fff) << 13;
  const uint32_t finite = to_bits(from_bits(magnitude) * 0x1p112f);
  return from_bits((magnitude < 0x0f800000 ? finite : magnitude | 0x7f800000) | (uint32_t(v) & 0x8000) << 16);
}

template <typename T> T narrow(float v);  // round to nearest, ties to even; a NaN stays one
template <> inline float narrow(float v) { return v; }
template <> inline bf16 narrow(float v) {
  const uint32_t u = to_bits(v);
  return bf16(v != v ? 0x7fc0 : (u + 0x7fff + (u >> 16 & 1)) >> 16);
}
template <> inline f16 narrow(float v) {
  const uint32_t u = to_bits(v) & 0x7fffffff;
  const uint32_t normal = ((u + 0xfff + (u >> 13 & 1)) >> 13) - (112 << 10);
  const uint32_t denormal = to_bits(from_bits(u) + 0.5f) - 0x3f000000;  // the sum's last bit is fp16's smallest number
  const uint32_t finite = u < 0x38800000 ? denormal : normal;
  return f16((u < 0x477ff000 ? finite : u <= 0x7f800000 ? 0x7c00 : 0x7e00) | (to_bits(v) >> 16 & 0x8000));
}

enum Table { PAIRS, COMPLEX, FEATURES };  // [S, D/2]; the same with a step of 2, half of a complex tensor; [S, D]

template <bool INTERLEAVED, Table TABLE, typename T>
void turn(const T* x, const T* cos, const T* sin, T* y, int64_t pairs) {
  // The first of pair i is at i * step, the second `apart` after it; so for its table entries.
  const int64_t step = INTERLEAVED ? 2 : 1, apart = INTERLEAVED ? 1 : pairs;
  const int64_t table_step = TABLE == COMPLEX ? 2 : TABLE == FEATURES ? step : 1;
  const int64_t table_apart = TABLE == FEATURES ? apart : 0;
  #pragma omp simd
  for (int64_t i = 0; i < pairs; ++i) {
    const float a = widen(x[i * step]), b = widen(x[i * step + apart]);
    const float cos_a = widen(cos[i * table_step]), cos_b = widen(cos[i * table_step + table_apart]);
    const float sin_a = widen(sin[i * table_step]), sin_b = widen(sin[i * table_step + table_apart]);
    y[i * step] = narrow<T>(a * cos_a - b * sin_a);
    y[i * step + apart] = narrow<T>(b * cos_b + a * sin_b);
  }
}

template <typename T, typename Turn>
void rotary(TensorView x, TensorView cos, TensorView sin, TensorView y, Turn turn) {
  const int64_t batch = x.size(0), heads = x.size(1), positions = x.size(2), pairs = x.size(3) / 2;
  const int64_t xb = x.stride(0), xh = x.stride(1), xs = x.stride(2), yb = y.stride(0), yh = y.stride(1);
  const int64_t ys = y.stride(2), cs = cos.stride(0), ss = sin.stride(0);
  const T *in = static_cast<const T*>(x.data_ptr()), *c = static_cast<const T*>(cos.data_ptr());
  const T* n = static_cast<const T*>(sin.data_ptr());
  T* out = static_cast<T*>(y.data_ptr());
  #pragma omp parallel for schedule(SCHEDULE) collapse(3) if (batch * heads * positions * pairs * 2 > GRAIN)
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t start = 0; start < positions; start += POSITIONS)
        for (int64_t s = start; s < std::min<int64_t>(start + POSITIONS, positions); ++s)
          turn(in + b * xb + h * xh + s * xs, c + s * cs, n + s * ss, out + b * yb + h * yh + s * ys, pairs);
}

void launch(TensorView x, TensorView cos, TensorView sin, TensorView y, bool interleaved) {
  const bool features = cos.size(1) == x.size(3), complex = cos.stride(1) == 2;
  auto call = [&](auto zero) {
    using T = decltype(zero);
    rotary<T>(x, cos, sin, y, !interleaved ? (features ? turn<false, FEATURES, T> : turn<false, PAIRS, T>)
                              : features   ? turn<true, FEATURES, T>
                              : complex    ? turn<true, COMPLEX, T>
                                           : turn<true, PAIRS, T>);
  };
  const DLDataType t = x.dtype();
  if (t.code == kDLFloat && t.bits == 32) call(0.0f);
  else if (t.code == kDLFloat) call(f16());
  else call(bf16());
}
"""

module = tvm_ffi.cpp.load_inline(
    "rotary_embedding",
    cpp_sources=SOURCE,
    functions=["launch"],
    extra_cflags=[
        *CFLAGS.split(),
        "-march=native",
        "-fno-trapping-math",  # nobody reads the exception flags: comparisons may be vectorised
        "-fopenmp",
        f"-DGRAIN={GRAIN}",
        f"-DSCHEDULE={SCHEDULE}",
        f"-DPOSITIONS={POSITIONS}",
    ],
    extra_ldflags=["-fopenmp"],
)


def kernel_fn(x, cos, sin, interleaved=True):
    x = x if x.stride(-1) == 1 else x.contiguous()
    steps = (1, 2) if interleaved and cos.shape[-1] < x.shape[-1] else (1,)
    if cos.stride(-1) not in steps or cos.stride(-1) != sin.stride(-1):
        cos, sin = cos.contiguous(), sin.contiguous()
    y = torch.empty_like(x)
    y = y if y.stride(-1) == 1 else torch.empty(x.shape, dtype=x.dtype)
    module.launch(x, cos, sin, y, interleaved)
    return y
