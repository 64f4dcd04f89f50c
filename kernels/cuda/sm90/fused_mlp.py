"""SwiGLU feed-forward block for Hopper, CUDA C++: y = (silu(x · w_gateᵀ) · (x · w_upᵀ)) · w_downᵀ with wgmma and TMA.

x [M, D], w_gate and w_up [F, D], w_down [D, F] -> [M, D], any strides; float32, float16 or bfloat16, sums in float32.
Bytes: (2·M·D + 3·D·F) · itemsize, and the hidden layer [M, F] once out and, from the L2 for a part, once back. Flops: 6·M·D·F.
Two launches of one kernel. The first multiplies x by both weights at once: a slice of B is lines of w_gate and, under them, as many of
w_up, so that one wgmma leaves gate and up of the same hidden units in a thread's registers; silu(gate) · up is written, rounded to the
dtype as a model does. x is read once for both products, and neither ever reaches memory. The second is the product with w_down.
The kernel is that of matmul.py beside this: one block a multiprocessor takes task after task; a producer thread has the copy engine fill
a ring of STAGES slices; consumer warpgroups multiply them, 64 rows each. `full` completes when a stage's bytes have arrived, `empty` when
all consumer warps have read them; the n-th use of a stage waits for parity n % 2 of `full`, its refill for the other of `empty` (a fresh
barrier answers parity 1 at once). Slices are rows of 128 bytes whose 16-byte pieces are XORed with the row modulo 8.
Each launch but the first may begin before the one ahead of it has ended (programmatic dependent launch): what the other writes, it waits for.
float32 stays float32 (FFMA), never TF32.
Other GPUs: sm_90a alone (by hand: TVM_FFI_CUDA_ARCH_LIST=9.0a); ../fused_mlp.py runs elsewhere. On an H100 with fewer multiprocessors or less bandwidth: GROUP, STAGES.
"""

import torch
import tvm_ffi.cpp

KERNEL_TYPE = "fused_mlp"
BACKEND = "cuda"

BN = 256  # tune: 128, 256 | columns of y, or twice the hidden units, that a block computes, by 128 rows
STAGES = 4  # tune: 3, 4 | slices in shared memory
SMALL_BN = 128  # tune: 64, 128 | columns of y where tiles are few, by 64 rows
SMALL_STAGES = 8  # tune: 4, 6, 8 | slices in shared memory then
SMALL_GATED = 176  # tune: 128, 176 | twice the hidden units then: 11008 units in 126 tiles, one for each multiprocessor
SMALL_GATED_STAGES = 7  # tune: 4, 6, 7 | slices in shared memory then
GROUP = 16  # tune: 4, 8, 16, 32 | rows of tiles that are computed together, for the L2
WAVES = 1  # tune: 1, 2, 4 | tasks a multiprocessor under which the second product's sum is split

