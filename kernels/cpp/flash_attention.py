"""Attention without the S x T matrix, C++ and OpenMP: O = softmax(Q · Kᵀ · sm_scale, masked if causal) · V.

Q [B, H, S, D], K and V [B, G, T, D] -> [B, H, S, D], any strides; G divides H (grouped queries); float32, float16 or
bfloat16, all arithmetic in float32. Query i sees keys 0 to i when causal.
Bytes: (2·B·H·S·D + 2·B·G·T·D) · itemsize. Flops: 4·D a visible pair of query and key, so arithmetic decides.
The running maximum and sum of Milakov and Gimelshein ("Online normalizer calculation for softmax", 2018) let a block of
queries walk over blocks of keys, as FlashAttention does (Dao et al., 2022). K and V are packed once, for all queries of
their group, in the order in which the innermost loop reads them; it keeps an MR x NR tile in vector registers.
"""

import math

import torch
import tvm_ffi.cpp

KERNEL_TYPE = "flash_attention"
BACKEND = "cpp"

MR = 6  # tune: 4, 6, 8, 12, 14 | rows of the register tile
NV = 2  # tune: 1, 2, 4 | vectors in a row of the register tile
VEC = 8  # tune: 4, 8, 16 | floats in a vector
BQ = 96  # tune: 24, 32, 48, 64, 96, 128 | queries in a block
BK = 256  # tune: 64, 128, 192, 256, 384, 512 | keys in a block
UNROLL = 2  # tune: 1, 2, 4, 8 | steps of the innermost loop that are written out
GRAIN = 32768  # tune: 1, 32768, 1048576 | multiply-adds under which one thread does all the work
CFLAGS = "-O3 -march=native"  # tune: "-O2 -march=native", "-O3 -march=native"

