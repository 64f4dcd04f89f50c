"""Cross entropy, CUDA C++: y = mean over rows r of log(sum(exp(x[r]))) - x[r, t[r]]; rows with t[r] < 0 do not count.

logits [R, V], targets [R] int64 -> a scalar []; logits in float32, float16 or bfloat16, all sums in float32.
Bytes: the logits are read once, R·V · itemsize; all else is R · 16. Flops: 4·R·V, an exponential among them: one byte in flight for two
of them, so what an element costs decides, too: ten instructions are too many, seven are not. Its exponential is two and a subtraction;
halves are compared two at once; and only the ends of a row, and the step that meets the target, look where they are.
Nothing of a row is kept: maximum and sum of exponentials grow together, and the sum is rescaled once for AHEAD packs.
The target's own logit is left out of the sum and comes in at the end: where it leads, the loss is log1p(sum of the others), with
all its digits however small. A second kernel, of one block, joins the parts of each row and takes the mean in a fixed order; it is
launched early, where the device can, and waits for the first.
A target of V or more makes the result NaN: nothing is read beyond a row, and no one waits for the device to ask.
Other GPUs: revisit THREADS, AHEAD and WAVES (bytes on their way, blocks a multiprocessor holds).
"""

import torch
import tvm_ffi.cpp

KERNEL_TYPE = "cross_entropy"
BACKEND = "cuda"

THREADS = 256  # tune: 128, 256, 512, 1024 | threads a block
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

// Pack at column `first` of a row, -inf in place of column `without` and of what lies outside the row. A pack that the
// row fills in part is read whole all the same: 16 aligned bytes lie in one allocation, whose size is a multiple of that.
template <typename T> __device__ inline Pack<T> load(const T* row, int first, int columns, int without) {
  constexpr int N = Pack<T>::N, PER_WORD = Pack<T>::PER_WORD;
  const uint32_t nothing = bits(narrow<T>(-INFINITY)), whole = PER_WORD == 1 ? ~0u : 0xffffu;
  uint4 raw = make_uint4(0, 0, 0, 0);
  if (first + N > 0 && max(first, 0) < columns) raw = __ldcs(reinterpret_cast<const uint4*>(row + first));
  Pack<T> pack{{raw.x, raw.y, raw.z, raw.w}};
  #pragma unroll
  for (int j = 0; j < N; ++j) {
    uint32_t& word = pack.word[j / PER_WORD];
    const int column = first + j, shift = 16 * (j % PER_WORD);
    if (column < 0 || column >= columns || column == without) word = (word & ~(whole << shift)) | nothing << shift;
  }
  return pack;
}

