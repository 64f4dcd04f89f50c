"""SwiGLU feed-forward block, CUDA C++: y = (silu(x · w_gateᵀ) · (x · w_upᵀ)) · w_downᵀ.

x [M, D], w_gate and w_up [F, D], w_down [D, F] -> [M, D], any strides; float32, float16 or bfloat16, sums in float32.
Bytes: (2·M·D + 3·D·F) · itemsize, and the hidden layer [M, F] once out and, from the L2 for a part, once back. Flops: 6·M·D·F.
Two launches. The first multiplies x by both weights at once: a tile of B takes 8 rows of w_gate and 8 of w_up in turn, so that a thread
ends up with gate and up of the same hidden units in neighbouring registers, and writes silu(gate) · up, rounded to the dtype as a model
does. x is read once for both products, and neither product ever reaches memory. The second launch is the plain product with w_down.
Tiles: cp.async into a ring of STAGES slices in shared memory, ldmatrix, mma.sync (sm_80 on); see matmul.py for the layout.
float32 stays float32 (FFMA on tiles of registers), never TF32. Where tiles are fewer than multiprocessors the sum of the second launch is
split, and its parts are added in a fixed order.
Other GPUs: revisit BN, BK and STAGES (shared memory), GROUP (L2). Hopper has wgmma, twice as fast.
"""

import torch
import tvm_ffi.cpp

KERNEL_TYPE = "fused_mlp"
BACKEND = "cuda"

BM = 128  # tune: 64, 128 | rows of the output a block computes
BN = 128  # tune: 128, 256 | columns of the output, or half as many hidden units, that a block computes
BK = 32  # tune: 32, 64 | depth of one slice
STAGES = 4  # tune: 2, 3, 4, 5 | slices in shared memory
SKINNY = 32  # tune: 16, 32, 64 | rows up to which a block computes 16 rows at a time
GROUP = 8  # tune: 1, 4, 8, 16 | rows of tiles that are computed together, for the L2
WAVES = 2  # tune: 1, 2, 4 | blocks a multiprocessor under which the second product's sum is split

SOURCE = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/extra/cuda/device_guard.h>
#include <algorithm>
#include <cstdint>
#include <type_traits>

using tvm::ffi::TensorView;
using f16 = __half;
using bf16 = __nv_bfloat16;

template <typename T> __device__ inline T narrow(float v);  // round to nearest even
template <> __device__ inline float narrow(float v) { return v; }
template <> __device__ inline f16 narrow(float v) { return __float2half_rn(v); }
template <> __device__ inline bf16 narrow(float v) { return __float2bfloat16_rn(v); }

// ---- what CUDA C++ has no words for
__device__ inline void copy_async(void* to, const void* from, int bytes) {  // 16 bytes, those beyond `bytes` zero
  const uint32_t shared = uint32_t(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from), "r"(bytes) : "memory");
}
__device__ inline void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int PENDING> __device__ inline void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
// Four 8x8 matrices of halves; lane l gives the address of row l % 8 of matrix l / 8.
__device__ inline void ldmatrix(uint32_t (&r)[4], const void* row) {
  const uint32_t shared = uint32_t(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared) : "memory");
}
__device__ inline void ldmatrix_transposed(uint32_t (&r)[4], const void* row) {
  const uint32_t shared = uint32_t(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared) : "memory");
}
// d[16, 8] += a[16, 16] · b[16, 8], float32 sums
template <typename T> __device__ inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same<T, f16>::value)
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

struct Matrix { const void* data; int64_t line, step; };  // element (i, j) at data[i * line + j * step]
struct Problem { int m, n, k, depth, line; };  // depth: how much of k one block sums up; line: elements between rows of c

// Tile (row, column) of a block: GROUP rows of tiles share the columns of B that are in the L2.
__device__ inline int2 tile_of(int block, int rows, int columns) {
  const int whole = GROUP * columns, first = block / whole * GROUP, group = min(rows - first, GROUP);
  return make_int2(first + block % whole % group, block % whole / group);
}

// Where 16-byte piece `piece` of a row lies, of PIECES a row: banks differ between the 8 rows that ldmatrix reads at once.
template <int PIECES> __device__ inline int place(int row, int piece) {
  constexpr int ACROSS = PIECES < 8 ? 8 / PIECES : 1, CYCLE = PIECES < 8 ? PIECES : 8;
  return (row * PIECES + (piece ^ (row / ACROSS % CYCLE))) * 8;
}