SOURCE = """
#include <tvm/ffi/container/tensor.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
using tvm::ffi::TensorView;

struct bf16 {
  uint16_t bits;
  operator float() const { uint32_t u = uint32_t(bits) << 16; float f; std::memcpy(&f, &u, 4); return f; }
  bf16() = default;
  bf16(float f) {  // round to nearest, ties to even; a NaN stays one
    uint32_t u; std::memcpy(&u, &f, 4);
    bits = f != f ? 0x7fc0 : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
  }
};

typedef float vec __attribute__((vector_size(4 * VEC)));
typedef int32_t ivec __attribute__((vector_size(4 * VEC)));
constexpr int64_t NR = NV * VEC;
constexpr int STEPS = UNROLL;  // a pragma does not expand macros
constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
constexpr int64_t ROWS = round_up(BQ, MR), KEYS = round_up(BK, NR);

struct Floats {  // workspace: not initialised, aligned to a cache line
  explicit Floats(int64_t n) : p(static_cast<float*>(::operator new(4 * n, std::align_val_t(64)))) {}
  Floats(const Floats&) = delete;
  ~Floats() { ::operator delete(p, std::align_val_t(64)); }
  float* const p;
};

// One panel: lines [0, count) of `in`, padded with zeros to WIDTH, become out[depth][WIDTH].
template <int64_t WIDTH, typename T>
void pack(const T* in, int64_t line, int64_t step, int64_t count, int64_t depth, float* out) {
  if (count < WIDTH) std::fill_n(out, depth * WIDTH, 0.0f);
  if (count == WIDTH && line == 1)
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t i = 0; i < WIDTH; ++i) out[k * WIDTH + i] = float(in[k * step + i]);
  else
    for (int64_t from = 0; from < depth; from += 64)  // what is written stays in the L1 cache until its lines are full
      for (int64_t i = 0; i < count; ++i)
        for (int64_t k = from; k < std::min(depth, from + 64); ++k) out[k * WIDTH + i] = float(in[i * line + k * step]);
}

// c[MR][NR] += a[MR][depth] · b[depth][NR]; ROW and STEP are the strides of a, `line` is the row stride of c.
template <int64_t ROW, int64_t STEP>
inline void multiply(const float* a, const float* b, float* c, int64_t line, int64_t depth) {
  vec sum[MR][NV] = {};
  #pragma GCC unroll STEPS
  for (int64_t k = 0; k < depth; ++k) {
    vec row[NV];
    #pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) row[v] = reinterpret_cast<const vec*>(b + k * NR)[v];
    #pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
      #pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[i][v] += a[i * ROW + k * STEP] * row[v];
  }
  #pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
    #pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) reinterpret_cast<vec*>(c + i * line)[v] += sum[i][v];
}

constexpr float TAYLOR[] = {1 / 5040.f, 1 / 720.f, 1 / 120.f, 1 / 24.f, 1 / 6.f, 0.5f, 1, 1};  // of e^x

// 2^x for x <= 0 to about one unit in the last place, written so that it vectorises; 0 below the normal range.
inline vec power_of_two(vec x) {
  const vec magic = vec{} + 12582912.0f, low = vec{} - 126.0f;  // 1.5 · 2^23: adding it rounds to an integer
  const vec y = x < low ? low : x;
  const vec n = (y + magic) - magic;
  const vec r = (y - n) * 0.693147181f;
  vec p = {};
  #pragma GCC unroll 8
  for (const float c : TAYLOR) p = p * r + c;
  const ivec bits = (__builtin_convertvector(n, ivec) + 127) << 23;
  return x < low ? vec{} : p * reinterpret_cast<const vec&>(bits);
}

// One row of scores becomes powers relative to the maximum so far; what came before is scaled down to that maximum.
inline void softmax_row(float* scores, int64_t keys, float* out, int64_t width, float& maximum, float& total) {
  vec *s = reinterpret_cast<vec*>(scores), *o = reinterpret_cast<vec*>(out);
  vec top = vec{} + maximum, sum = {};
  for (int64_t i = 0; i < keys / VEC; ++i) top = s[i] > top ? s[i] : top;
  float highest = top[0];
  for (int l = 1; l < VEC; ++l) highest = std::max(highest, top[l]);
  for (int64_t i = 0; i < keys / VEC; ++i) sum += s[i] = power_of_two(s[i] - highest);
  const float shrink = highest > maximum ? power_of_two(vec{} + (maximum - highest))[0] : 1.0f;
  for (int64_t i = 0; shrink != 1 && i < width / VEC; ++i) o[i] *= shrink;
  total *= shrink;
  maximum = highest;
  for (int l = 0; l < VEC; ++l) total += sum[l];
}

template <typename T>
void attention(TensorView Q, TensorView K, TensorView V, TensorView O, bool causal, float scale) {
  const int64_t B = Q.size(0), H = Q.size(1), S = Q.size(2), D = Q.size(3), G = K.size(1), N = K.size(2);
  auto at = [](const TensorView& t, int64_t head, int64_t row) {  // heads are counted through the batch
    const int64_t b = head / t.size(1), h = head % t.size(1);
    return static_cast<T*>(t.data_ptr()) + b * t.stride(0) + h * t.stride(1) + row * t.stride(2);
  };
  const int64_t width = round_up(D, NR), k_size = round_up(N, NR) * D, v_size = width * N;
  const Floats packed_k(B * G * k_size), packed_v(B * G * v_size);

  #pragma omp parallel if (B * H * S * N * D > GRAIN)
  {
    const Floats workspace(ROWS * (D + KEYS + width));
    float *scores = workspace.p, *out = scores + ROWS * KEYS, *q = out + ROWS * width, maximum[ROWS], total[ROWS];
    #pragma omp for collapse(2) schedule(static) nowait
    for (int64_t g = 0; g < B * G; ++g)
      for (int64_t k = 0; k < N; k += NR)
        pack<NR>(at(K, g, k), K.stride(2), K.stride(3), std::min(NR, N - k), D, packed_k.p + g * k_size + k * D);
    #pragma omp for collapse(2) schedule(static)
    for (int64_t g = 0; g < B * G; ++g)
      for (int64_t d = 0; d < D; d += NR)
        pack<NR>(at(V, g, 0) + d * V.stride(3), V.stride(3), V.stride(2), std::min(NR, D - d), N,
                 packed_v.p + g * v_size + d * N);

    #pragma omp for collapse(2) schedule(dynamic)
    for (int64_t block = (S - 1) / ROWS; block >= 0; --block)  // the longest first
      for (int64_t head = 0; head < B * H; ++head) {
        const int64_t group = head / (H / G);  // H / G query heads share one of K and V
        const float *pk = packed_k.p + group * k_size, *pv = packed_v.p + group * v_size;
        const int64_t first = block * ROWS, rows = std::min(ROWS, S - first);
        const int64_t seen = causal ? std::min(N, first + rows) : N;
        for (int64_t i = 0; i < rows; i += MR)
          pack<MR>(at(Q, head, first + i), Q.stride(2), Q.stride(3), std::min<int64_t>(MR, rows - i), D, q + i * D);
        for (int64_t i = 0; i < round_up(rows, MR) * D; ++i) q[i] *= scale;
        std::fill_n(out, ROWS * width, 0.0f);
        std::fill_n(maximum, ROWS, -INFINITY);
        std::fill_n(total, ROWS, 0.0f);
        for (int64_t k = 0; k < seen; k += KEYS) {
          const int64_t keys = std::min(KEYS, seen - k), padded = round_up(keys, NR);
          std::fill_n(scores, ROWS * KEYS, 0.0f);
          for (int64_t j = 0; j < keys; j += NR)
            for (int64_t i = 0; i < rows; i += MR)
              multiply<1, MR>(q + i * D, pk + (k + j) * D, scores + i * KEYS + j, KEYS, D);
          for (int64_t i = 0; i < rows; ++i) {
            float* row = scores + i * KEYS;
            const int64_t visible = causal ? std::clamp<int64_t>(first + i + 1 - k, 0, keys) : keys;
            std::fill(row + visible, row + padded, -INFINITY);
            softmax_row(row, padded, out + i * width, width, maximum[i], total[i]);
          }
          for (int64_t d = 0; d < width; d += NR)
            for (int64_t i = 0; i < rows; i += MR)
              multiply<KEYS, 1>(scores + i * KEYS, pv + d * N + k * NR, out + i * width + d, width, keys);
        }
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t d = 0; d < D; ++d) at(O, head, first + i)[d * O.stride(3)] = T(out[i * width + d] / total[i]);
      }
  }
}

void launch(TensorView Q, TensorView K, TensorView V, TensorView O, bool causal, double scale) {
  const DLDataType t = Q.dtype();
  if (t.code == kDLFloat && t.bits == 32) attention<float>(Q, K, V, O, causal, float(scale));
  else if (t.code == kDLFloat) attention<_Float16>(Q, K, V, O, causal, float(scale));
  else attention<bf16>(Q, K, V, O, causal, float(scale));
}
"""

DEFINES = {"MR": MR, "NV": NV, "VEC": VEC, "BQ": BQ, "BK": BK, "UNROLL": UNROLL, "GRAIN": GRAIN}

module = tvm_ffi.cpp.load_inline(
    "flash_attention",
    cpp_sources=SOURCE,
    functions=["launch"],
    extra_cflags=[*CFLAGS.split(), "-fopenmp", *(f"-D{name}={value}" for name, value in DEFINES.items())],
    extra_ldflags=["-fopenmp"],
)


def kernel_fn(Q, K, V, causal=True, sm_scale=None):
    out = torch.empty_like(Q)  # keeps the order of Q's dimensions in memory
    scale = 1 / math.sqrt(Q.shape[-1]) if sm_scale is None else sm_scale
    module.launch(Q, K, V, out, causal, scale * math.log2(math.e))  # the kernel computes powers of two
    return out
