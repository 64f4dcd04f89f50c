"""Attention for Hopper, CUDA C++: O = softmax(Q · Kᵀ · sm_scale) · V with wgmma and TMA, causal or not, with grouped queries.

Q [B, H, S, D], K and V [B, G, T, D] -> [B, H, S, D], any strides; float32, float16 or bfloat16, scores, softmax and sums in float32.
Bytes: (2·B·H·S·D + 2·B·G·T·D) · itemsize if K and V stay in the L2. Flops: 4·B·H·S·T·D, half of it when causal: arithmetic decides.
The online softmax of Milakov and Gimelshein in the arrangement of FlashAttention-3 (Shah et al., 2024). A block keeps 128 queries in
shared memory, 64 for each of two consumer warpgroups. One thread of a third asks the copy engine (TMA) for blocks of KEYS keys and
values, into a ring of STAGES each, with a pair of mbarriers a stage: `full` completes when the bytes have arrived, `empty` when all
8 warps have read them. The i-th use of a stage waits for parity i % 2 of `full`, its refill for the other parity of `empty` (a fresh
barrier answers parity 1 at once). A consumer begins the scores of block i + 1, begins P · V of block i, and takes the exponentials of
i + 1 while the tensor cores are busy with the latter. P stays in registers: the accumulators' layout is that of wgmma's A operand.
The consumers take turns: while one issues its products, the other takes exponentials. Blocks start by groups of heads whose keys and
values take TOGETHER MB of the L2, and in a group the longest rows of all heads first: no multiprocessor ends late.
In shared memory everything is rows of 128 bytes (64 features) whose 16-byte pieces are XORed with the row modulo 8, as TMA writes and
wgmma reads them. Blocks of keys above the diagonal are skipped. float32, heads wider than 128, and a scale that is not positive: FFMA.
Other GPUs: sm_90a alone (by hand: TVM_FFI_CUDA_ARCH_LIST=9.0a); ../flash_attention.py runs elsewhere. STAGES and KEYS are bounded by 227 KB of shared memory, TOGETHER by the L2.
"""

import torch
import tvm_ffi.cpp

KERNEL_TYPE = "flash_attention"
BACKEND = "cuda"

KEYS = 128  # tune: 64, 96, 128 | keys of a block
STAGES = 2  # tune: 1, 2 | blocks of keys, and of values, in shared memory
TOGETHER = 16  # tune: 8, 16, 24, 32 | MB of keys and values whose heads are walked together where causal

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
__device__ inline float widen(float v) { return v; }
__device__ inline float widen(f16 v) { return __half2float(v); }
__device__ inline float widen(bf16 v) { return __bfloat162float(v); }

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
__device__ inline void copy_tile(void* to, const CUtensorMap* map, int column, int row, int head, int batch, uint64_t* barrier) {
  asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];"
               ::"r"(shared_address(to)), "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row), "r"(head), "r"(batch) : "memory");
}

// ---- wgmma: issued by 4 warps together, ends in its own time
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

__device__ inline float exp2_approx(float v) {  // within 2 units in the last place; results below 2^-126 are 0
  float y;
  asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(v));
  return y;
}

struct Tensor { const void* data; int64_t b, h, s, d; };  // strides in elements
struct Shape { int heads, groups, queries, keys, depth; bool causal; float scale; };
template <typename T> __device__ inline const T* head_of(const Tensor& t, int64_t b, int64_t h) {
  return static_cast<const T*>(t.data) + b * t.b + h * t.h;
}

template <typename T> __device__ inline uint32_t pair(float low, float high) {
  const T both[2] = {narrow<T>(low), narrow<T>(high)};
  uint32_t word;
  memcpy(&word, both, 4);
  return word;
}

constexpr int ROWS = 128;  // queries a block: 64 a consumer warpgroup

// A consumer waits for its turn at barrier 1 + group, where the other one arrives when it gives it.
__device__ inline void take_turn(int group) {
  asm volatile("bar.sync %0, 256;" ::"r"(1 + group) : "memory");
}
__device__ inline void give_turn(int group) {
  asm volatile("bar.arrive %0, 256;" ::"r"(2 - group) : "memory");
}

