"""Rotary position embedding, CUDA C++: every pair of features (a, b) becomes (a cos - b sin, b cos + a sin).

x [B, H, S, D], cos and sin [S, D/2] or [S, D] -> [B, H, S, D], D even; float32, float16 or bfloat16, products in float32. Pairs are
(2i, 2i + 1), or (i, i + D/2) when not interleaved.
Bytes: x is read and the output written once, 2·B·H·S·D · itemsize; the tables are small but every head wants them. Flops: 3·B·H·S·D.
A thread turns the pairs of one 16-byte access where they lie interleaved, so that a warp moves whole lines; of two such accesses, half a
row apart, where they do not. It reads their cos and sin once and keeps them in registers for HEADS heads, whose packs are all on their
way before the first is turned.
Other GPUs: revisit HEADS (table traffic against registers) and THREADS.
"""

import torch
import tvm_ffi.cpp

KERNEL_TYPE = "rotary_embedding"
BACKEND = "cuda"

HEADS = 2  # tune: 1, 2, 4, 8 | heads that one thread turns with the same cos and sin
THREADS = 128  # tune: 64, 128, 256, 512 | threads a block

SOURCE = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/extra/cuda/device_guard.h>
#include <cstdint>
#include <cstring>

using tvm::ffi::TensorView;
using f16 = __half;
using bf16 = __nv_bfloat16;

__device__ inline float widen(float v) { return v; }
__device__ inline float widen(f16 v) { return __half2float(v); }
__device__ inline float widen(bf16 v) { return __bfloat162float(v); }
template <typename T> __device__ inline T narrow(float v);  // round to nearest even
template <> __device__ inline float narrow(float v) { return v; }
template <> __device__ inline f16 narrow(float v) { return __float2half_rn(v); }
template <> __device__ inline bf16 narrow(float v) { return __float2bfloat16_rn(v); }

// N neighbouring elements, moved in one access: 16 bytes, or one element where nothing is aligned.
template <typename T, int N> struct alignas(N * sizeof(T)) Pack { T at[N]; };
template <typename T, int N> __device__ inline Pack<T, N> load(const T* p) { return *reinterpret_cast<const Pack<T, N>*>(p); }
// What is touched once need not stay in the caches.
template <typename T, int N> __device__ inline Pack<T, N> load_once(const T* p) {
  if constexpr (sizeof(Pack<T, N>) < 16) return load<T, N>(p);
  const uint4 raw = __ldcs(reinterpret_cast<const uint4*>(p));
  Pack<T, N> v;
  memcpy(&v, &raw, sizeof(v));
  return v;
}
template <typename T, int N> __device__ inline void store_once(T* p, const Pack<T, N>& v) {
  if constexpr (sizeof(Pack<T, N>) < 16) {
    *reinterpret_cast<Pack<T, N>*>(p) = v;
  } else {
    uint4 raw;
    memcpy(&raw, &v, sizeof(raw));
    __stcs(reinterpret_cast<uint4*>(p), raw);
  }
}

struct Strides { int64_t b, h, s; };  // in elements; the last dimension is contiguous

// A thread: N pairs at one position, HEADS heads. gridDim = (positions · units of N pairs, groups of heads, batch).
// TOGETHER: the features of its pairs are neighbours, and moved in one access.
template <typename T, int N, bool INTERLEAVED, bool TOGETHER>
__global__ void __launch_bounds__(THREADS) rotary(
    const T* x, Strides strides, const T* cos, const T* sin, int64_t cos_stride, int64_t sin_stride, T* out, int heads,
    int64_t positions, int width, bool per_feature) {
  const int half = width / 2, units = half / N;
  const int64_t thread = int64_t(blockIdx.x) * THREADS + threadIdx.x, position = thread / units;
  if (position >= positions) return;
  const int pair = int(thread - position * units) * N;  // the first of this thread's pairs
  // Where the two packs lie in a row of x: side by side, or one in each half.
  const int lower = INTERLEAVED ? 2 * pair : pair, upper = INTERLEAVED ? 2 * pair + N : pair + half;

  // cos and sin of the first and of the second feature of each pair; [S, D/2] has one value for both.
  float cos_a[N], cos_b[N], sin_a[N], sin_b[N];
  const T *c = cos + position * cos_stride, *s = sin + position * sin_stride;
  const Pack<T, N> c0 = load<T, N>(c + (per_feature ? lower : pair)), s0 = load<T, N>(s + (per_feature ? lower : pair));
  const Pack<T, N> c1 = per_feature ? load<T, N>(c + upper) : c0, s1 = per_feature ? load<T, N>(s + upper) : s0;
  #pragma unroll
  for (int i = 0; i < N; ++i) {
    if (INTERLEAVED && per_feature) {  // feature 2i is in the lower pack for the first half of the pairs
      const int a = 2 * i, b = 2 * i + 1;
      cos_a[i] = widen(a < N ? c0.at[a % N] : c1.at[a % N]), cos_b[i] = widen(b < N ? c0.at[b % N] : c1.at[b % N]);
      sin_a[i] = widen(a < N ? s0.at[a % N] : s1.at[a % N]), sin_b[i] = widen(b < N ? s0.at[b % N] : s1.at[b % N]);
    } else {
      cos_a[i] = widen(c0.at[i]), cos_b[i] = widen(c1.at[i]), sin_a[i] = widen(s0.at[i]), sin_b[i] = widen(s1.at[i]);
    }
  }

  const int first = int(blockIdx.y) * HEADS;
  const T* in = x + blockIdx.z * strides.b + first * strides.h + position * strides.s;
  T* to = out + ((int64_t(blockIdx.z) * heads + first) * positions + position) * width;
  Pack<T, N> low[HEADS], high[HEADS];
  #pragma unroll
  for (int h = 0; h < HEADS; ++h)
    if (first + h < heads) {
      if constexpr (TOGETHER) {
        const Pack<T, 2 * N> both = load_once<T, 2 * N>(in + h * strides.h + lower);
        memcpy(&low[h], both.at, sizeof(low[h]));
        memcpy(&high[h], both.at + N, sizeof(high[h]));
      } else {
        low[h] = load_once<T, N>(in + h * strides.h + lower);
        high[h] = load_once<T, N>(in + h * strides.h + upper);
      }
    }
  #pragma unroll
  for (int h = 0; h < HEADS; ++h)
    if (first + h < heads) {
      Pack<T, N> l, u;
      #pragma unroll
      for (int i = 0; i < N; ++i) {
        const int ia = INTERLEAVED ? 2 * i : i, ib = INTERLEAVED ? 2 * i + 1 : i + N;  // places in (lower, upper)
        const float a = widen(ia < N ? low[h].at[ia % N] : high[h].at[ia % N]);
        const float b = widen(ib < N ? low[h].at[ib % N] : high[h].at[ib % N]);
        const T ya = narrow<T>(a * cos_a[i] - b * sin_a[i]), yb = narrow<T>(b * cos_b[i] + a * sin_b[i]);
        (ia < N ? l : u).at[ia % N] = ya;
        (ib < N ? l : u).at[ib % N] = yb;
      }
      if constexpr (TOGETHER) {
        Pack<T, 2 * N> both;
        memcpy(both.at, &l, sizeof(l));
        memcpy(both.at + N, &u, sizeof(u));
        store_once<T, 2 * N>(to + h * positions * width + lower, both);
      } else {
        store_once<T, N>(to + h * positions * width + lower, l);
        store_once<T, N>(to + h * positions * width + upper, u);
      }
    }
}

