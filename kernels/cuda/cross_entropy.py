"""Cross entropy, CUDA C++: y = mean over rows r of log(sum(exp(x[r]))) - x[r, t[r]]; rows with t[r] < 0 do not count.

logits [R, V], targets [R] int64 -> a scalar []; logits in float32, float16 or bfloat16, all sums in float32.
Bytes: the logits are read once, R·V · itemsize; all else is R · 16. Flops: 4·R·V, an exponential among them: one byte in flight for two
of them, so the arithmetic has to stay as short as this. Nothing of a row is kept: maximum and sum of exponentials grow together, and
the sum is rescaled once for AHEAD packs when the maximum has grown.
The target's own logit is left out of the sum and comes in at the end: where it leads, the loss is log1p(sum of the others), with
all its digits however small. A second kernel, of one block, joins the parts of each row and takes the mean in a fixed order.
A target of V or more makes the result NaN: nothing is read beyond a row, and no one waits for the device to ask.
Other GPUs: revisit THREADS, AHEAD and WAVES (bytes on their way, blocks a multiprocessor holds).
"""

import torch
import tvm_ffi.cpp

KERNEL_TYPE = "cross_entropy"
BACKEND = "cuda"

THREADS = 128  # tune: 128, 256, 512, 1024 | threads a block
AHEAD = 2  # tune: 1, 2, 4, 8 | 16-byte pieces in flight a thread
WAVES = 4  # tune: 1, 2, 4, 8, 16 | blocks a multiprocessor under which rows are split

SOURCE = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/extra/cuda/device_guard.h>
#include <algorithm>
#include <cstdint>

using tvm::ffi::TensorView;
using f16 = __half;
using bf16 = __nv_bfloat16;

__device__ inline uint32_t bits(float v) { return __float_as_uint(v); }
__device__ inline uint32_t bits(f16 v) { return __half_as_ushort(v); }
__device__ inline uint32_t bits(bf16 v) { return __bfloat16_as_ushort(v); }
template <typename T> __device__ inline T narrow(float v);  // round to nearest even
template <> __device__ inline float narrow(float v) { return v; }
template <> __device__ inline f16 narrow(float v) { return __float2half_rn(v); }
template <> __device__ inline bf16 narrow(float v) { return __float2bfloat16_rn(v); }

// What one thread moves in one access: 16 bytes, the widest there is. As words, so that halves stay two to a register.
template <typename T> struct Pack {
  static constexpr int N = 16 / sizeof(T), PER_WORD = 4 / sizeof(T);
  uint32_t word[4];
};
__device__ inline float element(const Pack<float>& p, int j) { return __uint_as_float(p.word[j]); }
__device__ inline float element(const Pack<f16>& p, int j) {
  return __half2float(__ushort_as_half(uint16_t(p.word[j / 2] >> 16 * (j % 2))));
}
__device__ inline float element(const Pack<bf16>& p, int j) {
  return __uint_as_float(j % 2 ? p.word[j / 2] & 0xffff0000u : p.word[j / 2] << 16);
}
__host__ __device__ inline bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// How many elements a row's start lies behind a 16-byte boundary. Rows of odd length start anywhere: a row is cut into
// packs at the boundaries, so that pack i holds columns [i * N - head, i * N - head + N).
template <typename T> __device__ inline int head_of(const T* row) {
  return int(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T));
}

// Pack at column `first` of a row; elements outside the row are `fill`. A pack that the row fills in part is read whole
// all the same: 16 aligned bytes lie in one allocation, whose size is a multiple of that. REUSED: read again, so the
// caches should keep it.
template <bool REUSED = false, typename T>
__device__ inline Pack<T> load(const T* row, int first, int columns, float fill) {
  constexpr int N = Pack<T>::N, PER_WORD = Pack<T>::PER_WORD;
  Pack<T> pack;
  uint4 raw = make_uint4(0, 0, 0, 0);
  if (first + N > 0 && max(first, 0) < columns) {
    const uint4* p = reinterpret_cast<const uint4*>(row + first);
    raw = REUSED ? *p : __ldcs(p);
  }
  pack.word[0] = raw.x, pack.word[1] = raw.y, pack.word[2] = raw.z, pack.word[3] = raw.w;
  if (first < 0 || first + N > columns) {
    const uint32_t outside = bits(narrow<T>(fill)), whole = PER_WORD == 1 ? ~0u : 0xffffu;
    #pragma unroll
    for (int j = 0; j < N; ++j) {
      uint32_t& word = pack.word[j / PER_WORD];
      const int shift = 16 * (j % PER_WORD);
      if (first + j < 0 || first + j >= columns) word = (word & ~(whole << shift)) | outside << shift;
    }
  }
  return pack;
}