// gridDim = blocks of queries * H * B, `together` heads at a time. A lane holds, of its warp's 16 queries, lane / 4 and lane / 4 + 8.
template <typename T, int DEPTH>
__global__ void __launch_bounds__(384, 1)
attention_wgmma(const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap k, const __grid_constant__ CUtensorMap v,
                T* out, Shape p, int together) {
  constexpr int BLOCKS = DEPTH / 64, Q_SIZE = ROWS * DEPTH, K_SIZE = KEYS * DEPTH;  // elements; BLOCKS of 64 features
  extern __shared__ char memory[];
  __shared__ uint64_t full_q, full_k[STAGES], full_v[STAGES], empty_k[STAGES], empty_v[STAGES];
  T* qs = reinterpret_cast<T*>(memory + (1024 - shared_address(memory) % 1024) % 1024);  // the swizzle counts from here
  T *ks = qs + Q_SIZE, *vs = ks + STAGES * K_SIZE;
  const int steps = (p.queries + ROWS - 1) / ROWS, first = blockIdx.x / (steps * together) * together;  // of a group of heads
  const int some = min(together, int(gridDim.x) / steps - first), within = blockIdx.x % (steps * together), which = first + within % some;
  const int group = threadIdx.x / 128, head = which % p.heads, shared_head = head / (p.heads / p.groups), batch = which / p.heads;
  const int q0 = (steps - 1 - within / some) * ROWS;  // the longest rows first, where causal
  const int end = p.causal ? min(p.keys, q0 + ROWS) : p.keys, blocks = (end + KEYS - 1) / KEYS;  // one at least

  if (threadIdx.x == 0) {
    barrier_init(&full_q, 1);
    for (int s = 0; s < STAGES; ++s) {
      barrier_init(&full_k[s], 1), barrier_init(&full_v[s], 1);
      barrier_init(&empty_k[s], 8), barrier_init(&empty_v[s], 8);  // a lane of each of the 8 warps that read
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");  // the copy engine sees them initialised
    asm volatile("fence.proxy.async;" ::: "memory");
  }
  __syncthreads();

  if (group == 2) {  // the producer: one thread
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x % 128 == 0) {
      barrier_expect(&full_q, Q_SIZE * int(sizeof(T)));
      for (int b = 0; b < BLOCKS; ++b) copy_tile(qs + b * ROWS * 64, &q, b * 64, q0, head, batch, &full_q);
      auto fill = [&](T* to, const CUtensorMap* map, int i, uint64_t* full, uint64_t* empty) {
        barrier_wait(empty, (i / STAGES & 1) ^ 1);
        barrier_expect(full, K_SIZE * int(sizeof(T)));
        for (int b = 0; b < BLOCKS; ++b) copy_tile(to + b * KEYS * 64, map, b * 64, i * KEYS, shared_head, batch, full);
      };
      for (int i = 0, s = 0; i < blocks; ++i, s = i % STAGES) {
        fill(ks + s * K_SIZE, &k, i, &full_k[s], &empty_k[s]);
        fill(vs + s * K_SIZE, &v, i, &full_v[s], &empty_v[s]);
      }
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int lane = threadIdx.x % 32, row = q0 + group * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4;
    const float scale = p.scale * 1.44269504f;  // exp(x) = 2^(x log2 e)
    float o[DEPTH / 2] = {}, s[KEYS / 2], max_of[2] = {-INFINITY, -INFINITY}, total[2] = {}, shrink[2];
    uint32_t weights[KEYS / 16][4];

    auto scores = [&](int i) {  // s = Q · Kᵀ of block i, begun
      const T* kt = ks + i % STAGES * K_SIZE;
      barrier_wait(&full_k[i % STAGES], i / STAGES & 1);
      wgmma_fence();
      #pragma unroll
      for (int d = 0; d < DEPTH; d += 16)
        wgmma<T>(s, descriptor(qs + d / 64 * ROWS * 64 + group * 64 * 64 + d % 64, 16, 1024),
                 descriptor(kt + d / 64 * KEYS * 64 + d % 64, 16, 1024), d > 0);
      wgmma_commit();
    };
    auto weigh = [&](int i) {  // o += P · V of block i, begun
      const T* vt = vs + i % STAGES * K_SIZE;
      barrier_wait(&full_v[i % STAGES], i / STAGES & 1);
      wgmma_fence();
      #pragma unroll
      for (int n = 0; n < KEYS; n += 16) wgmma<T>(o, weights[n / 16], descriptor(vt + n * 64, KEYS * 128, 1024));
      wgmma_commit();
    };
    auto soften = [&](int i) {  // s = exp of the scores less the new maximum; shrink: what was summed up so far is to lose
      const int k0 = i * KEYS;
      const bool masked = k0 + KEYS > p.keys || (p.causal && k0 + KEYS - 1 > q0 + group * 64);
      #pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int last = p.causal ? min(p.keys - 1, row + 8 * h) : p.keys - 1;
        float highest = max_of[h];
        #pragma unroll
        for (int j = 0; j < KEYS / 8; ++j)
          #pragma unroll
          for (int c = 2 * h; c < 2 * h + 2; ++c) {
            if (masked && k0 + j * 8 + lane % 4 * 2 + c % 2 > last) s[j * 4 + c] = -INFINITY;
            highest = fmaxf(highest, s[j * 4 + c]);  // a NaN shows in the sum
          }
        highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 1));
        highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 2));
        const float base = highest == -INFINITY ? 0.0f : highest * scale;  // -inf less -inf would be a NaN
        shrink[h] = exp2_approx(max_of[h] * scale - base);
        max_of[h] = highest;
        total[h] *= shrink[h];
        #pragma unroll
        for (int j = 0; j < KEYS / 8; ++j)
          #pragma unroll
          for (int c = 2 * h; c < 2 * h + 2; ++c) total[h] += s[j * 4 + c] = exp2_approx(s[j * 4 + c] * scale - base);
      }
    };
    auto pack = [&] {  // the accumulators' layout is that of the operand: two tiles of 8 keys are one of 16
      #pragma unroll
      for (int n = 0; n < KEYS / 16; ++n)
        #pragma unroll
        for (int w = 0; w < 4; ++w) weights[n][w] = pair<T>(s[n * 8 + w * 2], s[n * 8 + w * 2 + 1]);
    };

    if (group == 1) give_turn(group);
    barrier_wait(&full_q, 0);
    scores(0);
    wgmma_wait<0>();
    pin(s);
    if (lane == 0) barrier_arrive(&empty_k[0]);
    soften(0);
    pack();
    for (int i = 1; i < blocks; ++i) {  // while the tensor cores weigh block i - 1, the scores of block i are softened
      take_turn(group);
      scores(i);
      weigh(i - 1);
      give_turn(group);
      wgmma_wait<1>();
      pin(s);
      if (lane == 0) barrier_arrive(&empty_k[i % STAGES]);
      soften(i);
      wgmma_wait<0>();
      pin(o);
      if (lane == 0) barrier_arrive(&empty_v[(i - 1) % STAGES]);
      #pragma unroll
      for (int j = 0; j < DEPTH / 2; ++j) o[j] *= shrink[j / 2 % 2];
      pack();
    }
    weigh(blocks - 1);
    wgmma_wait<0>();
    pin(o);

    #pragma unroll
    for (int h = 0; h < 2; ++h) {
      float all = total[h];
      all += __shfl_xor_sync(0xffffffffu, all, 1);
      all += __shfl_xor_sync(0xffffffffu, all, 2);
      const float share = 1.0f / all;
      T* to = out + ((int64_t(batch) * p.heads + head) * p.queries + row + 8 * h) * p.depth;
      if (row + 8 * h >= p.queries) continue;
      #pragma unroll
      for (int d = 0; d < DEPTH / 8; ++d) {
        const int column = d * 8 + lane % 4 * 2;
        const float v0 = o[d * 4 + 2 * h] * share, v1 = o[d * 4 + 2 * h + 1] * share;
        if (column >= p.depth) continue;
        if (p.depth % 2 == 0) *reinterpret_cast<uint32_t*>(to + column) = pair<T>(v0, v1);
        else to[column] = narrow<T>(v0);
        if (p.depth % 2 && column + 1 < p.depth) to[column + 1] = narrow<T>(v1);
      }
    }
  }
}

