"""Sums over blocks of a size that a sweep found."""

import torch
import tvm_ffi.cpp

KERNEL_TYPE = "reduce"
BACKEND = "cpp"

GRAIN = 4096  # tune: 1, 4096, 32768, 262144 | elements under which one thread does all the work
SCHEDULE = "static"  # tune: "static", "static,1", "dynamic,4", "dynamic,32", "guided" | how work goes to threads
LANES = 64  # tune: 16, 32, 64, 128 | independent sums in flight along a row
BLOCK = 256  # tune: 256, 512, 1024, 4096 | elements of a row that are summed in float32
ROWS = 32  # tune: 32, 64, 128, 256, 512 | rows that one task adds up when it sums columns
COLUMNS = 512  # tune: 128, 256, 512, 1024, 4096 | columns of such a task
CFLAGS = "-O3"  # tune: "-O3", "-O2", "-O3 -funroll-loops", "-O3 -mprefer-vector-width=512"

SOURCE = """
#include <tvm/ffi/container/tensor.h>
#include <algorithm>
#include <cstdint>
#include <cstring>
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

template <typename T>
float block_sum(const T* x, int64_t n) {
  float lanes[LANES] = {}, sum = 0;
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES)
    #pragma omp simd
    for (int l = 0; l < LANES; ++l) lanes[l] += widen(x[i + l]);
  #pragma omp simd reduction(+ : sum)
  for (int64_t j = i; j < n; ++j) sum += widen(x[j]);
  #pragma omp simd reduction(+ : sum)
  for (int l = 0; l < LANES; ++l) sum += lanes[l];
  return sum;
}

template <typename T>
void sum_rows(const T* x, int64_t row_stride, T* y, int64_t rows, int64_t columns) {
  #pragma omp parallel for schedule(SCHEDULE) if (rows * columns > GRAIN)
  for (int64_t r = 0; r < rows; ++r) {
    double sum = 0;
    for (int64_t c = 0; c < columns; c += BLOCK)
      sum += block_sum(x + r * row_stride + c, std::min<int64_t>(BLOCK, columns - c));
    y[r] = narrow<T>(float(sum));
  }
}

template <typename T>
void sum_columns(const T* x, int64_t row_stride, T* y, int64_t rows, int64_t columns) {
  const int64_t blocks = (rows + ROWS - 1) / ROWS;
  std::vector<float> partial(blocks * columns);
  #pragma omp parallel if (rows * columns > GRAIN)
  {
    #pragma omp for schedule(SCHEDULE) collapse(2)
    for (int64_t block = 0; block < blocks; ++block)
      for (int64_t c = 0; c < columns; c += COLUMNS) {
        const int64_t n = std::min<int64_t>(COLUMNS, columns - c);
        float* sums = partial.data() + block * columns + c;
        const T* in = x + block * ROWS * row_stride + c;
        int64_t left = std::min<int64_t>(ROWS, rows - block * ROWS);
        for (; left >= 4; left -= 4, in += 4 * row_stride)  // four rows for each time that the sums are touched
          #pragma omp simd
          for (int64_t i = 0; i < n; ++i)
            sums[i] += (widen(in[i]) + widen(in[i + row_stride])) +
                       (widen(in[i + 2 * row_stride]) + widen(in[i + 3 * row_stride]));
        for (; left > 0; --left, in += row_stride)
          #pragma omp simd
          for (int64_t i = 0; i < n; ++i) sums[i] += widen(in[i]);
      }
    #pragma omp for schedule(static)
    for (int64_t c = 0; c < columns; ++c) {
      double sum = 0;
      for (int64_t block = 0; block < blocks; ++block) sum += partial[block * columns + c];
      y[c] = narrow<T>(float(sum));
    }
  }
}

void launch(TensorView x, TensorView y, bool along_rows) {
  auto call = [&](auto zero) {
    using T = decltype(zero);
    (along_rows ? sum_rows<T> : sum_columns<T>)(static_cast<const T*>(x.data_ptr()), x.stride(0),
                                                static_cast<T*>(y.data_ptr()), x.size(0), x.size(1));
  };
  const DLDataType t = x.dtype();
  if (t.code == kDLFloat && t.bits == 32) call(0.0f);
  else if (t.code == kDLFloat) call(f16());
  else call(bf16());
}
"""

module = tvm_ffi.cpp.load_inline(
    "reduce",
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
        f"-DBLOCK={BLOCK}",
        f"-DROWS={ROWS}",
        f"-DCOLUMNS={COLUMNS}",
    ],
    extra_ldflags=["-fopenmp"],
)


def kernel_fn(x, dim=-1):
    along_rows = dim in (-1, 1)
    if x.stride(1) != 1 and x.stride(0) == 1:  # columns of x are rows of its transpose: no copy
        x, along_rows = x.t(), not along_rows
    x = x if x.stride(1) == 1 else x.contiguous()
    y = torch.empty(x.shape[0 if along_rows else 1], dtype=x.dtype)
    module.launch(x, y, along_rows)
    return y
