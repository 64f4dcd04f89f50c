"""Matrix product for Hopper, CUDA C++: C = A · B with wgmma and TMA.

A [M, K], B [K, N] -> [M, N], any strides; float32, float16 or bfloat16, sums in float32.
Bytes: (M·K + K·N + M·N) · itemsize. Flops: 2·M·N·K: with M and N in the hundreds arithmetic decides, with a few rows the bytes of B do.
One block a multiprocessor takes task after task (a tile of C, or a part of its sum over K). One thread of its producer warpgroup asks
the copy engine (TMA) for slices of A and B, 64 deep, into a ring of STAGES in shared memory; consumer warpgroups multiply them where
they lie (wgmma) into registers, 64 rows of the tile each. The producer is ahead by up to STAGES slices, across tasks: the next tile
arrives while this one is stored. For every stage there are two mbarriers. `full` completes when the bytes of both slices have arrived;
`empty` when all consumer warps have read them. A stage's n-th use waits for the completion of phase n of `full`, parity n % 2; its refill
for phase n - 1 of `empty`, and the first needs none: waiting for parity 1 of a fresh barrier returns at once.
In shared memory a slice is rows of 128 bytes whose 16-byte pieces are XORed with the row modulo 8 (TMA's 128-byte swizzle, which wgmma
undoes): groups of 8 rows are 1024 bytes. TMA fills zeros beyond the edges. float32 stays float32 (FFMA), never TF32.
Where the sum over K is split, the launch that adds the parts up begins early and waits (programmatic dependent launch).
One row has no use for tensor cores: each element of B is multiplied once. So B [K, N] goes from memory to registers, 64 KiB on their way
to a multiprocessor, and a cluster of ROW_BLOCKS blocks shares a sum over K: they read each other's sums where they lie, in shared
memory, without a second launch. Up to 64 rows read B once as well, and say so (evict_first): it need not push A out of the L2.
Other GPUs: sm_90a alone (by hand: TVM_FFI_CUDA_ARCH_LIST=9.0a); ../matmul.py runs elsewhere. On an H100 with fewer multiprocessors or less bandwidth: GROUP, STAGES, ROW_AHEAD.
"""

import torch
import tvm_ffi.cpp

KERNEL_TYPE = "matmul"
BACKEND = "cuda"