SOURCE = """
#include <cuda.h>
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

// ---- barriers in shared memory, and the copy engine
__device__ inline uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

__device__ inline void barrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
__device__ inline void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ inline void barrier_expect(uint64_t* barrier, int bytes) {  // an arrival; the phase ends with the bytes
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}
__device__ inline void barrier_wait(uint64_t* barrier, int parity) {  // for the end of a phase of this parity
  uint32_t done;
  do {
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(done) : "r"(shared_address(barrier)), "r"(parity) : "memory");
  } while (!done);
}
__device__ inline void copy_tile(void* to, const CUtensorMap* map, int column, int row, uint64_t* barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
               ::"r"(shared_address(to)), "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row) : "memory");
}
__device__ inline void prefetch_tile(const CUtensorMap* map, int column, int row) {  // into the L2
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];" ::"l"(map), "r"(column), "r"(row) : "memory");
}

// ---- early starts: the next launch may begin while this one runs; it waits before it touches what this one writes
__device__ inline void let_next_begin() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
__device__ inline void wait_for_earlier() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// ---- wgmma: d[64, N] = (keep ? d : 0) + a[64, 16] · b[16, N], issued by 4 warps together, ends in its own time
WGMMA_OF_EACH_SIZE
__device__ inline void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ inline void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int PENDING> __device__ inline void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
template <int N> __device__ inline void pin(float (&d)[N]) {  // no access to d may move across this
  #pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Where an operand lies: address, and two strides, in 16 bytes; bits 62 and 63 say 128-byte swizzle (1).
// Lines along K: `stride` from one group of 8 lines to the next; the other is not used. Lines along N: `stride` from one
// group of 8 k to the next, `leading` from one block of 64 columns to the next.
__device__ inline uint64_t descriptor(const void* p, int leading, int stride) {
  return uint64_t(shared_address(p) >> 4 & 0x3fff) | uint64_t(leading >> 4) << 16 | uint64_t(stride >> 4) << 32 | uint64_t(1) << 62;
}

struct Problem { int m, n, k, line, slices, parts; };  // line: elements between rows of c; slices of K in one task; parts: tasks a tile

// Tile (row, column): GROUP rows of tiles share the columns of B that are in the L2.
__device__ inline int2 tile_of(int index, int rows, int columns) {
  const int whole = GROUP * columns, first = index / whole * GROUP, group = min(rows - first, GROUP);
  return make_int2(first + index % whole % group, index % whole / group);
}

constexpr int BK = 64;  // halves in 128 bytes, the widest swizzle

__device__ inline float silu(float v) { return __fdividef(v, 1.0f + __expf(-v)); }

// GATED: c = silu(a · b1ᵀ) · (a · b2ᵀ), p.n is the number of hidden units; otherwise c = a · b1ᵀ.
template <typename T, bool GATED, int CONSUMERS, int COLUMNS, int DEPTH>
__global__ void __launch_bounds__(128 + 128 * CONSUMERS, 1)
mlp_wgmma(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b1, const __grid_constant__ CUtensorMap b2,
          T* c, float* sums, Problem p) {
  constexpr int ROWS = 64 * CONSUMERS, A_SIZE = ROWS * BK, B_SIZE = COLUMNS * BK;  // elements
  constexpr int WIDE = GATED ? COLUMNS / 2 : COLUMNS;  // columns of c
  extern __shared__ char memory[];
  __shared__ uint64_t full[DEPTH], empty[DEPTH];
  T* as = reinterpret_cast<T*>(memory + (1024 - shared_address(memory) % 1024) % 1024);  // the swizzle counts from here
  T* bs = as + DEPTH * A_SIZE;
  const int rows = (p.m + ROWS - 1) / ROWS, columns = (p.n + WIDE - 1) / WIDE, tasks = rows * columns * p.parts;
  const int all = (p.k + BK - 1) / BK, group = threadIdx.x / 128;

  if (threadIdx.x == 0) {
    for (int s = 0; s < DEPTH; ++s) barrier_init(&full[s], 1), barrier_init(&empty[s], 4 * CONSUMERS);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");  // the copy engine sees them initialised
    asm volatile("fence.proxy.async;" ::: "memory");
  }
  __syncthreads();
  let_next_begin();

  if (group == CONSUMERS) {  // the producer: one thread
    if constexpr (CONSUMERS == 2) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x % 128 == 0) {
      if (!GATED && blockIdx.x < tasks) {  // the weights do not wait for the hidden layer: the first slices, into the L2
        const int column = tile_of(blockIdx.x / p.parts, rows, columns).y * WIDE, from = blockIdx.x % p.parts * p.slices;
        for (int slice = from; slice < min(all, from + DEPTH); ++slice) prefetch_tile(&b1, slice * BK, column);
      }
      if (!GATED) wait_for_earlier();
      int use = 0;  // slices so far, over all tasks
      for (int task = blockIdx.x; task < tasks; task += gridDim.x) {
        const int2 tile = tile_of(task / p.parts, rows, columns);
        const int from = task % p.parts * p.slices, to = min(all, from + p.slices);
        for (int slice = from; slice < to; ++slice, ++use) {
          const int stage = use % DEPTH;
          barrier_wait(&empty[stage], (use / DEPTH & 1) ^ 1);
          barrier_expect(&full[stage], (A_SIZE + B_SIZE) * int(sizeof(T)));
          copy_tile(as + stage * A_SIZE, &a, slice * BK, tile.x * ROWS, &full[stage]);
          copy_tile(bs + stage * B_SIZE, &b1, slice * BK, tile.y * WIDE, &full[stage]);
          if (GATED) copy_tile(bs + stage * B_SIZE + WIDE * BK, &b2, slice * BK, tile.y * WIDE, &full[stage]);
        }
      }
    }
  } else {
    if constexpr (CONSUMERS == 2) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int warp = threadIdx.x % 128 / 32, lane = threadIdx.x % 32;
    float d[COLUMNS / 2];
    int use = 0;
    for (int task = blockIdx.x; task < tasks; task += gridDim.x) {
      const int2 tile = tile_of(task / p.parts, rows, columns);
      const int part = task % p.parts, from = part * p.slices, to = min(all, from + p.slices);
      if (from >= to) {
        #pragma unroll
        for (int i = 0; i < COLUMNS / 2; ++i) d[i] = 0;  // a part beyond the end
      }
      for (int slice = from; slice < to; ++slice, ++use) {
        const int stage = use % DEPTH;
        barrier_wait(&full[stage], use / DEPTH & 1);
        const T *at = as + stage * A_SIZE + group * 64 * BK, *bt = bs + stage * B_SIZE;
        wgmma_fence();
        #pragma unroll
        for (int k = 0; k < BK; k += 16) {
          wgmma<T, false>(d, descriptor(at + k, 16, 1024), descriptor(bt + k, 16, 1024), slice > from || k > 0);
        }
        wgmma_commit();
        wgmma_wait<1>();  // the slice before this one has been read: its stage may be filled again
        if (slice > from && lane == 0) barrier_arrive(&empty[(use - 1) % DEPTH]);
      }
      wgmma_wait<0>();
      pin(d);
      if (to > from && lane == 0) barrier_arrive(&empty[(use - 1) % DEPTH]);

      // Of 8 columns each a lane holds 2 (lane % 4) and the next, in rows lane / 4 and lane / 4 + 8 of its warp's 16.
      float* mine = sums + int64_t(part) * p.m * p.n;
      #pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = tile.x * ROWS + group * 64 + warp * 16 + h * 8 + lane / 4;
        #pragma unroll
        for (int j = 0; j < WIDE / 8; ++j) {
          const int column = tile.y * WIDE + j * 8 + lane % 4 * 2;
          const int64_t at = int64_t(row) * p.line + column;
          float v0 = d[j * 4 + 2 * h], v1 = d[j * 4 + 2 * h + 1];
          if constexpr (GATED) v0 = silu(v0) * d[WIDE / 2 + j * 4 + 2 * h], v1 = silu(v1) * d[WIDE / 2 + j * 4 + 2 * h + 1];
          if (row >= p.m || column >= p.n) continue;
          if (sums) {
            mine[at] = v0;
            if (column + 1 < p.n) mine[at + 1] = v1;
          } else if (p.line % 2 == 0 && column + 1 < p.n) {  // both in one access
            const T pair[2] = {narrow<T>(v0), narrow<T>(v1)};
            uint32_t both;
            memcpy(&both, pair, 4);
            *reinterpret_cast<uint32_t*>(c + at) = both;
          } else {
            c[at] = narrow<T>(v0);
            if (column + 1 < p.n) c[at + 1] = narrow<T>(v1);
          }
        }
      }
    }
  }
}

struct Matrix { const void* data; int64_t line, step; };  // element (i, j) at data[i * line + j * step]
struct Sum { int m, n, k, depth, line; };  // depth: how much of k one block sums up; line: elements between rows of c

// float32: line `i` of a tile of both weights: 8 lines of gate, 8 of up, in turn.
__device__ inline int unit_of(int i) { return i / 16 * 8 + i % 8; }
__device__ inline bool is_up(int i) { return i % 16 >= 8; }

// ---- float32: 128 x 128 of C a block, 8 x 8 a thread: columns 4 t to 4 t + 3, and those 8 (GATED) or 64 after them
template <bool GATED>
__global__ void __launch_bounds__(256) mlp_float(Matrix a, Matrix b1, Matrix b2, float* c, float* parts, Sum p) {
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
  wait_for_earlier();
  for (int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x; i < size; i += int64_t(gridDim.x) * 256) {
    float sum = 0;
    for (int s = 0; s < count; ++s) sum += parts[s * size + i];
    c[i] = narrow<T>(sum);
  }
}

// ---- the host's side
int processors_of(const TensorView& x) {
  int processors = 1;
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, x.device().device_id);
  return processors;
}

int64_t tiles(int64_t m, int64_t n, int rows, int columns) { return (m + rows - 1) / rows * ((n + columns - 1) / columns); }

// Launches a kernel that calls wait_for_earlier: it may begin before what is ahead of it in the stream has ended.
template <typename... P, typename... A>
void launch_early(void (*kernel)(P...), unsigned blocks, unsigned threads, int bytes, cudaStream_t stream, A... arguments) {
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  const cudaLaunchConfig_t how = {dim3(blocks), dim3(threads), size_t(bytes), stream, &early, 1};
  TVM_FFI_CHECK_CUDA_ERROR(cudaLaunchKernelEx(&how, kernel, arguments...));
}

// Large tiles where they occupy most multiprocessors; elsewhere small ones, whose sums over K are split further.
bool is_large(int64_t m, int64_t n, bool gated, int processors) {
  return m > 64 && tiles(m, n, 128, gated ? BN / 2 : BN) * 4 >= processors * 3;
}

// How many tasks share the sum over the hidden units of one tile of y.
int64_t parts(TensorView x, int64_t hidden) {
  const int processors = processors_of(x);
  const bool wide = x.dtype().bits == 32;
  if (!wide && is_large(x.size(0), x.size(1), false, processors)) return 1;
  const int64_t blocks = wide ? tiles(x.size(0), x.size(1), 128, 128) : tiles(x.size(0), x.size(1), 64, SMALL_BN);
  return std::clamp<int64_t>(processors * WAVES / std::max<int64_t>(1, blocks), 1, std::max<int64_t>(1, hidden / (4 * BK)));
}

// A matrix of `rows` lines as the copy engine sees it, fetched in boxes of [box_rows, 64] elements.
template <typename T> CUtensorMap tensor_map(const Matrix& x, int64_t columns, int64_t rows, int box_rows) {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    TVM_FFI_CHECK_CUDA_ERROR(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  TVM_FFI_CHECK(encode, RuntimeError) << "fused_mlp: expected a driver that knows cuTensorMapEncodeTiled (CUDA 12 or later)";
  CUtensorMap map;
  const cuuint64_t sizes[2] = {cuuint64_t(columns), cuuint64_t(rows)};
  const cuuint64_t strides[1] = {cuuint64_t(x.line) * sizeof(T)};  // bytes; the first is the element's size
  const cuuint32_t box[2] = {64, cuuint32_t(box_rows)}, steps[2] = {1, 1};
  const CUresult result = encode(
      &map, std::is_same<T, f16>::value ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2,
      const_cast<void*>(x.data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  TVM_FFI_CHECK(result == CUDA_SUCCESS, RuntimeError) << "fused_mlp: cuTensorMapEncodeTiled refuses a matrix: error " << int(result);
  return map;
}

template <typename T, bool GATED, int CONSUMERS, int COLUMNS, int DEPTH>
void run(const Matrix& a, const Matrix& b1, const Matrix& b2, T* c, float* sums, const Problem& p, int processors, cudaStream_t stream) {
  constexpr int ROWS = 64 * CONSUMERS, WIDE = GATED ? COLUMNS / 2 : COLUMNS;
  constexpr int BYTES = DEPTH * (ROWS + COLUMNS) * BK * int(sizeof(T)) + 1024;
  const CUtensorMap map_a = tensor_map<T>(a, p.k, p.m, ROWS);
  const CUtensorMap map_1 = tensor_map<T>(b1, p.k, p.n, WIDE), map_2 = GATED ? tensor_map<T>(b2, p.k, p.n, WIDE) : map_1;
  const auto kernel = mlp_wgmma<T, GATED, CONSUMERS, COLUMNS, DEPTH>;
  TVM_FFI_CHECK_CUDA_ERROR(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES));
  const unsigned blocks = unsigned(std::min<int64_t>(processors, tiles(p.m, p.n, ROWS, WIDE) * p.parts));
  if (GATED) kernel<<<blocks, 128 + 128 * CONSUMERS, BYTES, stream>>>(map_a, map_1, map_2, c, sums, p);
  else launch_early(kernel, blocks, 128 + 128 * CONSUMERS, BYTES, stream, map_a, map_1, map_2, c, sums, p);
}

template <typename T, bool GATED>
void product(const Matrix& a, const Matrix& b1, const Matrix& b2, T* c, float* sums, int count, int m, int n, int k, int line,
             int processors, cudaStream_t stream) {
  const int slices = ((k + BK - 1) / BK + count - 1) / count;
  if constexpr (sizeof(T) == 4) {
    const dim3 grid(unsigned(tiles(m, n, 128, GATED ? 64 : 128)), count);
    mlp_float<GATED><<<grid, 256, 0, stream>>>(a, b1, b2, c, sums, Sum{m, n, k, slices * BK, line});
  } else {
    const Problem p = {m, n, k, line, slices, count};
    if (is_large(m, n, GATED, processors)) run<T, GATED, 2, BN, STAGES>(a, b1, b2, c, sums, p, processors, stream);
    else run<T, GATED, 1, GATED ? SMALL_GATED : SMALL_BN, GATED ? SMALL_GATED_STAGES : SMALL_STAGES>(a, b1, b2, c, sums, p, processors, stream);
  }
}

Matrix matrix(const TensorView& t) { return {t.data_ptr(), t.stride(0), t.stride(1)}; }

template <typename T>
void mlp(TensorView x, TensorView gate, TensorView up, TensorView down, TensorView hidden, TensorView partial, TensorView y) {
  const auto stream = static_cast<cudaStream_t>(TVMFFIEnvGetStream(x.device().device_type, x.device().device_id));
  const int processors = processors_of(x), m = int(x.size(0)), width = int(x.size(1)), units = int(gate.size(0)), count = std::max(1, int(partial.size(0)));
  float* parts = partial.numel() ? static_cast<float*>(partial.data_ptr()) : nullptr;
  T* out = static_cast<T*>(y.data_ptr());
  T* h = static_cast<T*>(hidden.data_ptr());
  // The hidden layer's lines are as long as cp.async wants them; what is beyond its units is never read.
  product<T, true>(matrix(x), matrix(gate), matrix(up), h, nullptr, 1, m, units, width, int(hidden.stride(0)), processors, stream);
  const Matrix w = matrix(down);
  product<T, false>(matrix(hidden), w, w, out, parts, count, m, width, units, width, processors, stream);
  const int64_t size = int64_t(m) * width;
  if (parts) launch_early(add_parts<T>, unsigned(std::min<int64_t>(4096, (size + 255) / 256)), 256, 0, stream, parts, count, size, out);
}

void launch(TensorView x, TensorView gate, TensorView up, TensorView down, TensorView hidden, TensorView partial, TensorView y) {
  if (y.numel() == 0) return;
  const tvm::ffi::CUDADeviceGuard guard(x.device().device_id);
  TVM_FFI_CHECK(gate.size(0) > 0, ValueError) << "fused_mlp: expected at least one hidden unit, got none";
  const DLDataType t = x.dtype();
  if (t.bits == 32) mlp<float>(x, gate, up, down, hidden, partial, y);
  else if (t.code == kDLFloat) mlp<f16>(x, gate, up, down, hidden, partial, y);
  else mlp<bf16>(x, gate, up, down, hidden, partial, y);
  TVM_FFI_CHECK_CUDA_ERROR(cudaGetLastError());
}
"""