template <typename T, int N, bool INTERLEAVED, bool TOGETHER>
void turn(TensorView x, TensorView cos, TensorView sin, TensorView out) {
  const auto stream = static_cast<cudaStream_t>(TVMFFIEnvGetStream(x.device().device_type, x.device().device_id));
  const T *in = static_cast<const T*>(x.data_ptr()), *c = static_cast<const T*>(cos.data_ptr());
  const T* s = static_cast<const T*>(sin.data_ptr());
  T* to = static_cast<T*>(out.data_ptr());
  const Strides strides = {x.stride(0), x.stride(1), x.stride(2)};
  const int heads = int(x.size(1)), width = int(x.size(3));
  const int64_t positions = x.size(2), units = positions * (width / 2 / N);
  const bool per_feature = cos.size(1) == width;
  const dim3 grid(unsigned((units + THREADS - 1) / THREADS), (heads + HEADS - 1) / HEADS, unsigned(x.size(0)));
  rotary<T, N, INTERLEAVED, TOGETHER><<<grid, THREADS, 0, stream>>>(
      in, strides, c, s, cos.stride(0), sin.stride(0), to, heads, positions, width, per_feature);
}

// 16 bytes at a time where every pack of every tensor starts at a multiple of them.
template <typename T> void rotary_embedding(TensorView x, TensorView cos, TensorView sin, TensorView out, bool interleaved) {
  constexpr int N = 16 / sizeof(T);
  bool even = x.size(3) / 2 % N == 0 && x.stride(0) % N == 0 && x.stride(1) % N == 0 && x.stride(2) % N == 0;
  even = even && cos.stride(0) % N == 0 && sin.stride(0) % N == 0;
  for (const TensorView& t : {x, cos, sin, out}) even = even && reinterpret_cast<uintptr_t>(t.data_ptr()) % 16 == 0;
  if (even && interleaved) turn<T, N / 2, true, true>(x, cos, sin, out);
  else if (even) turn<T, N, false, false>(x, cos, sin, out);
  else if (interleaved) turn<T, 1, true, false>(x, cos, sin, out);
  else turn<T, 1, false, false>(x, cos, sin, out);
}

void launch(TensorView x, TensorView cos, TensorView sin, TensorView out, bool interleaved) {
  if (out.numel() == 0) return;
  const tvm::ffi::CUDADeviceGuard guard(x.device().device_id);
  const DLDataType t = x.dtype();
  if (t.bits == 32) rotary_embedding<float>(x, cos, sin, out, interleaved);
  else if (t.code == kDLFloat) rotary_embedding<f16>(x, cos, sin, out, interleaved);
  else rotary_embedding<bf16>(x, cos, sin, out, interleaved);
  TVM_FFI_CHECK_CUDA_ERROR(cudaGetLastError());
}
"""

module = tvm_ffi.cpp.load_inline(
    "rotary_embedding",
    cuda_sources=SOURCE,
    functions=["launch"],
    extra_cuda_cflags=[f"-DHEADS={HEADS}", f"-DTHREADS={THREADS}"],
)


def kernel_fn(x, cos, sin, interleaved=True):
    x, cos, sin = (t if t.stride(-1) == 1 else t.contiguous() for t in (x, cos, sin))
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    module.launch(x, cos, sin, out, interleaved)
    return out