__device__ inline float silu(float v) { return __fdividef(v, 1.0f + __expf(-v)); }

// Line `i` of a tile of both weights: 8 lines of gate, 8 of up, in turn.
__device__ inline int unit_of(int i) { return i / 16 * 8 + i % 8; }
__device__ inline bool is_up(int i) { return i % 16 >= 8; }

// Rows [row, row + ROWS) of a matrix, from column on, into shared memory; zeros beyond its end. PAIRED: see unit_of.
template <typename T, int ROWS, bool PAIRED>
__device__ inline void fetch(T* to, const Matrix& one, const Matrix& two, int row, int column, int rows, int columns) {
  constexpr int PIECES = BK / 8, STEP = 256 / PIECES;  // STEP: rows that all threads copy at once, a multiple of 16
  const int first = int(threadIdx.x) / PIECES, p = int(threadIdx.x) % PIECES;
  const int width = max(0, min(8, columns - column - 8 * p)) * int(sizeof(T));
  const bool second = PAIRED && is_up(first);
  const T* start = static_cast<const T*>(second ? two.data : one.data);
  const int64_t stride = second ? two.line : one.line;
  const int line = row + (PAIRED ? unit_of(first) : first), step = PAIRED ? STEP / 2 : STEP;
  const T* source = start + line * stride + column + 8 * p;
  #pragma unroll
  for (int i = 0; i < ROWS / STEP + (ROWS % STEP > 0); ++i, source += step * stride) {
    const bool inside = width && line + i * step < rows;
    if (STEP <= ROWS || first < ROWS) copy_async(to + place<PIECES>(first + i * STEP, p), inside ? source : start, inside ? width : 0);
  }
}

