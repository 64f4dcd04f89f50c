"""Attention, CUDA C++: O = softmax(Q · Kᵀ · sm_scale) · V, causal or not, with grouped queries.

Q [B, H, S, D], K and V [B, G, T, D] -> [B, H, S, D], any strides; float32, float16 or bfloat16, scores, softmax and sums in float32.
Bytes: (2·B·H·S·D + 2·B·G·T·D) · itemsize if K and V stay in the L2. Flops: 4·B·H·S·T·D, half of it when causal: arithmetic decides.
The online softmax of Milakov and Gimelshein inside the loop of FlashAttention-2 (Dao, 2023): a block keeps ROWS queries; keys and
values pass by in blocks of KEYS; the running maximum rescales what was summed up so far. Blocks of keys above the diagonal are skipped,
and only those that the diagonal or the end crosses are masked. Query head h reads head h / (H / G) of K and V: no copy of them is made.
Halves: a warp owns 16 · TILES queries; Q · Kᵀ and P · V are mma.sync with float32 sums; P goes from the accumulators of the first
product straight into the operand of the second, whose register layout is the same. While scores are computed V arrives by cp.async,
and while they are weighted the next K does. float32, heads wider than 128, and a scale that is not positive: FFMA on tiles.
Other GPUs: revisit KEYS, WIDE_KEYS, TILES and WARPS (registers, shared memory). Hopper has wgmma, twice as fast.
"""

import torch
import tvm_ffi.cpp

KERNEL_TYPE = "flash_attention"
BACKEND = "cuda"

WARPS = 4  # tune: 4, 8 | warps a block
TILES = 2  # tune: 1, 2 | 16-query tiles a warp
KEYS = 64  # tune: 32, 48, 64, 96, 128 | keys in shared memory at a time, heads of up to 64 features
WIDE_KEYS = 48  # tune: 32, 48, 64, 96 | the same, wider heads: their sums leave fewer registers for scores

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
__device__ inline float widen(float v) { return v; }
__device__ inline float widen(f16 v) { return __half2float(v); }
__device__ inline float widen(bf16 v) { return __bfloat162float(v); }

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

// Where 16-byte piece `piece` of a row lies: XOR the row, so that the 8 rows ldmatrix reads at once are in different banks.
template <int DEPTH> __device__ inline int place(int row, int piece) { return row * DEPTH + (piece ^ row % 8) * 8; }

// Rows [row, row + ROWS) of a head into shared memory; zeros beyond its rows and its depth.
template <typename T, int ROWS, int DEPTH>
__device__ inline void fetch(T* to, const T* from, int64_t stride, int row, int rows, int depth) {
  constexpr int STEP = 32 * WARPS * 8 / DEPTH;  // rows that all threads copy at once
  static_assert(ROWS % STEP == 0, "every thread copies as many pieces");
  const int first = int(threadIdx.x) / (DEPTH / 8), p = int(threadIdx.x) % (DEPTH / 8);
  const int width = max(0, min(8, depth - 8 * p)) * int(sizeof(T));
  const T* source = from + (row + first) * stride + 8 * p;
  #pragma unroll 2  // more would keep more addresses than there are registers
  for (int r = first; r < first + ROWS; r += STEP, source += STEP * stride) {
    const bool inside = width && row + r < rows;
    copy_async(to + place<DEPTH>(r, p), inside ? source : from, inside ? width : 0);
  }
}

template <typename T> __device__ inline uint32_t pair(float low, float high) {
  const T both[2] = {narrow<T>(low), narrow<T>(high)};
  uint32_t word;
  memcpy(&word, both, 4);
  return word;
}