// The largest element of a pack: halves two at once.
__device__ inline float top_of(const Pack<float>& p) {
  return fmaxf(fmaxf(element(p, 0), element(p, 1)), fmaxf(element(p, 2), element(p, 3)));
}
__device__ inline float top_of(const Pack<f16>& p) {
  const __half2* v = reinterpret_cast<const __half2*>(p.word);
  const __half2 top = __hmax2(__hmax2(v[0], v[1]), __hmax2(v[2], v[3]));
  return fmaxf(__low2float(top), __high2float(top));
}
__device__ inline float top_of(const Pack<bf16>& p) {
  const __nv_bfloat162* v = reinterpret_cast<const __nv_bfloat162*>(p.word);
  const __nv_bfloat162 top = __hmax2(__hmax2(v[0], v[1]), __hmax2(v[2], v[3]));
  return fmaxf(__low2float(top), __high2float(top));
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

// Early starts, which sm_90 and later have: the next launch may begin while this one runs, and waits before it reads.
// Whether this is built for nothing older, launch and kernels must agree about.
#ifdef __CUDA_ARCH_LIST__
constexpr int BUILT_FOR[] = {__CUDA_ARCH_LIST__};  // ascending
constexpr unsigned EARLY = BUILT_FOR[0] >= 900;
#else
constexpr unsigned EARLY = 0;
#endif
__device__ inline void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ inline void wait_for_earlier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ inline void prefetch(const void* p) {  // to the L2 cache; nobody waits for it
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

// A maximum of -inf would make exp(-inf - -inf) a NaN; with 0 in its place exp gives the 0 that is meant.
__device__ inline float base_of(float max) { return max == -INFINITY ? 0.0f : max; }

// One part of one row without its target: maximum and sum of exponentials less the maximum; and the target's own logit.
// Of a row, stats holds those of its parts, then the target's. gridDim.x = rows * parts.
template <typename T>
__global__ void __launch_bounds__(THREADS) cross_entropy_rows(
    const T* logits, int64_t stride, const int64_t* targets, int64_t target_stride, float* stats, int columns, int parts) {
  constexpr int N = Pack<T>::N;
  __shared__ float scratch[2][32];
  const int64_t row = blockIdx.x / parts;
  const int part = int(blockIdx.x % parts);
  const T* in = logits + row * stride;
  const int head = head_of(in), packs = (columns + head + N - 1) / N;
  const int each = (packs + parts - 1) / parts, from = part * each, to = min(from + each, packs), first = from + int(threadIdx.x);
  let_next_begin();
  const int64_t target = targets[row * target_stride];
  #pragma unroll
  for (int k = 0; k < AHEAD; ++k)  // the first packs are on their way while the target is
    if (first + k * THREADS < to) prefetch(in - head + int64_t(first + k * THREADS) * N);
  if (target < 0) return;  // the row does not count, and nobody reads its part
  stats += row * (2 * parts + 1);

  // Where a step's packs are all whole, they are read as they lie; the pack of the target is met in one step at most.
  const int last = min(to, packs - 1) - (AHEAD - 1) * THREADS;
  const int own = target < columns ? (int(target) + head) / N : -1;
  const int met = own >= from && own < to && (own - first) % THREADS == 0 ? own - (own - first) / THREADS % AHEAD * THREADS : -1;
  if (part == 0 && threadIdx.x == 0 && target < columns) {
    Pack<T> one{{bits(in[target])}};
    stats[2 * parts] = element(one, 0);
  }
  float max = -INFINITY, sum = 0;
  for (int i = first; i < to; i += AHEAD * THREADS) {
    Pack<T> pack[AHEAD];
    if (i > 0 && i < last && i != met) {
      #pragma unroll
      for (int k = 0; k < AHEAD; ++k) {
        const uint4 raw = __ldcs(reinterpret_cast<const uint4*>(in - head) + (i + k * THREADS));
        pack[k] = {{raw.x, raw.y, raw.z, raw.w}};
      }
    } else {
      #pragma unroll
      for (int k = 0; k < AHEAD; ++k)
        pack[k] = load(in, (i + k * THREADS) * N - head, i + k * THREADS < to ? columns : 0, int(target));
    }
    float higher = max;
    #pragma unroll
    for (int k = 0; k < AHEAD; ++k) higher = fmaxf(higher, top_of(pack[k]));  // a NaN shows in the sum
    const float base = base_of(higher);
    sum *= fast_exp(max - base);
    #pragma unroll
    for (int k = 0; k < AHEAD; ++k)
      #pragma unroll
      for (int j = 0; j < N; ++j) sum += fast_exp(element(pack[k], j) - base);
    max = higher;
  }
  const float all = across_row(max, Max(), scratch[0]);
  sum = across_row(sum * fast_exp(max - base_of(all)), Sum(), scratch[1]);
  if (threadIdx.x == 0) stats[2 * part] = all, stats[2 * part + 1] = sum;
}

// log(exp(target) + sum of the others' exponentials) - target; the sum is less the others' maximum.
__device__ inline float loss_of(float max, float sum, float target) {
  if (target == INFINITY) return NAN;
  if (max == -INFINITY) return sum + (target - target);  // nothing beside it: 0, or a NaN's
  const float ahead = target - max;  // of the highest other logit
  return ahead >= 0 ? log1pf(sum * expf(-ahead)) : logf(sum + expf(ahead)) - ahead;
}

// Maximum and sum of a row whose parts are those of `stats`.
__device__ inline void join(const float* stats, int parts, float& max, float& sum) {
  for (int p = 1; p < parts; ++p) max = fmaxf(max, stats[2 * p]);
  sum = 0;
  for (int p = 0; p < parts; ++p) sum += stats[2 * p + 1] * expf(stats[2 * p] - base_of(max));
}

constexpr int LAST = 1024, BATCH = 4;  // threads of the one block that takes the mean, and rows that each reads at once

template <typename T>
__global__ void __launch_bounds__(LAST) cross_entropy_mean(
    const int64_t* targets, int64_t target_stride, const float* stats, T* out, int64_t rows, int columns, int parts) {
  __shared__ float scratch[2][32];
  float loss = 0, count = 0;
  wait_for_earlier();
  for (int64_t first = threadIdx.x; first < rows; first += BATCH * LAST) {
    int64_t target[BATCH];
    float max[BATCH], sum[BATCH], own[BATCH];
    #pragma unroll
    for (int r = 0; r < BATCH; ++r) target[r] = first + r * LAST < rows ? targets[(first + r * LAST) * target_stride] : -1;
    #pragma unroll
    for (int r = 0; r < BATCH; ++r)
      if (target[r] >= 0) {
        const float* row = stats + (first + r * LAST) * (2 * parts + 1);
        max[r] = row[0], sum[r] = row[1], own[r] = target[r] < columns ? row[2 * parts] : NAN;
      }
    #pragma unroll
    for (int r = 0; r < BATCH; ++r)
      if (target[r] >= 0) {
        if (parts > 1) join(stats + (first + r * LAST) * (2 * parts + 1), parts, max[r], sum[r]);
        loss += loss_of(max[r], sum[r], own[r]);
        count += 1;  // exact up to 2^24 rows a thread
      }
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
  float* found = static_cast<float*>(stats.data_ptr());
  T* y = static_cast<T*>(out.data_ptr());
  const int64_t rows = logits.size(0), stride = logits.stride(0), step = targets.stride(0);
  const int columns = int(logits.size(1)), parts = int(stats.size(1) / 2);
  if (rows > 0)
    cross_entropy_rows<T><<<unsigned(rows * parts), THREADS, 0, stream>>>(x, stride, t, step, found, columns, parts);
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  const cudaLaunchConfig_t config = {dim3(1), dim3(LAST), 0, stream, &early, EARLY};
  TVM_FFI_CHECK_CUDA_ERROR(cudaLaunchKernelEx(&config, cross_entropy_mean<T>, t, step, found, y, rows, columns, parts));
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
    stats = torch.empty((logits.shape[0], 2 * module.parts(logits) + 1), dtype=torch.float32, device=logits.device)
    out = torch.empty((), dtype=logits.dtype, device=logits.device)
    module.launch(logits, targets, stats, out)
    return out