// GATED: c = silu(a · b1ᵀ) · (a · b2ᵀ), p.n is the number of hidden units; otherwise c = a · b1ᵀ.
template <typename T, bool GATED, int ROWS>
__global__ void __launch_bounds__(256) mlp_tensor(Matrix a, Matrix b1, Matrix b2, T* c, float* parts, Problem p) {
  constexpr int WARPS_M = ROWS == 16 ? 1 : 2, WARPS_N = 8 / WARPS_M;
  constexpr int MT = ROWS / WARPS_M / 16, NT = BN / WARPS_N / 8;  // tiles of mma a warp: MT of 16 rows, NT of 8 columns
  constexpr int A_SIZE = ROWS * BK, B_SIZE = BN * BK, WIDE = GATED ? BN / 2 : BN;  // columns of c
  static_assert(NT % 2 == 0, "ldmatrix fetches two columns of tiles at once");
  extern __shared__ __align__(128) char memory[];
  T *as = reinterpret_cast<T*>(memory), *bs = as + STAGES * A_SIZE;
  const int2 tile = tile_of(blockIdx.x, (p.m + ROWS - 1) / ROWS, (p.n + WIDE - 1) / WIDE);
  const int m0 = tile.x * ROWS, n0 = tile.y * WIDE, from = blockIdx.y * p.depth, to = min(p.k, from + p.depth);
  const int slices = max(0, (to - from + BK - 1) / BK);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int wm = warp % WARPS_M * (MT * 16), wn = warp / WARPS_M * (NT * 8);

  auto request = [&](int slice) {
    if (slice < slices) {
      const int k = from + slice * BK, stage = slice % STAGES;
      fetch<T, ROWS, false>(as + stage * A_SIZE, a, a, m0, k, p.m, to);
      fetch<T, BN, GATED>(bs + stage * B_SIZE, b1, b2, n0, k, p.n, to);
    }
    copy_async_commit();  // an empty group, too: the count of groups is the count of slices
  };
  for (int s = 0; s < STAGES - 1; ++s) request(s);

  float sum[MT][NT][4] = {};
  for (int slice = 0; slice < slices; ++slice) {
    copy_async_wait<STAGES - 2>();
    __syncthreads();  // this slice is there for all, and the one before it is read: its place can be refilled
    request(slice + STAGES - 1);
    const T *at = as + slice % STAGES * A_SIZE, *bt = bs + slice % STAGES * B_SIZE;
    #pragma unroll
    for (int k = 0; k < BK; k += 16) {
      uint32_t fa[MT][4], fb[NT / 2][4];
      #pragma unroll
      for (int i = 0; i < MT; ++i) ldmatrix(fa[i], at + place<BK / 8>(wm + i * 16 + lane % 16, k / 8 + lane / 16));
      #pragma unroll
      for (int j = 0; j < NT / 2; ++j)
        ldmatrix(fb[j], bt + place<BK / 8>(wn + j * 16 + lane / 16 * 8 + lane % 8, k / 8 + lane / 8 % 2));
      #pragma unroll
      for (int i = 0; i < MT; ++i)
        #pragma unroll
        for (int j = 0; j < NT; ++j) mma<T>(sum[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
    }
  }

  // A lane holds columns 2 (lane % 4) and the next, of rows lane / 4 and lane / 4 + 8 of each tile.
  float* mine = parts + int64_t(blockIdx.y) * p.m * p.n;
  #pragma unroll
  for (int i = 0; i < MT; ++i)
    #pragma unroll
    for (int j = 0; j < NT; j += GATED ? 2 : 1)
      #pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = m0 + wm + i * 16 + lane / 4 + 8 * h;
        const int column = n0 + (GATED ? (wn + j * 8) / 2 : wn + j * 8) + lane % 4 * 2;
        const int64_t at = int64_t(row) * p.line + column;
        float v0 = sum[i][j][2 * h], v1 = sum[i][j][2 * h + 1];
        if constexpr (GATED) v0 = silu(v0) * sum[i][j + 1][2 * h], v1 = silu(v1) * sum[i][j + 1][2 * h + 1];
        if (row >= p.m || column >= p.n) continue;
        if (parts) {
          mine[at] = v0;
          if (column + 1 < p.n) mine[at + 1] = v1;
        } else if (p.line % 2 == 0 && column + 1 < p.n) {  // both in one access
          T pair[2] = {narrow<T>(v0), narrow<T>(v1)};
          uint32_t both;
          memcpy(&both, pair, 4);
          *reinterpret_cast<uint32_t*>(c + at) = both;
        } else {
          c[at] = narrow<T>(v0);
          if (column + 1 < p.n) c[at + 1] = narrow<T>(v1);
        }
      }
}

// ---- float32: 128 x 128 of C a block, 8 x 8 a thread: columns 4 t to 4 t + 3, and those 8 (GATED) or 64 after them
template <bool GATED>
__global__ void __launch_bounds__(256) mlp_float(Matrix a, Matrix b1, Matrix b2, float* c, float* parts, Problem p) {
  constexpr int TILE = 128, WIDE = GATED ? TILE / 2 : TILE, DEEP = 16, EACH = TILE * DEEP / 256;
  __shared__ __align__(16) float as[2][DEEP][TILE + 4], bs[2][DEEP][TILE + 4];
  const int2 tile = tile_of(blockIdx.x, (p.m + TILE - 1) / TILE, (p.n + WIDE - 1) / WIDE);
  const int m0 = tile.x * TILE, n0 = tile.y * WIDE, from = blockIdx.y * p.depth, to = min(p.k, from + p.depth);
  constexpr int APART = GATED ? 8 : 64;  // the second four columns are the up projection's, of the first four's units
  const int t = threadIdx.x % 16, tx = GATED ? t / 2 * 16 + t % 2 * 4 : t * 4, ty = threadIdx.x / 16 * 4;
  float next_a[EACH], next_b[EACH], sum[8][8] = {};

  // Neighbouring threads read neighbouring elements, whichever dimension they are neighbours in.
  auto where = [&](const Matrix& x, int e) {
    const int i = e * 256 + int(threadIdx.x);
    return x.step == 1 ? make_int2(i / DEEP, i % DEEP) : make_int2(i % TILE, i / TILE);  // (line, depth)
  };
  auto read = [&](const Matrix& one, const Matrix& two, bool paired, int first, int lines, int k, float (&v)[EACH]) {
    #pragma unroll
    for (int e = 0; e < EACH; ++e) {
      const int2 at = where(one, e);
      const int line = first + (paired ? unit_of(at.x) : at.x);
      const float* x = static_cast<const float*>(paired && is_up(at.x) ? two.data : one.data);
      v[e] = line < lines && k + at.y < to ? x[line * one.line + (k + at.y) * one.step] : 0.0f;
    }
  };
  read(a, a, false, m0, p.m, from, next_a);
  read(b1, b2, GATED, n0, p.n, from, next_b);
  for (int k = from, buffer = 0; k < to; k += DEEP, buffer ^= 1) {
    #pragma unroll
    for (int e = 0; e < EACH; ++e) {
      const int2 ia = where(a, e), ib = where(b1, e);
      as[buffer][ia.y][ia.x] = next_a[e];
      bs[buffer][ib.y][ib.x] = next_b[e];
    }
    __syncthreads();  // with two buffers one barrier a slice is enough
    read(a, a, false, m0, p.m, k + DEEP, next_a);
    read(b1, b2, GATED, n0, p.n, k + DEEP, next_b);
    #pragma unroll
    for (int d = 0; d < DEEP; ++d) {
      float x[8], y[8];
      #pragma unroll
      for (int g = 0; g < 8; g += 4) {
        *reinterpret_cast<float4*>(x + g) = *reinterpret_cast<const float4*>(&as[buffer][d][ty + g * 16]);
        *reinterpret_cast<float4*>(y + g) = *reinterpret_cast<const float4*>(&bs[buffer][d][tx + g / 4 * APART]);
      }
      #pragma unroll
      for (int i = 0; i < 8; ++i)
        #pragma unroll
        for (int j = 0; j < 8; ++j) sum[i][j] += x[i] * y[j];
    }
  }
  float* out = parts ? parts + int64_t(blockIdx.y) * p.m * p.n : c;
  #pragma unroll
  for (int i = 0; i < 8; ++i)
    #pragma unroll
    for (int j = 0; j < (GATED ? 4 : 8); ++j) {
      const int row = m0 + ty + i / 4 * 64 + i % 4, column = n0 + (GATED ? t * 4 + j : tx + j / 4 * 64 + j % 4);
      const float v = GATED ? silu(sum[i][j]) * sum[i][(j + 4) % 8] : sum[i][j];
      if (row < p.m && column < p.n) out[int64_t(row) * p.line + column] = v;
    }
}

template <typename T>
__global__ void __launch_bounds__(256) add_parts(const float* parts, int count, int64_t size, T* c) {
  for (int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x; i < size; i += int64_t(gridDim.x) * 256) {
    float sum = 0;
    for (int s = 0; s < count; ++s) sum += parts[s * size + i];
    c[i] = narrow<T>(sum);
  }
}

int64_t tiles(int64_t m, int64_t n, bool wide, bool gated) {
  const int64_t rows = wide ? 128 : m <= SKINNY ? 16 : BM, columns = (wide ? 128 : BN) / (gated ? 2 : 1);
  return (m + rows - 1) / rows * ((n + columns - 1) / columns);
}

// How many blocks share the sum over the hidden units of one tile of y.
int64_t parts(TensorView x, int64_t hidden) {
  int processors = 1;
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, x.device().device_id);
  const int64_t blocks = std::max<int64_t>(1, tiles(x.size(0), x.size(1), x.dtype().bits == 32, false));
  return std::clamp<int64_t>(processors * WAVES / blocks, 1, std::max<int64_t>(1, hidden / (8 * BK)));
}