BN = 256  # tune: 128, 192, 256 | columns of C a block computes, by 128 rows
STAGES = 4  # tune: 3, 4 | slices in shared memory
SMALL_BN = 128  # tune: 64, 128 | columns of C a block computes where tiles are few, by 64 rows
SMALL_STAGES = 6  # tune: 4, 6, 8 | slices in shared memory then
GROUP = 8  # tune: 1, 4, 8, 16 | rows of tiles that are computed together, for the L2
WAVES = 1  # tune: 1, 2, 4 | tasks a multiprocessor under which the sum over K is split
ROW_WARPS = 8  # tune: 8, 16, 32 | warps a block that multiplies one row
ROW_BLOCKS = 8  # tune: 1, 2, 4, 8 | blocks that share its sum over K, a cluster
ROW_AHEAD = 16  # tune: 4, 8, 16 | 16-byte pieces of B in flight a thread then

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
// The same for what nobody reads again: it leaves the L2 first.
__device__ inline void copy_tile_once(void* to, const CUtensorMap* map, int column, int row, uint64_t* barrier) {
  asm volatile("{ .reg .b64 once; createpolicy.fractional.L2::evict_first.b64 once, 1.0; "
               "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4}], [%2], once; }"
               ::"r"(shared_address(to)), "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row) : "memory");
}

// ---- early starts: the next launch may begin while this one runs; it waits before it touches what this one writes
__device__ inline void let_next_begin() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
__device__ inline void wait_for_earlier() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// ---- clusters: blocks that run at one time and read each other's shared memory
__device__ inline void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}
__device__ inline float peer(const float* p, int rank) {  // what lies at p in the shared memory of the cluster's block `rank`
  float value;
  asm volatile("{ .reg .b32 there; mapa.shared::cluster.u32 there, %1, %2; ld.shared::cluster.f32 %0, [there]; }"
               : "=f"(value) : "r"(shared_address(p)), "r"(rank) : "memory");
  return value;
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

struct Problem { int m, n, k, slices, parts; };  // slices of K in one task; parts: tasks a tile

// Tile (row, column): GROUP rows of tiles share the columns of B that are in the L2.
__device__ inline int2 tile_of(int index, int rows, int columns) {
  const int whole = GROUP * columns, first = index / whole * GROUP, group = min(rows - first, GROUP);
  return make_int2(first + index % whole % group, index % whole / group);
}

constexpr int BK = 64;  // halves in 128 bytes, the widest swizzle

// K_LINES: B lies as [N, K], K contiguous, as nn.Linear keeps its weight; otherwise [K, N], N contiguous.
template <typename T, bool K_LINES, int CONSUMERS, int COLUMNS, int DEPTH>
__global__ void __launch_bounds__(128 + 128 * CONSUMERS, 1)
matmul_wgmma(const __grid_constant__ CUtensorMap a, const __grid_constant__ CUtensorMap b, T* c, float* sums, Problem p) {
  constexpr int ROWS = 64 * CONSUMERS, A_SIZE = ROWS * BK, B_SIZE = COLUMNS * BK;  // elements
  extern __shared__ char memory[];
  __shared__ uint64_t full[DEPTH], empty[DEPTH];
  T* as = reinterpret_cast<T*>(memory + (1024 - shared_address(memory) % 1024) % 1024);  // the swizzle counts from here
  T* bs = as + DEPTH * A_SIZE;
  const int rows = (p.m + ROWS - 1) / ROWS, columns = (p.n + COLUMNS - 1) / COLUMNS, tasks = rows * columns * p.parts;
  const int all = (p.k + BK - 1) / BK, group = threadIdx.x / 128;

  if (threadIdx.x == 0) {
    for (int s = 0; s < DEPTH; ++s) barrier_init(&full[s], 1), barrier_init(&empty[s], 4 * CONSUMERS);
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");  // the copy engine sees them initialised
    asm volatile("fence.proxy.async;" ::: "memory");
  }
  __syncthreads();
  let_next_begin();

  auto copy_b = [&](T* to, int column, int row, uint64_t* barrier) {
    if (CONSUMERS == 1 && rows == 1) copy_tile_once(to, &b, column, row, barrier);
    else copy_tile(to, &b, column, row, barrier);
  };
  if (group == CONSUMERS) {  // the producer: one thread
    if constexpr (CONSUMERS == 2) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x % 128 == 0) {
      int use = 0;  // slices so far, over all tasks
      for (int task = blockIdx.x; task < tasks; task += gridDim.x) {
        const int2 tile = tile_of(task / p.parts, rows, columns);
        const int from = task % p.parts * p.slices, to = min(all, from + p.slices);
        for (int slice = from; slice < to; ++slice, ++use) {
          const int stage = use % DEPTH;
          barrier_wait(&empty[stage], (use / DEPTH & 1) ^ 1);
          barrier_expect(&full[stage], (A_SIZE + B_SIZE) * int(sizeof(T)));
          copy_tile(as + stage * A_SIZE, &a, slice * BK, tile.x * ROWS, &full[stage]);
          if (K_LINES)
            copy_b(bs + stage * B_SIZE, slice * BK, tile.y * COLUMNS, &full[stage]);
          else
            for (int n = 0; n < COLUMNS; n += 64)  // a block of 64 columns: 64 rows of 128 bytes
              copy_b(bs + stage * B_SIZE + n * BK, tile.y * COLUMNS + n, slice * BK, &full[stage]);
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
          // 16 further along K: 32 bytes on in a line, or 16 lines of 128 bytes on.
          const uint64_t da = descriptor(at + k, 16, 1024);
          const uint64_t db = K_LINES ? descriptor(bt + k, 16, 1024) : descriptor(bt + k * 64, 64 * BK * int(sizeof(T)), 1024);
          wgmma<T, !K_LINES>(d, da, db, slice > from || k > 0);
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
        for (int j = 0; j < COLUMNS / 8; ++j) {
          const int column = tile.y * COLUMNS + j * 8 + lane % 4 * 2;
          const int64_t at = int64_t(row) * p.n + column;
          const float v0 = d[j * 4 + 2 * h], v1 = d[j * 4 + 2 * h + 1];
          if (row >= p.m || column >= p.n) continue;
          if (sums) {
            mine[at] = v0;
            if (column + 1 < p.n) mine[at + 1] = v1;
          } else if (p.n % 2 == 0) {  // both in one access
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

// ---- one row of A: a warp reads 512 bytes of a line of B, ROW_AHEAD of its lines before it multiplies the first.
// gridDim = (columns / COLUMNS, ROW_BLOCKS), the second a cluster, whose blocks take as many lines of B each.
template <typename T>
__global__ void __launch_bounds__(32 * ROW_WARPS, ROW_WARPS == 8 ? 2 : 1)
matmul_row(const T* a, int64_t step, const T* b, int64_t line, T* c, int n, int k) {
  constexpr int N = 16 / sizeof(T), COLUMNS = 32 * N, SHARE = COLUMNS / ROW_BLOCKS;
  extern __shared__ char memory[];
  float *sums = reinterpret_cast<float*>(memory), *mine = sums + ROW_WARPS * COLUMNS;  // [warps, columns], [columns]
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = int(blockIdx.x) * COLUMNS + lane * N;
  const int each = (k + ROW_BLOCKS - 1) / ROW_BLOCKS, from = int(blockIdx.y) * each, to = min(k, from + each);
  const T* in = b + (column < n ? column : 0);  // lanes beyond the end do what the first does, and nobody asks for it
  float sum[N] = {};
  auto take = [&](int first, auto whole) {
    uint4 pack[ROW_AHEAD];
    float factor[ROW_AHEAD];
    #pragma unroll
    for (int j = 0; j < ROW_AHEAD; ++j) {
      const int64_t i = first + j * ROW_WARPS;
      const bool inside = decltype(whole)::value || i < to;
      pack[j] = inside ? __ldcs(reinterpret_cast<const uint4*>(in + i * line)) : make_uint4(0, 0, 0, 0);
      factor[j] = inside ? float(a[i * step]) : 0.0f;
    }
    #pragma unroll
    for (int j = 0; j < ROW_AHEAD; ++j) {
      T values[N];
      memcpy(values, &pack[j], 16);
      #pragma unroll
      for (int e = 0; e < N; ++e) sum[e] += factor[j] * float(values[e]);
    }
  };
  int i = from + warp;
  for (; i + (ROW_AHEAD - 1) * ROW_WARPS < to; i += ROW_AHEAD * ROW_WARPS) take(i, std::true_type());
  if (i < to) take(i, std::false_type());

  #pragma unroll
  for (int e = 0; e < N; ++e) sums[warp * COLUMNS + lane * N + e] = sum[e];
  __syncthreads();
  for (int j = threadIdx.x; j < COLUMNS; j += 32 * ROW_WARPS) {
    float all = 0;
    #pragma unroll
    for (int w = 0; w < ROW_WARPS; ++w) all += sums[w * COLUMNS + j];
    mine[j] = all;
  }
  cluster_sync();
  for (int j = int(blockIdx.y) * SHARE + threadIdx.x; j < int(blockIdx.y + 1) * SHARE; j += 32 * ROW_WARPS) {
    float all = 0;
    #pragma unroll
    for (int r = 0; r < ROW_BLOCKS; ++r) all += peer(mine + j, r);
    if (int(blockIdx.x) * COLUMNS + j < n) c[int(blockIdx.x) * COLUMNS + j] = narrow<T>(all);
  }
  cluster_sync();  // a block that ends takes its shared memory with it
}

struct Matrix { const void* data; int64_t line, step; };  // element (i, j) at data[i * line + j * step]
struct Sum { int m, n, k, depth; };  // depth: how much of k one block sums up

// ---- float32: 128 x 128 of C a block, 8 x 8 a thread (two groups of four rows and columns each: no bank conflicts)
__global__ void __launch_bounds__(256) matmul_float(Matrix a, Matrix b, float* c, float* parts, Sum p) {
  constexpr int TILE = 128, DEEP = 16, EACH = TILE * DEEP / 256;
  __shared__ __align__(16) float as[2][DEEP][TILE + 4], bs[2][DEEP][TILE + 4];
  const int2 tile = tile_of(blockIdx.x, (p.m + TILE - 1) / TILE, (p.n + TILE - 1) / TILE);
  const int m0 = tile.x * TILE, n0 = tile.y * TILE, from = blockIdx.y * p.depth, to = min(p.k, from + p.depth);
  const int tx = threadIdx.x % 16 * 4, ty = threadIdx.x / 16 * 4;
  float next_a[EACH], next_b[EACH], sum[8][8] = {};

  // Neighbouring threads read neighbouring elements, whichever dimension they are neighbours in.
  auto where = [&](const Matrix& x, int e) {
    const int i = e * 256 + int(threadIdx.x);
    return x.step == 1 ? make_int2(i / DEEP, i % DEEP) : make_int2(i % TILE, i / TILE);  // (line, depth)
  };
  auto read = [&](const Matrix& x, int line, int lines, int k, float (&v)[EACH]) {
    #pragma unroll
    for (int e = 0; e < EACH; ++e) {
      const int2 at = where(x, e);
      const bool inside = line + at.x < lines && k + at.y < to;
      v[e] = inside ? static_cast<const float*>(x.data)[(line + at.x) * x.line + (k + at.y) * x.step] : 0.0f;
    }
  };
  const Matrix bt = {b.data, b.step, b.line};  // B by its columns
  read(a, m0, p.m, from, next_a);
  read(bt, n0, p.n, from, next_b);
  for (int k = from, buffer = 0; k < to; k += DEEP, buffer ^= 1) {
    #pragma unroll
    for (int e = 0; e < EACH; ++e) {
      const int2 ia = where(a, e), ib = where(bt, e);
      as[buffer][ia.y][ia.x] = next_a[e];
      bs[buffer][ib.y][ib.x] = next_b[e];
    }
    __syncthreads();  // with two buffers one barrier a slice is enough
    read(a, m0, p.m, k + DEEP, next_a);
    read(bt, n0, p.n, k + DEEP, next_b);
    #pragma unroll
    for (int d = 0; d < DEEP; ++d) {
      float x[8], y[8];
      #pragma unroll
      for (int g = 0; g < 8; g += 4) {
        *reinterpret_cast<float4*>(x + g) = *reinterpret_cast<const float4*>(&as[buffer][d][ty + g * 16]);
        *reinterpret_cast<float4*>(y + g) = *reinterpret_cast<const float4*>(&bs[buffer][d][tx + g * 16]);
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
    for (int j = 0; j < 8; ++j) {
      const int row = m0 + ty + i / 4 * 64 + i % 4, column = n0 + tx + j / 4 * 64 + j % 4;
      if (row < p.m && column < p.n) out[int64_t(row) * p.n + column] = sum[i][j];
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

template <typename... P, typename... A>
void launch_with(cudaLaunchAttribute how, void (*kernel)(P...), dim3 grid, unsigned threads, int bytes, cudaStream_t stream, A... arguments) {
  const cudaLaunchConfig_t config = {grid, dim3(threads), size_t(bytes), stream, &how, 1};
  TVM_FFI_CHECK_CUDA_ERROR(cudaLaunchKernelEx(&config, kernel, arguments...));
}

// Large tiles where they occupy most multiprocessors; elsewhere small ones, whose sums over K are split further.
bool is_large(int64_t m, int64_t n, int processors) { return m > 64 && tiles(m, n, 128, BN) * 4 >= processors * 3; }

// One row, and a B whose lines are contiguous and start at multiples of 16 bytes.
bool is_row(const TensorView& a, const TensorView& b) {
  const int64_t size = a.dtype().bits / 8;
  return a.size(0) == 1 && b.stride(1) == 1 && b.stride(0) * size % 16 == 0 && reinterpret_cast<uintptr_t>(b.data_ptr()) % 16 == 0;
}

// How many tasks share the sum over K of one tile.
int64_t parts(TensorView a, TensorView b) {
  const int processors = processors_of(a);
  const int64_t m = a.size(0), n = b.size(1);
  const bool wide = a.dtype().bits == 32;
  if (is_row(a, b) || (!wide && is_large(m, n, processors))) return 1;
  const int64_t blocks = std::max<int64_t>(1, wide ? tiles(m, n, 128, 128) : tiles(m, n, 64, SMALL_BN));
  return std::clamp<int64_t>(processors * WAVES / blocks, 1, std::max<int64_t>(1, a.size(1) / (4 * BK)));
}

// A matrix of `rows` lines as the copy engine sees it, fetched in boxes of [box_rows, 64] elements.
template <typename T> CUtensorMap tensor_map(const Matrix& x, int64_t columns, int64_t rows, int box_rows) {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    TVM_FFI_CHECK_CUDA_ERROR(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  TVM_FFI_CHECK(encode, RuntimeError) << "matmul: expected a driver that knows cuTensorMapEncodeTiled (CUDA 12 or later)";
  CUtensorMap map;
  const cuuint64_t sizes[2] = {cuuint64_t(columns), cuuint64_t(rows)};
  const cuuint64_t strides[1] = {cuuint64_t(x.line) * sizeof(T)};  // bytes; the first is the element's size
  const cuuint32_t box[2] = {64, cuuint32_t(box_rows)}, steps[2] = {1, 1};
  const CUresult result = encode(
      &map, std::is_same<T, f16>::value ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2,
      const_cast<void*>(x.data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  TVM_FFI_CHECK(result == CUDA_SUCCESS, RuntimeError) << "matmul: cuTensorMapEncodeTiled refuses a matrix: error " << int(result);
  return map;
}

template <typename T, bool K_LINES, int CONSUMERS, int COLUMNS, int DEPTH>
void run(const Matrix& a, const Matrix& b, T* c, float* sums, const Problem& p, int processors, cudaStream_t stream) {
  constexpr int ROWS = 64 * CONSUMERS, BYTES = DEPTH * (ROWS + COLUMNS) * BK * int(sizeof(T)) + 1024;
  const CUtensorMap map_a = tensor_map<T>(a, p.k, p.m, ROWS);
  const CUtensorMap map_b = K_LINES ? tensor_map<T>(b, p.k, p.n, COLUMNS) : tensor_map<T>(b, p.n, p.k, BK);
  const auto kernel = matmul_wgmma<T, K_LINES, CONSUMERS, COLUMNS, DEPTH>;
  TVM_FFI_CHECK_CUDA_ERROR(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES));
  const unsigned blocks = unsigned(std::min<int64_t>(processors, tiles(p.m, p.n, ROWS, COLUMNS) * p.parts));
  kernel<<<blocks, 128 + 128 * CONSUMERS, BYTES, stream>>>(map_a, map_b, c, sums, p);
}

template <typename T> void matmul(TensorView A, TensorView B, TensorView partial, TensorView C) {
  const auto stream = static_cast<cudaStream_t>(TVMFFIEnvGetStream(A.device().device_type, A.device().device_id));
  const int m = int(A.size(0)), n = int(B.size(1)), k = int(A.size(1)), count = std::max(1, int(partial.size(0)));
  const int processors = processors_of(A), slices = ((k + BK - 1) / BK + count - 1) / count;
  const Problem p = {m, n, k, slices, count};
  float* sums = partial.numel() ? static_cast<float*>(partial.data_ptr()) : nullptr;
  T* c = static_cast<T*>(C.data_ptr());
  const Matrix a = {A.data_ptr(), A.stride(0), A.stride(1)};
  if (k == 0) {  // a map of nothing is refused
    TVM_FFI_CHECK_CUDA_ERROR(cudaMemsetAsync(c, 0, int64_t(m) * n * sizeof(T), stream));
    return;
  }
  cudaLaunchAttribute how = {};
  if (is_row(A, B)) {
    constexpr int COLUMNS = 32 * 16 / sizeof(T), BYTES = (ROW_WARPS + 1) * COLUMNS * 4;
    how.id = cudaLaunchAttributeClusterDimension;
    how.val.clusterDim.x = how.val.clusterDim.z = 1, how.val.clusterDim.y = ROW_BLOCKS;
    launch_with(how, matmul_row<T>, dim3((n + COLUMNS - 1) / COLUMNS, ROW_BLOCKS), 32 * ROW_WARPS, BYTES, stream,
                static_cast<const T*>(a.data), a.step, static_cast<const T*>(B.data_ptr()), B.stride(0), c, n, k);
    return;
  }
  if constexpr (sizeof(T) == 4) {
    const Sum all = {m, n, k, slices * BK};
    const dim3 grid(unsigned(tiles(m, n, 128, 128)), count);
    matmul_float<<<grid, 256, 0, stream>>>(a, {B.data_ptr(), B.stride(0), B.stride(1)}, c, sums, all);
  } else {
    const bool large = is_large(m, n, processors);
    if (B.stride(1) == 1) {
      const Matrix b = {B.data_ptr(), B.stride(0), 1};
      if (large) run<T, false, 2, BN, STAGES>(a, b, c, sums, p, processors, stream);
      else run<T, false, 1, SMALL_BN, SMALL_STAGES>(a, b, c, sums, p, processors, stream);
    } else {
      const Matrix b = {B.data_ptr(), B.stride(1), 1};
      if (large) run<T, true, 2, BN, STAGES>(a, b, c, sums, p, processors, stream);
      else run<T, true, 1, SMALL_BN, SMALL_STAGES>(a, b, c, sums, p, processors, stream);
    }
  }
  const int64_t size = int64_t(m) * n;
  if (!sums) return;
  how.id = cudaLaunchAttributeProgrammaticStreamSerialization;  // may begin before what is ahead of it in the stream has ended
  how.val.programmaticStreamSerializationAllowed = 1;
  launch_with(how, add_parts<T>, dim3(unsigned(std::min<int64_t>(4096, (size + 255) / 256))), 256, 0, stream, sums, count, size, c);
}

void launch(TensorView A, TensorView B, TensorView partial, TensorView C) {
  if (C.numel() == 0) return;
  const tvm::ffi::CUDADeviceGuard guard(A.device().device_id);
  const DLDataType t = A.dtype();
  if (t.bits == 32) matmul<float>(A, B, partial, C);
  else if (t.code == kDLFloat) matmul<f16>(A, B, partial, C);
  else matmul<bf16>(A, B, partial, C);
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
    "BN": BN, "STAGES": STAGES, "SMALL_BN": SMALL_BN, "SMALL_STAGES": SMALL_STAGES, "GROUP": GROUP, "WAVES": WAVES,
    "ROW_WARPS": ROW_WARPS, "ROW_BLOCKS": ROW_BLOCKS, "ROW_AHEAD": ROW_AHEAD,
}  # fmt: skip

module = tvm_ffi.cpp.load_inline(
    "matmul",
    cuda_sources=SOURCE.replace("WGMMA_OF_EACH_SIZE", "".join(wgmma(n) for n in sorted({BN, SMALL_BN}))),
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


def kernel_fn(A, B):
    if A.dtype != torch.float32:
        A = in_lines(A)
        B = in_lines(B.t()).t() if B.stride(0) == 1 and B.stride(1) != 1 else in_lines(B)
    C = torch.empty((A.shape[0], B.shape[1]), dtype=A.dtype, device=A.device)
    parts = module.parts(A, B)
    partial = torch.empty((parts if parts > 1 else 0, *C.shape), dtype=torch.float32, device=A.device)
    module.launch(A, B, partial, C)
    return C