// ---- float32 arithmetic, any strides. 16 x 16 threads: 4 queries each, keys tx and tx + 16, columns tx, tx + 16, ...
template <typename T, int DEPTH>
__global__ void __launch_bounds__(256) attention_float(Tensor q, Tensor k, Tensor v, T* out, Shape p) {
  constexpr int ROWS = 64, BLOCK = 32, LINE = DEPTH + 1, DT = DEPTH / 16;
  extern __shared__ __align__(128) char memory[];
  float *qs = reinterpret_cast<float*>(memory), *ks = qs + ROWS * LINE, *vs = ks + BLOCK * LINE, *ps = vs + BLOCK * LINE;
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16, group = blockIdx.y / (p.heads / p.groups);
  const int q0 = int(gridDim.x - 1 - blockIdx.x) * ROWS, end = p.causal ? min(p.keys, q0 + ROWS) : p.keys;
  auto fetch_all = [&](float* to, const Tensor& t, int64_t head, int row, int count, int rows) {
    const T* from = head_of<T>(t, blockIdx.z, head);
    for (int i = threadIdx.x; i < count * DEPTH; i += 256) {
      const int r = i / DEPTH, d = i % DEPTH;
      to[r * LINE + d] = row + r < rows && d < p.depth ? widen(from[(row + r) * t.s + d * t.d]) : 0.0f;
    }
  };
  fetch_all(qs, q, blockIdx.y, q0, ROWS, p.queries);
  float sum[4][DT] = {}, max_of[4], total[4] = {};
  #pragma unroll
  for (int i = 0; i < 4; ++i) max_of[i] = -INFINITY;

  for (int k0 = 0; k0 < end; k0 += BLOCK) {
    __syncthreads();
    fetch_all(ks, k, group, k0, BLOCK, p.keys);
    fetch_all(vs, v, group, k0, BLOCK, p.keys);
    __syncthreads();
    float s[4][2] = {};
    #pragma unroll 4
    for (int d = 0; d < DEPTH; ++d)
      #pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float key = ks[(tx + 16 * j) * LINE + d];
        #pragma unroll
        for (int i = 0; i < 4; ++i) s[i][j] += qs[(ty * 4 + i) * LINE + d] * key;
      }
    #pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int last = p.causal ? min(p.keys - 1, q0 + ty * 4 + i) : p.keys - 1;
      float highest = max_of[i];
      #pragma unroll
      for (int j = 0; j < 2; ++j) {
        s[i][j] = k0 + tx + 16 * j > last ? -INFINITY : s[i][j] * p.scale;
        highest = fmaxf(highest, s[i][j]);
      }
      #pragma unroll
      for (int lane = 8; lane > 0; lane /= 2) highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, lane));
      const float base = highest == -INFINITY ? 0.0f : highest, shrink = __expf(max_of[i] - base);
      max_of[i] = highest;
      total[i] *= shrink;
      #pragma unroll
      for (int c = 0; c < DT; ++c) sum[i][c] *= shrink;
      #pragma unroll
      for (int j = 0; j < 2; ++j) {
        s[i][j] = __expf(s[i][j] - base);
        total[i] += s[i][j];
        ps[(ty * 4 + i) * BLOCK + tx + 16 * j] = s[i][j];
      }
    }
    __syncwarp();  // a query's weights are written and read by the 16 lanes of one ty
    #pragma unroll 4
    for (int j = 0; j < BLOCK; ++j)
      #pragma unroll
      for (int c = 0; c < DT; ++c) {
        const float value = vs[j * LINE + tx + 16 * c];
        #pragma unroll
        for (int i = 0; i < 4; ++i) sum[i][c] += ps[(ty * 4 + i) * BLOCK + j] * value;
      }
  }
  #pragma unroll
  for (int i = 0; i < 4; ++i) {
    float all = total[i];
    #pragma unroll
    for (int lane = 8; lane > 0; lane /= 2) all += __shfl_xor_sync(0xffffffffu, all, lane);
    const int row = q0 + ty * 4 + i;
    T* to = out + ((int64_t(blockIdx.z) * p.heads + blockIdx.y) * p.queries + row) * p.depth;
    #pragma unroll
    for (int c = 0; c < DT; ++c)
      if (row < p.queries && tx + 16 * c < p.depth) to[tx + 16 * c] = narrow<T>(p.keys ? sum[i][c] / all : 0.0f);
  }
}