template <typename T, bool GATED, int ROWS>
void run(const Matrix& a, const Matrix& b1, const Matrix& b2, T* c, float* parts, const Problem& p, dim3 grid, cudaStream_t stream) {
  if constexpr (sizeof(T) == 4) {
    mlp_float<GATED><<<grid, 256, 0, stream>>>(a, b1, b2, c, parts, p);
  } else {
    constexpr int BYTES = STAGES * (ROWS + BN) * BK * int(sizeof(T));
    const auto kernel = mlp_tensor<T, GATED, ROWS>;
    TVM_FFI_CHECK_CUDA_ERROR(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES));
    kernel<<<grid, 256, BYTES, stream>>>(a, b1, b2, c, parts, p);
  }
}

template <typename T, bool GATED>
void product(const Matrix& a, const Matrix& b1, const Matrix& b2, T* c, float* parts, int count, int m, int n, int k, int line, cudaStream_t stream) {
  const Problem p = {m, n, k, std::max(1, (k + count * BK - 1) / (count * BK)) * BK, line};
  const dim3 grid(unsigned(tiles(m, n, sizeof(T) == 4, GATED)), count);
  if (sizeof(T) == 2 && m <= SKINNY) run<T, GATED, 16>(a, b1, b2, c, parts, p, grid, stream);
  else run<T, GATED, BM>(a, b1, b2, c, parts, p, grid, stream);
}