def wgmma(columns):
    """The instruction of this many columns: its accumulators are spelled out, columns / 2 registers a thread."""
    n = columns // 2
    registers, operands = (", ".join(f"%{i}" for i in range(n)), ", ".join(f'"+f"(d[{i}])' for i in range(n)))

    def instruction(dtype):
        return (
            f'asm volatile("{{ .reg .pred p; setp.ne.b32 p, %{n + 2}, 0; '
            f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{dtype}.{dtype} "
            f'{{{registers}}}, %{n}, %{n + 1}, p, 1, 1, 0, %{n + 3}; }}" '
            f': {operands} : "l"(a), "l"(b), "r"(int(keep)), "n"(int(N_LINES)));'
        )

    return f"""
template <typename T, bool N_LINES> __device__ inline void wgmma(float (&d)[{n}], uint64_t a, uint64_t b, bool keep) {{
  if constexpr (std::is_same<T, f16>::value)
    {instruction("f16")}
  else
    {instruction("bf16")}
}}
"""


DEFINES = {
    "BN": BN,
    "STAGES": STAGES,
    "SMALL_BN": SMALL_BN,
    "SMALL_STAGES": SMALL_STAGES,
    "SMALL_GATED": SMALL_GATED,
    "SMALL_GATED_STAGES": SMALL_GATED_STAGES,
    "GROUP": GROUP,
    "WAVES": WAVES,
}