// ---- the host's side
// The heads of a tensor as the copy engine sees them, fetched in boxes of [rows, 64 features].
template <typename T> CUtensorMap tensor_map(const Tensor& x, int batch, int heads, int length, int depth, int rows) {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    TVM_FFI_CHECK_CUDA_ERROR(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found));
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  TVM_FFI_CHECK(encode, RuntimeError) << "attention: expected a driver that knows cuTensorMapEncodeTiled (CUDA 12 or later)";
  CUtensorMap map;
  const cuuint64_t sizes[4] = {cuuint64_t(depth), cuuint64_t(length), cuuint64_t(heads), cuuint64_t(batch)};
  // Bytes; the first stride is the element's size. That of a dimension of one element is never used, but is checked.
  auto bytes = [&](int64_t stride, int size) { return cuuint64_t(size > 1 ? stride * int64_t(sizeof(T)) : 16); };
  const cuuint64_t strides[3] = {bytes(x.s, length), bytes(x.h, heads), bytes(x.b, batch)};
  const cuuint32_t box[4] = {64, cuuint32_t(rows), 1, 1}, steps[4] = {1, 1, 1, 1};
  const CUresult result = encode(
      &map, std::is_same<T, f16>::value ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4,
      const_cast<void*>(x.data), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  TVM_FFI_CHECK(result == CUDA_SUCCESS, RuntimeError) << "attention: cuTensorMapEncodeTiled refuses a tensor: error " << int(result);
  return map;
}