Matrix matrix(const TensorView& t) { return {t.data_ptr(), t.stride(0), t.stride(1)}; }

template <typename T>
void mlp(TensorView x, TensorView gate, TensorView up, TensorView down, TensorView hidden, TensorView partial, TensorView y) {
  const auto stream = static_cast<cudaStream_t>(TVMFFIEnvGetStream(x.device().device_type, x.device().device_id));
  const int m = int(x.size(0)), width = int(x.size(1)), units = int(gate.size(0)), count = std::max(1, int(partial.size(0)));
  float* parts = partial.numel() ? static_cast<float*>(partial.data_ptr()) : nullptr;
  T* out = static_cast<T*>(y.data_ptr());
  T* h = static_cast<T*>(hidden.data_ptr());
  // The hidden layer's lines are as long as cp.async wants them; what is beyond its units is never read.
  product<T, true>(matrix(x), matrix(gate), matrix(up), h, nullptr, 1, m, units, width, int(hidden.stride(0)), stream);
  const Matrix w = matrix(down);
  product<T, false>(matrix(hidden), w, w, out, parts, count, m, width, units, width, stream);
  const int64_t size = int64_t(m) * width;
  if (parts) add_parts<T><<<unsigned(std::min<int64_t>(4096, (size + 255) / 256)), 256, 0, stream>>>(parts, count, size, out);
}

void launch(TensorView x, TensorView gate, TensorView up, TensorView down, TensorView hidden, TensorView partial, TensorView y) {
  if (y.numel() == 0) return;
  const tvm::ffi::CUDADeviceGuard guard(x.device().device_id);
  const DLDataType t = x.dtype();
  if (t.bits == 32) mlp<float>(x, gate, up, down, hidden, partial, y);
  else if (t.code == kDLFloat) mlp<f16>(x, gate, up, down, hidden, partial, y);
  else mlp<bf16>(x, gate, up, down, hidden, partial, y);
  TVM_FFI_CHECK_CUDA_ERROR(cudaGetLastError());
}
"""

DEFINES = {"BM": BM, "BN": BN, "BK": BK, "STAGES": STAGES, "SKINNY": SKINNY, "GROUP": GROUP, "WAVES": WAVES}

module = tvm_ffi.cpp.load_inline(
    "fused_mlp",
    cuda_sources=SOURCE,
    functions=["launch", "parts"],
    extra_cuda_cflags=[f"-D{name}={value}" for name, value in DEFINES.items()],
)


def in_lines(x):
    """x with contiguous rows that start at multiples of 16 bytes, as cp.async wants them: itself, or a padded copy."""
    if x.stride(1) == 1 and x.stride(0) % 8 == 0 and x.data_ptr() % 16 == 0:
        return x
    padded = torch.empty((x.shape[0], (x.shape[1] + 7) // 8 * 8), dtype=x.dtype, device=x.device)
    padded[:, x.shape[1] :] = 0  # read as well, in whole pieces
    return padded[:, : x.shape[1]].copy_(x)


def kernel_fn(x, w_gate, w_up, w_down):
    if x.dtype != torch.float32:
        x, w_gate, w_up, w_down = (in_lines(t) for t in (x, w_gate, w_up, w_down))
    elif w_gate.stride() != w_up.stride():
        w_gate, w_up = w_gate.contiguous(), w_up.contiguous()
    units = w_gate.shape[0]
    hidden = torch.empty((x.shape[0], (units + 7) // 8 * 8), dtype=x.dtype, device=x.device)
    if units % 8:
        hidden[:, units:] = 0  # read in whole pieces, too
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    parts = module.parts(x, units)
    partial = torch.empty((parts if parts > 1 else 0, *y.shape), dtype=torch.float32, device=x.device)
    module.launch(x, w_gate, w_up, w_down, hidden, partial, y)
    return y