// gridDim = (blocks of queries, H, B). A lane holds, of each tile of scores, rows lane / 4 and lane / 4 + 8.
template <typename T, int DEPTH, int KEYS>
__global__ void __launch_bounds__(32 * WARPS) attention_tensor(Tensor q, Tensor k, Tensor v, T* out, Shape p) {
  constexpr int ROWS = 16 * TILES * WARPS, NT = KEYS / 8, DT = DEPTH / 8;
  extern __shared__ __align__(128) char memory[];
  T *qs = reinterpret_cast<T*>(memory), *ks = qs + ROWS * DEPTH, *vs = ks + KEYS * DEPTH;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = blockIdx.y / (p.heads / p.groups);
  const int q0 = int(gridDim.x - 1 - blockIdx.x) * ROWS;  // the longest rows first, where causal
  const T *keys = head_of<T>(k, blockIdx.z, group), *values = head_of<T>(v, blockIdx.z, group);
  const int end = p.causal ? min(p.keys, q0 + ROWS) : p.keys;
  fetch<T, ROWS, DEPTH>(qs, head_of<T>(q, blockIdx.z, blockIdx.y), q.s, q0, p.queries, p.depth);
  fetch<T, KEYS, DEPTH>(ks, keys, k.s, 0, p.keys, p.depth);
  copy_async_commit();

  const float scale = p.scale * 1.44269504f;  // exp(x) = 2^(x log2 e)
  float sum[TILES][DT][4] = {}, max_of[TILES][2], total[TILES][2] = {};
  #pragma unroll
  for (int m = 0; m < TILES; ++m) max_of[m][0] = max_of[m][1] = -INFINITY;

  for (int k0 = 0; k0 < end; k0 += KEYS) {
    copy_async_wait<0>();
    __syncthreads();  // K is there for all, and nobody reads the last V any more
    fetch<T, KEYS, DEPTH>(vs, values, v.s, k0, p.keys, p.depth);
    copy_async_commit();

    float s[TILES][NT][4] = {};
    #pragma unroll
    for (int d = 0; d < DEPTH; d += 16) {
      uint32_t fq[TILES][4];
      #pragma unroll
      for (int m = 0; m < TILES; ++m) ldmatrix(fq[m], qs + place<DEPTH>((warp * TILES + m) * 16 + lane % 16, d / 8 + lane / 16));
      #pragma unroll
      for (int n = 0; n < NT; n += 2) {
        uint32_t fk[4];
        ldmatrix(fk, ks + place<DEPTH>(n * 8 + lane / 16 * 8 + lane % 8, d / 8 + lane / 8 % 2));
        #pragma unroll
        for (int m = 0; m < TILES; ++m) mma<T>(s[m][n], fq[m], fk[0], fk[1]), mma<T>(s[m][n + 1], fq[m], fk[2], fk[3]);
      }
    }

    copy_async_wait<0>();
    __syncthreads();  // V is there for all, and nobody reads this K any more
    fetch<T, KEYS, DEPTH>(ks, keys, k.s, k0 + KEYS, p.keys, p.depth);
    copy_async_commit();

    const bool masked = k0 + KEYS > p.keys || (p.causal && k0 + KEYS - 1 > q0 + warp * TILES * 16);
    #pragma unroll
    for (int m = 0; m < TILES; ++m)
      #pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = q0 + (warp * TILES + m) * 16 + h * 8 + lane / 4, last = p.causal ? min(p.keys - 1, row) : p.keys - 1;
        float highest = max_of[m][h];
        #pragma unroll
        for (int n = 0; n < NT; ++n)
          #pragma unroll
          for (int c = 2 * h; c < 2 * h + 2; ++c) {
            if (masked && k0 + n * 8 + lane % 4 * 2 + c % 2 > last) s[m][n][c] = -INFINITY;
            highest = fmaxf(highest, s[m][n][c]);  // a NaN shows in the sum
          }
        highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 1));
        highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 2));
        const float base = highest == -INFINITY ? 0.0f : highest * scale;  // -inf less -inf would be a NaN
        const float shrink = exp2_approx(max_of[m][h] * scale - base);
        max_of[m][h] = highest;
        total[m][h] *= shrink;
        #pragma unroll
        for (int d = 0; d < DT; ++d) sum[m][d][2 * h] *= shrink, sum[m][d][2 * h + 1] *= shrink;
        #pragma unroll
        for (int n = 0; n < NT; ++n)
          #pragma unroll
          for (int c = 2 * h; c < 2 * h + 2; ++c) total[m][h] += s[m][n][c] = exp2_approx(s[m][n][c] * scale - base);
      }

    #pragma unroll
    for (int n = 0; n < NT; n += 2) {
      uint32_t fp[TILES][4];
      #pragma unroll
      for (int m = 0; m < TILES; ++m)
        #pragma unroll
        for (int i = 0; i < 4; ++i) fp[m][i] = pair<T>(s[m][n + i / 2][i % 2 * 2], s[m][n + i / 2][i % 2 * 2 + 1]);
      #pragma unroll
      for (int d = 0; d < DT; d += 2) {
        uint32_t fv[4];
        ldmatrix_transposed(fv, vs + place<DEPTH>(n * 8 + lane % 16, d + lane / 16));
        #pragma unroll
        for (int m = 0; m < TILES; ++m) mma<T>(sum[m][d], fp[m], fv[0], fv[1]), mma<T>(sum[m][d + 1], fp[m], fv[2], fv[3]);
      }
    }
  }

  #pragma unroll
  for (int m = 0; m < TILES; ++m)
    #pragma unroll
    for (int h = 0; h < 2; ++h) {
      float all = total[m][h];
      all += __shfl_xor_sync(0xffffffffu, all, 1);
      all += __shfl_xor_sync(0xffffffffu, all, 2);
      const int row = q0 + (warp * TILES + m) * 16 + h * 8 + lane / 4;
      const float share = p.keys ? 1.0f / all : 0.0f;
      T* to = out + ((int64_t(blockIdx.z) * p.heads + blockIdx.y) * p.queries + row) * p.depth;
      if (row >= p.queries) continue;
      #pragma unroll
      for (int d = 0; d < DT; ++d) {
        const int column = d * 8 + lane % 4 * 2;
        const float v0 = sum[m][d][2 * h] * share, v1 = sum[m][d][2 * h + 1] * share;
        if (p.depth % 2 == 0) {
          if (column < p.depth) *reinterpret_cast<uint32_t*>(to + column) = pair<T>(v0, v1);
        } else {
          if (column < p.depth) to[column] = narrow<T>(v0);
          if (column + 1 < p.depth) to[column + 1] = narrow<T>(v1);
        }
      }
    }
  copy_async_wait<0>();  // nothing may arrive after the block has ended
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