template <typename T, int DEPTH> void tensor_cores(Tensor q, Tensor k, Tensor v, T* out, Shape p, int batch, cudaStream_t stream) {
  constexpr int BYTES = (ROWS + 2 * STAGES * KEYS) * DEPTH * int(sizeof(T)) + 1024;
  const CUtensorMap maps[3] = {
      tensor_map<T>(q, batch, p.heads, p.queries, p.depth, ROWS), tensor_map<T>(k, batch, p.groups, p.keys, p.depth, KEYS),
      tensor_map<T>(v, batch, p.groups, p.keys, p.depth, KEYS)};
  const auto kernel = attention_wgmma<T, DEPTH>;
  TVM_FFI_CHECK_CUDA_ERROR(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES));
  const unsigned heads = batch * p.heads, steps = (p.queries + ROWS - 1) / ROWS;  // one head at a time where steps are equally long
  const int64_t fit = (int64_t(TOGETHER) << 20) / (2 * int64_t(p.keys) * DEPTH * int64_t(sizeof(T))) * (p.heads / p.groups);
  const int together = p.causal ? int(std::clamp<int64_t>(fit, 1, heads)) : 1;
  kernel<<<steps * heads, 384, BYTES, stream>>>(maps[0], maps[1], maps[2], out, p, together);
}

template <typename T, int DEPTH> void plain(Tensor q, Tensor k, Tensor v, T* out, Shape p, int batch, cudaStream_t stream) {
  constexpr int BYTES = ((64 + 2 * 32) * (DEPTH + 1) + 64 * 32) * 4;
  const auto kernel = attention_float<T, DEPTH>;
  TVM_FFI_CHECK_CUDA_ERROR(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES));
  const dim3 grid((p.queries + 63) / 64, p.heads, batch);
  kernel<<<grid, 256, BYTES, stream>>>(q, k, v, out, p);
}

Tensor tensor(const TensorView& t) { return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)}; }

template <typename T> void attention(TensorView Q, TensorView K, TensorView V, TensorView O, bool causal, float scale) {
  const auto stream = static_cast<cudaStream_t>(TVMFFIEnvGetStream(Q.device().device_type, Q.device().device_id));
  const Tensor q = tensor(Q), k = tensor(K), v = tensor(V);
  const Shape p = {int(Q.size(1)), int(K.size(1)), int(Q.size(2)), int(K.size(2)), int(Q.size(3)), causal, scale};
  const int batch = int(Q.size(0));
  T* out = static_cast<T*>(O.data_ptr());
  if (p.keys == 0) {  // a sum over nothing
    TVM_FFI_CHECK_CUDA_ERROR(cudaMemsetAsync(out, 0, O.numel() * sizeof(T), stream));
    return;
  }
  if constexpr (sizeof(T) == 2) {
    if (p.depth <= 64 && scale > 0) tensor_cores<T, 64>(q, k, v, out, p, batch, stream);
    else if (p.depth <= 128 && scale > 0) tensor_cores<T, 128>(q, k, v, out, p, batch, stream);
    else plain<T, 256>(q, k, v, out, p, batch, stream);
  } else {
    if (p.depth <= 64) plain<T, 64>(q, k, v, out, p, batch, stream);
    else if (p.depth <= 128) plain<T, 128>(q, k, v, out, p, batch, stream);
    else plain<T, 256>(q, k, v, out, p, batch, stream);
  }
}

