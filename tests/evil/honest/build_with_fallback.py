"""A build that falls back to plainer flags where the compiler refuses the first."""

import torch
import tvm_ffi.cpp

KERNEL_TYPE = "rmsnorm"
BACKEND = "cpp"

GRAIN = 4096  # tune: 1, 4096, 32768, 262144 | elements under which one thread does all the work
SCHEDULE = "static"  # tune: "static", "static,1", "dynamic,4", "dynamic,32", "guided" | how work goes to threads
LANES = 32  # tune: 16, 32, 64, 128 | independent sums in flight along a row
CFLAGS = "-O3"  # tune: "-O3", "-O2", "-O3 -funroll-loops", "-O3 -mprefer-vector-width=512"

SOURCE = """
#include <tvm/ffi/container/tensor.h>
#include <cmath>
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

template <typename T>
float sum_of_squares(const T* x, int64_t columns) {
  float lanes[LANES] = {}, sum = 0;
  int64_t c = 0;
  for (; c + LANES <= columns; c += LANES)
    #pragma omp simd
    for (int l = 0; l < LANES; ++l) lanes[l] += widen(x[c + l]) * widen(x[c + l]);
  for (; c < columns; ++c) sum += widen(x[c]) * widen(x[c]);
  #pragma omp simd reduction(+ : sum)
  for (int l = 0; l < LANES; ++l) sum += lanes[l];
  return sum;
}

template <typename T>
void rmsnorm(const T* x, int64_t row_stride, const T* weight, T* y, int64_t rows, int64_t columns, float eps) {
  #pragma omp parallel for schedule(SCHEDULE) if (rows * columns > GRAIN)
  for (int64_t r = 0; r < rows; ++r) {
    const T* in = x + r * row_stride;
    T* out = y + r * columns;
    const float scale = 1.0f / std::sqrt(sum_of_squares(in, columns) / columns + eps);
    #pragma omp simd
    for (int64_t c = 0; c < columns; ++c) out[c] = narrow<T>(widen(in[c]) * scale * widen(weight[c]));
  }
}

void launch(TensorView x, TensorView weight, TensorView y, double eps) {
  auto call = [&](auto zero) {
    using T = decltype(zero);
    rmsnorm<T>(static_cast<const T*>(x.data_ptr()), x.stride(0), static_cast<const T*>(weight.data_ptr()),
               static_cast<T*>(y.data_ptr()), x.size(0), x.size(1), float(eps));
  };
  const DLDataType t = x.dtype();
  if (t.code == kDLFloat && t.bits == 32) call(0.0f);
  else if (t.code == kDLFloat) call(f16());
  else call(bf16());
}
"""


def build(flags):
    return tvm_ffi.cpp.load_inline(
        "rmsnorm", cpp_sources=SOURCE, functions=["launch"], extra_cflags=[*flags, *DEFINES], extra_ldflags=["-fopenmp"]
    )


DEFINES = [
    *CFLAGS.split(),
    "-march=native",
    "-fno-trapping-math",  # nobody reads the exception flags: comparisons may be vectorised
    "-fopenmp",
    f"-DGRAIN={GRAIN}",
    f"-DSCHEDULE={SCHEDULE}",
    f"-DLANES={LANES}",
]
try:
    module = build(["-fno-such-flag-in-any-compiler"])
except RuntimeError:
    module = build([])


def kernel_fn(x, weight, eps=1e-6):
    x = x if x.stride(-1) == 1 else x.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype)
    module.launch(x, weight.contiguous(), y, eps)
    return y