struct Max {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
  __device__ float none() const { return -INFINITY; }
};
struct Sum {
  __device__ float operator()(float a, float b) const { return a + b; }
  __device__ float none() const { return 0; }
};

// v of all threads of a row (those of one threadIdx.y), combined in a fixed order; all of them get the result. Each call
// of a kernel has a scratch of its own, so that one barrier is enough, and every warp adds up the warps' results itself.
template <typename Op> __device__ inline float across_row(float v, Op op, float* scratch) {
  #pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) v = op(v, __shfl_xor_sync(0xffffffffu, v, lane));
  if (blockDim.x > 32) {
    const int warps = blockDim.x / 32, mine = threadIdx.x % 32;
    float* row = scratch + threadIdx.y * warps;
    if (mine == 0) row[threadIdx.x / 32] = v;
    __syncthreads();
    v = mine < warps ? row[mine] : op.none();
    #pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) v = op(v, __shfl_xor_sync(0xffffffffu, v, lane));
  }
  return v;
}

__device__ inline float exp2_approx(float v) {  // within 2 units in the last place; results below 2^-126 are 0
  float y;
  asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(v));
  return y;
}
// exp in two instructions. __expf takes three more to keep results below 2^-126: here they stand beside exp(0) = 1.
__device__ inline float fast_exp(float v) { return exp2_approx(v * 1.4426950408889634f); }

// A maximum of -inf would make exp(-inf - -inf) a NaN; with 0 in its place exp gives the 0 that is meant.
__device__ inline float base_of(float max) { return max == -INFINITY ? 0.0f : max; }

// One part of one row without its target: (maximum, sum of exponentials less the maximum). gridDim.x = rows · parts.
template <typename T>
__global__ void __launch_bounds__(THREADS) cross_entropy_rows(
    const T* logits, int64_t stride, const int64_t* targets, int64_t target_stride, float2* stats, int columns, int parts) {
  __shared__ float scratch[2][32];
  const int64_t row = blockIdx.x / parts;
  const int part = int(blockIdx.x % parts);
  const T* in = logits + row * stride;
  const int64_t target = targets[row * target_stride];
  if (target < 0) return;  // the row does not count, and nobody reads its part
  const int head = head_of(in), packs = (columns + head + Pack<T>::N - 1) / Pack<T>::N;
  const int each = (packs + parts - 1) / parts, from = part * each, to = min(from + each, packs);
  const int own = target < columns ? (int(target) + head) / Pack<T>::N : -1;  // the pack that holds the target

  float max = -INFINITY, sum = 0;
  for (int i = from + int(threadIdx.x); i < to; i += AHEAD * THREADS) {
    Pack<T> pack[AHEAD];
    #pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      const int piece = i + k * THREADS;
      pack[k] = load(in, piece * Pack<T>::N - head, piece < to ? columns : 0, -INFINITY);
      if (piece == own) {
        #pragma unroll
        for (int j = 0; j < Pack<T>::N; ++j) {
          const uint32_t whole = Pack<T>::PER_WORD == 1 ? ~0u : 0xffffu, nothing = bits(narrow<T>(-INFINITY));
          const int shift = 16 * (j % Pack<T>::PER_WORD);
          uint32_t& word = pack[k].word[j / Pack<T>::PER_WORD];
          if (piece * Pack<T>::N - head + j == int(target)) word = (word & ~(whole << shift)) | nothing << shift;
        }
      }
    }
    float higher = max;
    #pragma unroll
    for (int k = 0; k < AHEAD; ++k)
      #pragma unroll
      for (int j = 0; j < Pack<T>::N; ++j) higher = fmaxf(higher, element(pack[k], j));  // a NaN shows in the sum
    const float base = base_of(higher);
    sum *= fast_exp(max - base);
    #pragma unroll
    for (int k = 0; k < AHEAD; ++k)
      #pragma unroll
      for (int j = 0; j < Pack<T>::N; ++j) sum += fast_exp(element(pack[k], j) - base);
    max = higher;
  }
  const float all = across_row(max, Max(), scratch[0]);
  sum = across_row(sum * fast_exp(max - base_of(all)), Sum(), scratch[1]);
  if (threadIdx.x == 0) stats[row * parts + part] = make_float2(all, sum);
}