void launch(TensorView Q, TensorView K, TensorView V, TensorView O, bool causal, double scale) {
  if (O.numel() == 0) return;
  TVM_FFI_CHECK(Q.size(3) <= 256, ValueError) << "flash_attention: expected heads of at most 256 features, got " << Q.size(3);
  const tvm::ffi::CUDADeviceGuard guard(Q.device().device_id);
  const DLDataType t = Q.dtype();
  if (t.bits == 32) attention<float>(Q, K, V, O, causal, float(scale));
  else if (t.code == kDLFloat) attention<f16>(Q, K, V, O, causal, float(scale));
  else attention<bf16>(Q, K, V, O, causal, float(scale));
  TVM_FFI_CHECK_CUDA_ERROR(cudaGetLastError());
}
"""


def accumulators(n):
    return ", ".join(f"%{i}" for i in range(n)), ", ".join(f'"+f"(d[{i}])' for i in range(n))


def of_halves(instruction):
    """The same instruction for either dtype."""
    f16, bf16 = (instruction.replace("DTYPE", dtype) for dtype in ("f16", "bf16"))
    return f"  if constexpr (std::is_same<T, f16>::value)\n    {f16}\n  else\n    {bf16}\n}}\n"


def wgmma_scores(columns):
    """d[64, columns] = (keep ? d : 0) + a · bᵀ, both in shared memory, in lines along the sum."""
    n = columns // 2
    registers, operands = accumulators(n)
    return (
        f"template <typename T> __device__ inline void wgmma(float (&d)[{n}], uint64_t a, uint64_t b, bool keep) {{\n"
        + of_halves(
            f'asm volatile("{{ .reg .pred p; setp.ne.b32 p, %{n + 2}, 0; '
            f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.DTYPE.DTYPE "
            f'{{{registers}}}, %{n}, %{n + 1}, p, 1, 1, 0, 0; }}" : {operands} : "l"(a), "l"(b), "r"(int(keep)));'
        )
    )


def wgmma_values(columns):
    """d[64, columns] += a · b, a in registers, b in shared memory in lines along the columns."""
    n = columns // 2
    registers, operands = accumulators(n)
    a = ", ".join(f"%{n + i}" for i in range(4))
    return (
        f"template <typename T> __device__ inline void wgmma(float (&d)[{n}], const uint32_t (&a)[4], uint64_t b) {{\n"
        + of_halves(
            f'asm volatile("{{ .reg .pred p; setp.ne.b32 p, %{n + 5}, 0; '
            f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.DTYPE.DTYPE "
            f'{{{registers}}}, {{{a}}}, %{n + 4}, p, 1, 1, 1; }}" : {operands} '
            ': "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(1));'
        )
    )


module = tvm_ffi.cpp.load_inline(
    "flash_attention",
    cuda_sources=SOURCE.replace("WGMMA_OF_EACH_SIZE", wgmma_scores(KEYS) + wgmma_values(64) + wgmma_values(128)),
    functions=["launch"],
    extra_cuda_cflags=[f"-DKEYS={KEYS}", f"-DSTAGES={STAGES}", f"-DTOGETHER={TOGETHER}"],
)


def in_lines(x):
    """x as the copy engine wants it: contiguous features, rows that start at multiples of 16 bytes and do not overlap.
    Itself, or a padded copy."""
    steps = [s for s, size in zip(x.stride()[:3], x.shape[:3], strict=True) if size > 1]
    if x.stride(3) == 1 and not any(s % 8 or s < 8 for s in steps) and x.data_ptr() % 16 == 0:
        return x
    padded = torch.empty((*x.shape[:3], (x.shape[3] + 7) // 8 * 8), dtype=x.dtype, device=x.device)
    padded[..., x.shape[3] :] = 0  # read as well, in whole pieces
    return padded[..., : x.shape[3]].copy_(x)


def kernel_fn(Q, K, V, causal=True, sm_scale=None):
    scale = Q.shape[-1] ** -0.5 if sm_scale is None else sm_scale
    if Q.dtype != torch.float32:
        Q, K, V = in_lines(Q), in_lines(K), in_lines(V)
    out = torch.empty(Q.shape, dtype=Q.dtype, device=Q.device)
    module.launch(Q, K, V, out, causal, float(scale))
    return out
