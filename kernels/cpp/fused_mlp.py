"""SwiGLU feed-forward block, C++ and OpenMP: y = (silu(x · w_gateᵀ) · (x · w_upᵀ)) · w_downᵀ.

x [M, D], w_gate [F, D], w_up [F, D], w_down [D, F] -> [M, D], any strides; float32, float16 or bfloat16, sums and the
hidden layer in float32. Bytes: (2·M·D + 3·D·F) · itemsize. Flops: 6·M·D·F + 5·M·F, so arithmetic decides.
Two blocked matrix products (Goto and van de Geijn, 2008: panels packed in the order of use, an MR x NR tile in vector
registers). In the first, panels of w_gate and w_up alternate, so that one pass over x gives both halves of a tile and
silu(gate) · up leaves it as the packed left operand of the second: the hidden layer is written once and read once.
Under a few rows packing costs more than it saves: there contiguous rows of the weights are read once where they lie.
The register tile as it stands fits the 16 registers of AVX2; AVX-512 has 32, twice as wide.
"""

import tvm_ffi.cpp

KERNEL_TYPE = "fused_mlp"
BACKEND = "cpp"

MR = 6  # tune: 4, 6, 8, 12, 14 | rows of the register tile
NV = 2  # tune: 1, 2, 3, 4 | vectors in a row of the register tile
VEC = 8  # tune: 4, 8, 16 | floats in a vector
KC = 256  # tune: 128, 192, 256, 384, 512, 1024 | depth of a block
MC = 128  # tune: 32, 64, 96, 128, 192, 256 | rows that one task computes
NT = 256  # tune: 64, 128, 192, 256, 384, 512 | columns that one task computes
NC = 3072  # tune: 512, 1024, 2048, 3072, 8192 | columns of the weights that are packed at a time
UNROLL = 2  # tune: 1, 2, 4, 8 | steps of the innermost loop that are written out
SKINNY = 4  # tune: 0, 1, 2, 4, 8 | rows of x up to which the weights are read where they lie
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
constexpr int64_t TILE_M = round_up(MC, MR), TILE_N = round_up(NT, 2 * NR), BLOCK_N = round_up(NC, TILE_N);

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

// c[MR][NR] += a[depth][MR]ᵀ · b[depth][NR]
inline void multiply(const float* a, const float* b, float* c, int64_t depth) {
  vec sum[MR][NV] = {};
  #pragma GCC unroll STEPS
  for (int64_t k = 0; k < depth; ++k) {
    vec row[NV];
    #pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) row[v] = reinterpret_cast<const vec*>(b + k * NR)[v];
    #pragma GCC unroll 16
    for (int i = 0; i < MR; ++i)
      #pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[i][v] += a[k * MR + i] * row[v];
  }
  #pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
    #pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) reinterpret_cast<vec*>(c + i * TILE_N)[v] += sum[i][v];
}

constexpr float TAYLOR[] = {1 / 5040.f, 1 / 720.f, 1 / 120.f, 1 / 24.f, 1 / 6.f, 0.5f, 1, 1};  // of e^x

// exp(x) to about one unit in the last place, written so that it vectorises; 0 below the normal range, inf above.
inline vec exponential(vec x) {
  const vec magic = vec{} + 12582912.0f;  // 1.5 · 2^23: adding it rounds to an integer
  const vec low = vec{} - 87.3f, high = vec{} + 89.0f;
  const vec y = x < low ? low : (x > high ? high : x);
  const vec n = (y * 1.44269504f + magic) - magic;
  const vec r = (y - n * 0.693359375f) - n * -2.12194440e-4f;  // ln 2 in two parts: the first product is exact
  vec p = {};
  #pragma GCC unroll 8
  for (const float c : TAYLOR) p = p * r + c;
  const ivec bits = (__builtin_convertvector(n, ivec) + 127) << 23;
  return x < low ? vec{} : p * reinterpret_cast<const vec&>(bits);
}

// Called by every thread of a parallel region: for each tile of pa[M][K] · B[K][N], store(rows, columns, tile).
template <typename Pack, typename Store>
void product(int64_t M, int64_t N, int64_t K, const float* pa, float* pb, float* tile, Pack pack_b, Store store) {
  for (int64_t first = 0; first < N; first += BLOCK_N) {
    const int64_t last = std::min(N, first + BLOCK_N);
    #pragma omp for schedule(static)
    for (int64_t j = first; j < last; j += NR) pack_b(j, pb + (j - first) * K);

    #pragma omp for collapse(2) schedule(dynamic)
    for (int64_t i0 = 0; i0 < M; i0 += TILE_M)
      for (int64_t j0 = first; j0 < last; j0 += TILE_N) {
        const int64_t i1 = std::min(M, i0 + TILE_M), j1 = std::min(last, j0 + TILE_N);
        std::fill_n(tile, TILE_M * TILE_N, 0.0f);
        for (int64_t k = 0; k < K; k += KC)
          for (int64_t j = j0; j < j1; j += NR)
            for (int64_t i = i0; i < i1; i += MR)
              multiply(pa + i * K + k * MR, pb + (j - first) * K + k * NR, tile + (i - i0) * TILE_N + (j - j0),
                       std::min<int64_t>(KC, K - k));
        store(i0, i1, j0, j1);
      }
  }
}