template <typename K, typename T>
void run(K kernel, int rows, int threads, int bytes, Tensor q, Tensor k, Tensor v, T* out, Shape p, int batch, cudaStream_t stream) {
  TVM_FFI_CHECK_CUDA_ERROR(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  const dim3 grid((p.queries + rows - 1) / rows, p.heads, batch);
  kernel<<<grid, threads, bytes, stream>>>(q, k, v, out, p);
}

template <typename T, int DEPTH, int KEYS>
void tensor_cores(Tensor q, Tensor k, Tensor v, T* out, Shape p, int batch, cudaStream_t stream) {
  constexpr int ROWS = 16 * TILES * WARPS, BYTES = (ROWS + 2 * KEYS) * DEPTH * int(sizeof(T));
  run(attention_tensor<T, DEPTH, KEYS>, ROWS, 32 * WARPS, BYTES, q, k, v, out, p, batch, stream);
}

template <typename T, int DEPTH> void plain(Tensor q, Tensor k, Tensor v, T* out, Shape p, int batch, cudaStream_t stream) {
  constexpr int BYTES = ((64 + 2 * 32) * (DEPTH + 1) + 64 * 32) * 4;
  run(attention_float<T, DEPTH>, 64, 256, BYTES, q, k, v, out, p, batch, stream);
}

Tensor tensor(const TensorView& t) { return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)}; }

template <typename T> void attention(TensorView Q, TensorView K, TensorView V, TensorView O, bool causal, float scale) {
  const auto stream = static_cast<cudaStream_t>(TVMFFIEnvGetStream(Q.device().device_type, Q.device().device_id));
  const Tensor q = tensor(Q), k = tensor(K), v = tensor(V);
  const Shape p = {int(Q.size(1)), int(K.size(1)), int(Q.size(2)), int(K.size(2)), int(Q.size(3)), causal, scale};
  const int batch = int(Q.size(0));
  T* out = static_cast<T*>(O.data_ptr());
  if constexpr (sizeof(T) == 2) {
    if (p.depth <= 64 && scale > 0) tensor_cores<T, 64, KEYS_64>(q, k, v, out, p, batch, stream);
    else if (p.depth <= 128 && scale > 0) tensor_cores<T, 128, KEYS_128>(q, k, v, out, p, batch, stream);
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

module = tvm_ffi.cpp.load_inline(
    "flash_attention",
    cuda_sources=SOURCE,
    functions=["launch"],
    extra_cuda_cflags=[f"-DWARPS={WARPS}", f"-DTILES={TILES}", f"-DKEYS_64={KEYS}", f"-DKEYS_128={WIDE_KEYS}"],
)


def in_lines(x):
    """x with contiguous features whose rows start at multiples of 16 bytes, as cp.async wants: itself, or a padded copy."""
    if x.stride(3) == 1 and not any(s % 8 for s in x.stride()[:3]) and x.data_ptr() % 16 == 0:
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