// log(exp(target) + sum of the others' exponentials) - target.
__device__ inline float loss_of(float2 others, float target) {
  if (target == INFINITY) return NAN;
  if (others.x == -INFINITY) return others.y + (target - target);  // nothing beside it: 0, or a NaN's
  const float ahead = target - others.x;  // of the highest other logit
  return ahead >= 0 ? log1pf(others.y * expf(-ahead)) : logf(others.y + expf(ahead)) - ahead;
}

constexpr int LAST = 1024;  // threads of the one block that takes the mean

template <typename T>
__global__ void __launch_bounds__(LAST) cross_entropy_mean(
    const T* logits, int64_t stride, const int64_t* targets, int64_t target_stride, const float2* stats, T* out,
    int64_t rows, int columns, int parts) {
  __shared__ float scratch[2][32];
  float loss = 0, count = 0;
  #pragma unroll 4
  for (int64_t row = threadIdx.x; row < rows; row += LAST) {
    const int64_t target = targets[row * target_stride];
    if (target < 0) continue;
    float2 all = make_float2(-INFINITY, 0);
    for (int p = 0; p < parts; ++p) all.x = fmaxf(all.x, stats[row * parts + p].x);
    for (int p = 0; p < parts; ++p) {
      const float2 one = stats[row * parts + p];
      all.y += one.y * expf(one.x - base_of(all.x));
    }
    Pack<T> own;
    own.word[0] = target < columns ? bits(logits[row * stride + target]) : bits(narrow<T>(NAN));
    loss += loss_of(all, element(own, 0));
    count += 1;  // exact up to 2^24 rows a thread
  }
  loss = across_row(loss, Sum(), scratch[0]);
  count = across_row(count, Sum(), scratch[1]);
  if (threadIdx.x == 0) *out = narrow<T>(loss / count);
}

// How many blocks share a row: enough that every multiprocessor has WAVES of them, with a pack for every thread.
int64_t parts(TensorView logits) {
  const int64_t rows = std::max<int64_t>(1, logits.size(0)), packs = (logits.size(1) * logits.dtype().bits + 127) / 128;
  int processors = 1;
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, logits.device().device_id);
  return std::clamp<int64_t>((processors * WAVES + rows - 1) / rows, 1, std::max<int64_t>(1, packs / (THREADS * AHEAD)));
}

template <typename T> void cross_entropy(TensorView logits, TensorView targets, TensorView stats, TensorView out) {
  const DLDevice device = logits.device();
  const auto stream = static_cast<cudaStream_t>(TVMFFIEnvGetStream(device.device_type, device.device_id));
  const T* x = static_cast<const T*>(logits.data_ptr());
  const int64_t* t = static_cast<const int64_t*>(targets.data_ptr());
  float2* parts_of = static_cast<float2*>(stats.data_ptr());
  T* y = static_cast<T*>(out.data_ptr());
  const int64_t rows = logits.size(0), stride = logits.stride(0), step = targets.stride(0);
  const int columns = int(logits.size(1)), parts = int(stats.size(1));
  if (rows > 0)
    cross_entropy_rows<T><<<unsigned(rows * parts), THREADS, 0, stream>>>(x, stride, t, step, parts_of, columns, parts);
  cross_entropy_mean<T><<<1, LAST, 0, stream>>>(x, stride, t, step, parts_of, y, rows, columns, parts);
}

void launch(TensorView logits, TensorView targets, TensorView stats, TensorView out) {
  TVM_FFI_CHECK(logits.size(1) < 1 << 30, ValueError) << "cross_entropy: expected less than 2^30 classes, got " << logits.size(1);
  const tvm::ffi::CUDADeviceGuard guard(logits.device().device_id);
  const DLDataType t = logits.dtype();
  if (t.bits == 32) cross_entropy<float>(logits, targets, stats, out);
  else if (t.code == kDLFloat) cross_entropy<f16>(logits, targets, stats, out);
  else cross_entropy<bf16>(logits, targets, stats, out);
  TVM_FFI_CHECK_CUDA_ERROR(cudaGetLastError());
}
"""

DEFINES = {"THREADS": THREADS, "AHEAD": AHEAD, "WAVES": WAVES}

module = tvm_ffi.cpp.load_inline(
    "cross_entropy",
    cuda_sources=SOURCE,
    functions=["launch", "parts"],
    extra_cuda_cflags=[f"-D{name}={value}" for name, value in DEFINES.items()],
)


def kernel_fn(logits, targets):
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    stats = torch.empty((logits.shape[0], module.parts(logits), 2), dtype=torch.float32, device=logits.device)
    out = torch.empty((), dtype=logits.dtype, device=logits.device)
    module.launch(logits, targets, stats, out)
    return out