template <typename A, typename B>
float dot(const A* a, const B* b, int64_t n) {
  float sum = 0;
  #pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += float(a[i]) * float(b[i]);
  return sum;
}

template <typename T>
void mlp(TensorView X, TensorView Gate, TensorView Up, TensorView Down, TensorView Y) {
  const int64_t M = X.size(0), D = X.size(1), F = Gate.size(0);
  const T *x = static_cast<const T*>(X.data_ptr()), *down = static_cast<const T*>(Down.data_ptr());
  const T *gate = static_cast<const T*>(Gate.data_ptr()), *up = static_cast<const T*>(Up.data_ptr());
  T* y = static_cast<T*>(Y.data_ptr());
  if (M <= SKINNY && X.stride(1) == 1 && Gate.stride(1) == 1 && Up.stride(1) == 1 && Down.stride(1) == 1) {
    const Floats hidden(M * F);
    #pragma omp parallel if (M * D * F > GRAIN)
    {
      #pragma omp for schedule(static)
      for (int64_t f = 0; f < F; ++f)
        for (int64_t i = 0; i < M; ++i) {
          const float g = dot(x + i * X.stride(0), gate + f * Gate.stride(0), D);
          hidden.p[i * F + f] = g / (1 + std::exp(-g)) * dot(x + i * X.stride(0), up + f * Up.stride(0), D);
        }
      #pragma omp for schedule(static)
      for (int64_t j = 0; j < D; ++j)
        for (int64_t i = 0; i < M; ++i) y[i * D + j] = T(dot(hidden.p + i * F, down + j * Down.stride(0), F));
    }
    return;
  }
  const int64_t width = std::min(BLOCK_N, std::max(2 * round_up(F, NR), round_up(D, NR)));
  const Floats packed_x(round_up(M, MR) * D), hidden(round_up(M, MR) * F), packed_w(width * std::max(D, F));

  #pragma omp parallel if (M * D * F > GRAIN)
  {
    const Floats tile(TILE_M * TILE_N);
    const float* t = tile.p;
    #pragma omp for schedule(static)
    for (int64_t i = 0; i < M; i += MR)
      pack<MR>(x + i * X.stride(0), X.stride(0), X.stride(1), std::min(MR + 0L, M - i), D, packed_x.p + i * D);

    product(M, 2 * round_up(F, NR), D, packed_x.p, packed_w.p, tile.p,
      [&](int64_t j, float* out) {
        const int64_t f = j / (2 * NR) * NR;
        const bool second = j / NR % 2;
        const TensorView& w = second ? Up : Gate;
        pack<NR>((second ? up : gate) + f * w.stride(0), w.stride(0), w.stride(1), std::min(NR, F - f), D, out);
      },
      [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
        for (int64_t i = i0; i < round_up(i1, MR); ++i) {  // the rows of padding are zeros, and stay so
          float* out = hidden.p + i / MR * MR * F + i % MR;
          for (int64_t j = j0; j < j1; j += 2 * NR)
            for (int64_t v = 0; v < NR; v += VEC) {
              const float* g = t + (i - i0) * TILE_N + (j - j0) + v;
              const vec a = *reinterpret_cast<const vec*>(g), b = *reinterpret_cast<const vec*>(g + NR);
              const vec h = a / (1.0f + exponential(-a)) * b;
              for (int64_t f = j / 2 + v, l = 0; l < std::min<int64_t>(VEC, F - f); ++l) out[(f + l) * MR] = h[l];
            }
        }
      });

    product(M, D, F, hidden.p, packed_w.p, tile.p,
      [&](int64_t j, float* out) {
        pack<NR>(down + j * Down.stride(0), Down.stride(0), Down.stride(1), std::min(NR, D - j), F, out);
      },
      [&](int64_t i0, int64_t i1, int64_t j0, int64_t j1) {
        for (int64_t i = i0; i < i1; ++i)
          for (int64_t j = j0; j < j1; ++j) y[i * D + j] = T(t[(i - i0) * TILE_N + (j - j0)]);
      });
  }
}

void launch(TensorView x, TensorView gate, TensorView up, TensorView down, TensorView y) {
  const DLDataType t = x.dtype();
  if (t.code == kDLFloat && t.bits == 32) mlp<float>(x, gate, up, down, y);
  else if (t.code == kDLFloat) mlp<_Float16>(x, gate, up, down, y);
  else mlp<bf16>(x, gate, up, down, y);
}
"""

DEFINES = {
    "MR": MR, "NV": NV, "VEC": VEC, "KC": KC, "MC": MC, "NT": NT, "NC": NC,
    "UNROLL": UNROLL, "SKINNY": SKINNY, "GRAIN": GRAIN,
}  # fmt: skip

module = tvm_ffi.cpp.load_inline(
    "fused_mlp",
    cpp_sources=SOURCE,
    functions=["launch"],
    extra_cflags=[*CFLAGS.split(), "-fopenmp", *(f"-D{name}={value}" for name, value in DEFINES.items())],
    extra_ldflags=["-fopenmp"],
)


def kernel_fn(x, w_gate, w_up, w_down):
    y = x.new_empty(x.shape)
    module.launch(x, w_gate, w_up, w_down, y)
    return y
