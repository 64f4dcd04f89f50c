"""Matrix product, C++ and OpenMP: C = A · B.

A [M, K], B [K, N] -> [M, N], any strides; float32, float16 or bfloat16, sums in float32.
Bytes: (M·K + K·N + M·N) · itemsize. Flops: 2·M·N·K, so arithmetic decides once M is more than a few dozen rows.
The blocking of Goto and van de Geijn ("Anatomy of High-Performance Matrix Multiplication", 2008): panels of MR rows of
A and NR columns of B are packed as float32, in the order in which the innermost loop reads them, and that loop keeps
an MR x NR tile of C in vector registers. A block of B [KC, NR] stays in the L1 cache, one of A [MC, KC] in the L2.
Under a few rows packing costs more than it saves: there B, if its columns are contiguous, is read once where it lies.
The register tile as it stands fits the 16 registers of AVX2; AVX-512 has 32, twice as wide.
"""

import tvm_ffi.cpp

KERNEL_TYPE = "matmul"
BACKEND = "cpp"

MR = 6  # tune: 4, 6, 8, 12, 14 | rows of the register tile
NV = 2  # tune: 1, 2, 3, 4 | vectors in a row of the register tile
VEC = 8  # tune: 4, 8, 16 | floats in a vector
KC = 256  # tune: 128, 192, 256, 384, 512, 1024 | depth of a block
MC = 128  # tune: 32, 64, 96, 128, 192, 256 | rows of C that one task computes
NT = 256  # tune: 64, 128, 192, 256, 384, 512 | columns of C that one task computes
NC = 3072  # tune: 512, 1024, 2048, 3072, 8192 | columns of B that are packed at a time
UNROLL = 2  # tune: 1, 2, 4, 8 | steps of the innermost loop that are written out
SKINNY = 4  # tune: 0, 1, 2, 4, 8 | rows of A up to which B is read where it lies
GRAIN = 32768  # tune: 1, 32768, 1048576 | multiply-adds under which one thread does all the work
CFLAGS = "-O3 -march=native"  # tune: "-O2 -march=native", "-O3 -march=native"

SOURCE = """
#include <tvm/ffi/container/tensor.h>
#include <algorithm>
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
constexpr int64_t NR = NV * VEC;
constexpr int STEPS = UNROLL;  // a pragma does not expand macros
constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
constexpr int64_t TILE_M = round_up(MC, MR), TILE_N = round_up(NT, NR), BLOCK_N = round_up(NC, TILE_N);

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

template <typename T>
void matmul(TensorView A, TensorView B, TensorView C) {
  const int64_t M = A.size(0), K = A.size(1), N = B.size(1);
  const T* a = static_cast<const T*>(A.data_ptr());
  const T* b = static_cast<const T*>(B.data_ptr());
  T* c = static_cast<T*>(C.data_ptr());
  if (M <= SKINNY && A.stride(1) == 1 && B.stride(0) == 1) {
    #pragma omp parallel for schedule(static) if (M * N * K > GRAIN)
    for (int64_t j = 0; j < N; ++j)
      for (int64_t i = 0; i < M; ++i) {
        const T *row = a + i * A.stride(0), *column = b + j * B.stride(1);
        float sum = 0;
        #pragma omp simd reduction(+ : sum)
        for (int64_t k = 0; k < K; ++k) sum += float(row[k]) * float(column[k]);
        c[i * N + j] = T(sum);
      }
    return;
  }
  const Floats packed_a(round_up(M, MR) * K), packed_b(std::min(round_up(N, NR), BLOCK_N) * K);
  float *pa = packed_a.p, *pb = packed_b.p;

  #pragma omp parallel if (M * N * K > GRAIN)
  {
    const Floats tile(TILE_M * TILE_N);
    float* t = tile.p;
    #pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < M; i += MR)
      pack<MR>(a + i * A.stride(0), A.stride(0), A.stride(1), std::min<int64_t>(MR, M - i), K, pa + i * K);

    for (int64_t first = 0; first < N; first += BLOCK_N) {
      const int64_t last = std::min(N, first + BLOCK_N);
      #pragma omp for schedule(static)
      for (int64_t j = first; j < last; j += NR)
        pack<NR>(b + j * B.stride(1), B.stride(1), B.stride(0), std::min(NR, N - j), K, pb + (j - first) * K);

      #pragma omp for collapse(2) schedule(dynamic)
      for (int64_t i0 = 0; i0 < M; i0 += TILE_M)
        for (int64_t j0 = first; j0 < last; j0 += TILE_N) {
          const int64_t i1 = std::min(M, i0 + TILE_M), j1 = std::min(last, j0 + TILE_N);
          std::fill_n(t, TILE_M * TILE_N, 0.0f);
          for (int64_t k = 0; k < K; k += KC)
            for (int64_t j = j0; j < j1; j += NR)
              for (int64_t i = i0; i < i1; i += MR)
                multiply(pa + i * K + k * MR, pb + (j - first) * K + k * NR, t + (i - i0) * TILE_N + (j - j0),
                         std::min<int64_t>(KC, K - k));
          for (int64_t i = i0; i < i1; ++i)
            for (int64_t j = j0; j < j1; ++j) c[i * N + j] = T(t[(i - i0) * TILE_N + (j - j0)]);
        }
    }
  }
}

void launch(TensorView A, TensorView B, TensorView C) {
  const DLDataType t = A.dtype();
  if (t.code == kDLFloat && t.bits == 32) matmul<float>(A, B, C);
  else if (t.code == kDLFloat) matmul<_Float16>(A, B, C);
  else matmul<bf16>(A, B, C);
}
"""

DEFINES = {
    "MR": MR, "NV": NV, "VEC": VEC, "KC": KC, "MC": MC, "NT": NT, "NC": NC,
    "UNROLL": UNROLL, "SKINNY": SKINNY, "GRAIN": GRAIN,
}  # fmt: skip

module = tvm_ffi.cpp.load_inline(
    "matmul",
    cpp_sources=SOURCE,
    functions=["launch"],
    extra_cflags=[*CFLAGS.split(), "-fopenmp", *(f"-D{name}={value}" for name, value in DEFINES.items())],
    extra_ldflags=["-fopenmp"],
)


def kernel_fn(A, B):
    C = A.new_empty((A.shape[0], B.shape[1]))
    module.launch(A, B, C)
    return C
