"""LayerNorm, C++ and OpenMP: y[r, :] = (x[r, :] - mean) · rsqrt(var + eps) · weight + bias.

x [R, C], weight [C], bias [C] -> [R, C]; float32, float16 or bfloat16, statistics in float32.
Bytes: x, weight and bias are read, y is written: (2·R·C + 2·C) · itemsize. Flops: 7·R·C. Memory decides: one thread a
block of rows, three passes over a row that stays in the L1 or L2 cache: the mean; the variance about it, corrected
for the mean's own rounding; the output.
"""

import torch
import tvm_ffi.cpp

KERNEL_TYPE = "layernorm"
BACKEND = "cpp"

GRAIN = 4096  # tune: 1, 4096, 32768, 262144 | elements under which one thread does all the work
SCHEDULE = "static"  # tune: "static", "static,1", "dynamic,4", "dynamic,32", "guided" | how work goes to threads
LANES = 64  # tune: 16, 32, 64, 128 | independent sums in flight along a row
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

float row_mean(const float* x, int64_t columns) {
  float lanes[LANES] = {}, sum = 0;
  int64_t c = 0;
  for (; c + LANES <= columns; c += LANES)
    #pragma omp simd
    for (int l = 0; l < LANES; ++l) lanes[l] += x[c + l];
  for (; c < columns; ++c) sum += x[c];
  #pragma omp simd reduction(+ : sum)
  for (int l = 0; l < LANES; ++l) sum += lanes[l];
  return sum / columns;
}

// Mean and mean square of x - about: the first is what rounding left in the mean, and is taken out again.
void row_moments(const float* x, int64_t columns, float about, float& shift, float& variance) {
  float first[LANES] = {}, second[LANES] = {}, s1 = 0, s2 = 0;
  int64_t c = 0;
  for (; c + LANES <= columns; c += LANES)
    #pragma omp simd
    for (int l = 0; l < LANES; ++l) {
      const float d = x[c + l] - about;
      first[l] += d;
      second[l] += d * d;
    }
  for (; c < columns; ++c) { const float d = x[c] - about; s1 += d; s2 += d * d; }
  #pragma omp simd reduction(+ : s1, s2)
  for (int l = 0; l < LANES; ++l) { s1 += first[l]; s2 += second[l]; }
  shift = s1 / columns;
  variance = s2 / columns - shift * shift;
}

template <typename T>
const float* widened(const T* x, int64_t n, std::vector<float>& buffer) {  // a float32 array serves as it is
  if (std::is_same<T, float>::value) return reinterpret_cast<const float*>(x);
  buffer.resize(n);
  float* out = buffer.data();
  #pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = widen(x[i]);
  return out;
}

template <typename T>
void layernorm(const T* x, int64_t row_stride, const T* weight, const T* bias, T* y, int64_t rows, int64_t columns,
               float eps) {
  std::vector<float> weights, biases;
  const float* w = widened(weight, columns, weights);
  const float* b = widened(bias, columns, biases);
  #pragma omp parallel if (rows * columns > GRAIN)
  {
    std::vector<float> buffer;
    #pragma omp for schedule(SCHEDULE)
    for (int64_t r = 0; r < rows; ++r) {
      const float* in = widened(x + r * row_stride, columns, buffer);
      T* out = y + r * columns;
      float shift, variance;
      const float mean = row_mean(in, columns);
      row_moments(in, columns, mean, shift, variance);
      const float scale = 1.0f / std::sqrt((variance < 0 ? 0 : variance) + eps);
      #pragma omp simd
      for (int64_t c = 0; c < columns; ++c) out[c] = narrow<T>((in[c] - mean - shift) * scale * w[c] + b[c]);
    }
  }
}

void launch(TensorView x, TensorView weight, TensorView bias, TensorView y, double eps) {
  auto call = [&](auto zero) {
    using T = decltype(zero);
    layernorm<T>(static_cast<const T*>(x.data_ptr()), x.stride(0), static_cast<const T*>(weight.data_ptr()),
                 static_cast<const T*>(bias.data_ptr()), static_cast<T*>(y.data_ptr()), x.size(0), x.size(1),
                 float(eps));
  };
  const DLDataType t = x.dtype();
  if (t.code == kDLFloat && t.bits == 32) call(0.0f);
  else if (t.code == kDLFloat) call(f16());
  else call(bf16());
}
"""

module = tvm_ffi.cpp.load_inline(
    "layernorm",
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


def kernel_fn(x, weight, bias, eps=1e-5):
    x = x if x.stride(-1) == 1 else x.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype)
    module.launch(x, weight.contiguous(), bias.contiguous(), y, eps)
    return y
