"""Tunables as a sweep left them."""

import torch
import tvm_ffi.cpp

KERNEL_TYPE = "softmax"
BACKEND = "cpp"

GRAIN = 1  # tune: 1, 4096, 32768, 262144 | elements under which one thread does all the work
SCHEDULE = "dynamic,4"  # tune: "static", "static,1", "dynamic,4", "dynamic,32", "guided" | how work goes to threads
LANES = 32  # tune: 16, 32, 64, 128 | independent maxima and sums in flight along a row
CFLAGS = "-O3"  # tune: "-O3", "-O2", "-O3 -funroll-loops", "-O3 -mprefer-vector-width=512"

SOURCE = """
#include <tvm/ffi/container/tensor.h>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

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

// exp(x) for x <= 0, within 1 unit in the last place; below -87.3 (float32's normal range) 0; a NaN stays one.
// x = n ln 2 + r with |r| <= ln 2 / 2; exp(r) is a polynomial (minimax on that interval), 2^n is built from its bits.
inline float exp_nonpositive(float x) {
  const float clamped = x < -88.0f ? -88.0f : x;
  const float shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the low bits now hold round(x / ln 2)
  const float n = shifted - 12582912.0f;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts: no digit of r is lost
  float p = 0.00138146128f;
  p = p * r + 0.00836871006f;
  p = p * r + 0.041668389f;
  p = p * r + 0.166665211f;
  p = p * r + 0.49999994f;
  p = p * r * r + r + 1.0f;
  return x < -87.3f ? 0.0f : p * from_bits((to_bits(shifted) + 127) << 23);
}

float row_max(const float* x, int64_t columns) {
  float lanes[LANES], max = -INFINITY;  // a NaN never wins: it reaches the sum instead
  for (int l = 0; l < LANES; ++l) lanes[l] = -INFINITY;
  int64_t c = 0;
  for (; c + LANES <= columns; c += LANES)
    #pragma omp simd
    for (int l = 0; l < LANES; ++l) lanes[l] = x[c + l] > lanes[l] ? x[c + l] : lanes[l];
  for (; c < columns; ++c) max = x[c] > max ? x[c] : max;
  #pragma omp simd reduction(max : max)
  for (int l = 0; l < LANES; ++l) max = lanes[l] > max ? lanes[l] : max;
  return max;
}

float row_exp(const float* x, float* e, int64_t columns, float max) {  // x and e may be the same
  float lanes[LANES] = {}, sum = 0;
  int64_t c = 0;
  for (; c + LANES <= columns; c += LANES)
    #pragma omp simd
    for (int l = 0; l < LANES; ++l) lanes[l] += e[c + l] = exp_nonpositive(x[c + l] - max);
  #pragma omp simd reduction(+ : sum)
  for (int64_t i = c; i < columns; ++i) sum += e[i] = exp_nonpositive(x[i] - max);
  #pragma omp simd reduction(+ : sum)
  for (int l = 0; l < LANES; ++l) sum += lanes[l];
  return sum;
}

template <typename T>
void softmax(const T* x, int64_t row_stride, T* y, int64_t rows, int64_t columns) {
  constexpr bool wide = std::is_same<T, float>::value;
  #pragma omp parallel if (rows * columns > GRAIN)
  {
    std::vector<float> buffer(wide ? 0 : columns);  // a float32 row needs no other place than y
    #pragma omp for schedule(SCHEDULE)
    for (int64_t r = 0; r < rows; ++r) {
      const T* in = x + r * row_stride;
      T* out = y + r * columns;
      float* e = wide ? reinterpret_cast<float*>(out) : buffer.data();
      const float* v = wide ? reinterpret_cast<const float*>(in) : e;
      if (!wide)
        #pragma omp simd
        for (int64_t c = 0; c < columns; ++c) e[c] = widen(in[c]);
      const float scale = 1.0f / row_exp(v, e, columns, row_max(v, columns));
      #pragma omp simd
      for (int64_t c = 0; c < columns; ++c) out[c] = narrow<T>(e[c] * scale);
    }
  }
}

void launch(TensorView x, TensorView y) {
  auto call = [&](auto zero) {
    using T = decltype(zero);
    softmax<T>(static_cast<const T*>(x.data_ptr()), x.stride(0), static_cast<T*>(y.data_ptr()), x.size(0), x.size(1));
  };
  const DLDataType t = x.dtype();
  if (t.code == kDLFloat && t.bits == 32) call(0.0f);
  else if (t.code == kDLFloat) call(f16());
  else call(bf16());
}
"""

module = tvm_ffi.cpp.load_inline(
    "softmax",
    cpp_sources=SOURCE,
    functions=["launch"],
    extra_cflags=[
        *CFLAGS.split(),
        "-march=native",
        "-fno-trapping-math",  # nobody reads the exception flags: comparisons may be vectorised
        "-fopenmp",
        f"-DGRAIN={GRAIN}",
        f"-DSCHEDULE={SCHEDULE}",
        f"-DLANES={LANES}",
    ],
    extra_ldflags=["-fopenmp"],
)


def kernel_fn(x):
    x = x if x.stride(-1) == 1 else x.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype)
    module.launch(x, y)
    return y