module = tvm_ffi.cpp.load_inline(
    "fused_mlp",
    cuda_sources=SOURCE.replace("WGMMA_OF_EACH_SIZE", "".join(wgmma(n) for n in sorted({BN, SMALL_BN, SMALL_GATED}))),
    functions=["launch", "parts"],
    extra_cuda_cflags=[f"-D{name}={value}" for name, value in DEFINES.items()],
)


def in_lines(x):
    """x with contiguous rows that start at multiples of 16 bytes, as the copy engine wants: itself, or a padded copy."""
    if x.stride(1) == 1 and x.stride(0) % 8 == 0 and x.stride(0) >= x.shape[1] and x.data_ptr() % 16 == 0:
        return x
    padded = torch.empty((x.shape[0], max(1, (x.shape[1] + 7) // 8) * 8), dtype=x.dtype, device=x.device)
    padded[:, x.shape[1] :] = 0  # read as well, in whole pieces
    return padded[:, : x.shape[1]].copy_(x)


def kernel_fn(x, w_gate, w_up, w_down):
    if x.dtype != torch.float32:
        x, w_gate, w_up, w_down = (in_lines(t) for t in (x, w_gate, w_up, w_down))
    elif w_gate.stride() != w_up.stride():
        w_gate, w_up = w_gate.contiguous(), w_up.contiguous()
    units = w_gate.shape[0]
    hidden = torch.empty((x.shape[0], (units + 7) // 8 * 8), dtype=x.dtype, device=x.device)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    parts = module.parts(x, units)
    partial = torch.empty((parts if parts > 1 else 0, *y.shape), dtype=torch.float32, device=x.device)
    module.launch(x, w_gate, w_up, w_down, hidden, partial, y)
    return y
