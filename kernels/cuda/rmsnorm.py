"""RMSNorm, CUDA C++: y[r, :] = x[r, :] / sqrt(mean(x[r, :]²) + eps) · weight.

x [R, C], weight [C] -> [R, C]; float32, float16 or bfloat16, sums in float32.
Bytes: x is read and y written once, 2·R·C · itemsize; weight comes from the caches. Flops: 4·R·C, a hundred times fewer than a
GPU could do in the time of the bytes. So a row is read once, into registers, in accesses of 16 bytes that are all on
their way before the first is used; its squares are added up; and it is written from those registers. Rows beyond the registers
of a block (16,384 half-precision columns) are read a second time, from the L2 for the most part.
Rows in registers are read without a hint: to have x leave the caches first costs more where y is written at the same time.
Other GPUs: revisit PACKS and BLOCK (they decide how many bytes a multiprocessor has on their way).
"""

import torch
import tvm_ffi.cpp

KERNEL_TYPE = "rmsnorm"
BACKEND = "cuda"

PACKS = 2  # tune: 1, 2, 4, 8 | 16-byte pieces of a row that one thread keeps in registers
BLOCK = 128  # tune: 32, 64, 128, 256, 512 | threads that a block of short rows has at least: several rows share it
STREAM = 512  # tune: 128, 256, 512, 1024 | threads a block of rows that do not fit registers

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
__device__ inline void set(Pack<float>& p, int w, const float* v) { p.word[w] = __float_as_uint(v[0]); }
__device__ inline void set(Pack<f16>& p, int w, const float* v) {
  p.word[w] = bits(narrow<f16>(v[0])) | bits(narrow<f16>(v[1])) << 16;
}
__device__ inline void set(Pack<bf16>& p, int w, const float* v) {
  p.word[w] = bits(narrow<bf16>(v[0])) | bits(narrow<bf16>(v[1])) << 16;
}
template <typename T> __device__ inline Pack<T> packed(const float (&v)[Pack<T>::N]) {
  Pack<T> pack;
  #pragma unroll
  for (int w = 0; w < 4; ++w) set(pack, w, v + w * Pack<T>::PER_WORD);
  return pack;
}
__host__ __device__ inline bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// How many elements a row's start lies behind a 16-byte boundary. Rows of odd length start anywhere: a row is cut into
// packs at the boundaries, so that pack i holds columns [i * N - head, i * N - head + N).
template <typename T> __device__ inline int head_of(const T* row) {
  return int(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T));
}

// Pack at column `first` of a row; elements outside the row are `fill`. EVEN: rows are whole packs, so that no pack is
// cut. Elsewhere a pack that the row fills in part is read whole all the same: 16 aligned bytes lie in one allocation,
// whose size is a multiple of that.
template <bool EVEN, typename T>
__device__ inline Pack<T> load(const T* row, int first, int columns, float fill) {
  constexpr int N = Pack<T>::N, PER_WORD = Pack<T>::PER_WORD;
  const uint32_t outside = bits(narrow<T>(fill)), whole = PER_WORD == 1 ? ~0u : 0xffffu;
  const uint32_t empty = PER_WORD == 1 ? outside : outside | outside << 16;
  uint4 raw = make_uint4(empty, empty, empty, empty);
  if (EVEN ? first < columns : first + N > 0 && max(first, 0) < columns) raw = *reinterpret_cast<const uint4*>(row + first);
  Pack<T> pack;
  pack.word[0] = raw.x, pack.word[1] = raw.y, pack.word[2] = raw.z, pack.word[3] = raw.w;
  if (!EVEN && (first < 0 || first + N > columns)) {
    #pragma unroll
    for (int j = 0; j < N; ++j) {
      uint32_t& word = pack.word[j / PER_WORD];
      const int shift = 16 * (j % PER_WORD);
      if (first + j < 0 || first + j >= columns) word = (word & ~(whole << shift)) | outside << shift;
    }
  }
  return pack;
}

// As `load`, of a vector that all rows share: kept in the caches, and cut where the row is, so not always aligned.
// EVEN: it is, and the loads of all packs can be on their way together.
template <bool EVEN, typename T> __device__ inline Pack<T> load_shared(const T* vector, int first, int columns) {
  constexpr int PER_WORD = Pack<T>::PER_WORD;
  uint4 raw = make_uint4(0, 0, 0, 0);
  const bool whole = EVEN ? first < columns : first >= 0 && first + Pack<T>::N <= columns && aligned(vector + first);
  if (whole) raw = __ldg(reinterpret_cast<const uint4*>(vector + first));
  Pack<T> pack;
  pack.word[0] = raw.x, pack.word[1] = raw.y, pack.word[2] = raw.z, pack.word[3] = raw.w;
  if (!EVEN && !whole) {
    #pragma unroll
    for (int j = 0; j < Pack<T>::N; ++j) {
      const uint32_t value = first + j >= 0 && first + j < columns ? bits(vector[first + j]) : 0;
      pack.word[j / PER_WORD] = j % PER_WORD ? pack.word[j / PER_WORD] | value << 16 : value;
    }
  }
  return pack;
}

template <bool EVEN, typename T> __device__ inline void store(T* row, int first, int columns, const float (&v)[Pack<T>::N]) {
  if (EVEN ? first < columns : first >= 0 && first + Pack<T>::N <= columns && aligned(row + first)) {
    const Pack<T> p = packed<T>(v);
    __stcs(reinterpret_cast<uint4*>(row + first), make_uint4(p.word[0], p.word[1], p.word[2], p.word[3]));
  } else if (!EVEN) {
    #pragma unroll
    for (int j = 0; j < Pack<T>::N; ++j)
      if (first + j >= 0 && first + j < columns) row[first + j] = narrow<T>(v[j]);
  }
}

// The compiler would keep each element as a float from one pass to the next, twice the registers of the packed form:
// this hides that the packed form has not changed, so that it is widened again.
template <typename T> __device__ inline void repack(Pack<T>& pack) {
  #pragma unroll
  for (int w = 0; w < 4; ++w) asm volatile("" : "+r"(pack.word[w]));
}

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

template <typename T> __device__ inline float squares(const Pack<T>& pack) {
  float sum = 0;
  #pragma unroll
  for (int j = 0; j < Pack<T>::N; ++j) sum += element(pack, j) * element(pack, j);
  return sum;
}

template <bool EVEN, typename T>
__device__ inline void write(T* out, const T* weight, int first, int columns, const Pack<T>& pack, float scale) {
  const Pack<T> w = load_shared<EVEN>(weight, first, columns);
  float v[Pack<T>::N];
  #pragma unroll
  for (int j = 0; j < Pack<T>::N; ++j) v[j] = element(pack, j) * scale * element(w, j);
  store<EVEN>(out, first, columns, v);
}

// A row in registers: blockDim = (threads a row, rows a block).
template <typename T, bool EVEN>
__global__ void __launch_bounds__(1024)
rmsnorm_registers(const T* x, int64_t stride, const T* weight, T* y, int64_t rows, int columns, float eps) {
  __shared__ float scratch[32];
  const int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  const int length = row < rows ? columns : 0;  // a thread without a row stays for the barriers
  const T* in = x + (row < rows ? row : 0) * stride;
  const int head = EVEN ? 0 : head_of(in);

  Pack<T> kept[PACKS];
  float sum = 0;
  #pragma unroll
  for (int i = 0; i < PACKS; ++i)
    kept[i] = load<EVEN>(in, (i * int(blockDim.x) + int(threadIdx.x)) * Pack<T>::N - head, length, 0.0f);
  #pragma unroll
  for (int i = 0; i < PACKS; ++i) sum += squares(kept[i]);
  const float scale = rsqrtf(across_row(sum, Sum(), scratch) / columns + eps);

  #pragma unroll
  for (int i = 0; i < PACKS; ++i) {
    repack(kept[i]);
    write<EVEN>(y + row * columns, weight, (i * int(blockDim.x) + int(threadIdx.x)) * Pack<T>::N - head, length, kept[i], scale);
  }
}

// A longer row: a block reads it twice.
template <typename T>
__global__ void __launch_bounds__(STREAM)
rmsnorm_stream(const T* x, int64_t stride, const T* weight, T* y, int columns, float eps) {
  __shared__ float scratch[32];
  const T* in = x + blockIdx.x * stride;
  T* out = y + int64_t(blockIdx.x) * columns;
  const int head = head_of(in), step = STREAM * Pack<T>::N;
  float sum = 0;
  #pragma unroll 4
  for (int c = int(threadIdx.x) * Pack<T>::N - head; c < columns; c += step) sum += squares(load<false>(in, c, columns, 0.0f));
  const float scale = rsqrtf(across_row(sum, Sum(), scratch) / columns + eps);
  for (int c = int(threadIdx.x) * Pack<T>::N - head; c < columns; c += step)
    write<false>(out, weight, c, columns, load<false>(in, c, columns, 0.0f), scale);
}

template <typename T> void rmsnorm(TensorView x, TensorView weight, TensorView y, float eps) {
  const auto stream = static_cast<cudaStream_t>(TVMFFIEnvGetStream(x.device().device_type, x.device().device_id));
  const T *in = static_cast<const T*>(x.data_ptr()), *w = static_cast<const T*>(weight.data_ptr());
  T* out = static_cast<T*>(y.data_ptr());
  const int64_t rows = x.size(0), stride = x.stride(0);
  const int columns = int(x.size(1)), packs = (columns + Pack<T>::N - 1) / Pack<T>::N;
  // One pack more where a row may start between two boundaries.
  const bool even = aligned(in) && aligned(w) && columns % Pack<T>::N == 0 && stride % Pack<T>::N == 0;
  const unsigned threads = unsigned((packs + !even + 32 * PACKS - 1) / (32 * PACKS) * 32);
  if (threads <= 1024) {
    const unsigned together = std::max(1u, BLOCK / threads);
    const dim3 grid(unsigned((rows + together - 1) / together)), block(threads, together);
    if (even) rmsnorm_registers<T, true><<<grid, block, 0, stream>>>(in, stride, w, out, rows, columns, eps);
    else rmsnorm_registers<T, false><<<grid, block, 0, stream>>>(in, stride, w, out, rows, columns, eps);
  } else {
    rmsnorm_stream<T><<<unsigned(rows), STREAM, 0, stream>>>(in, stride, w, out, columns, eps);
  }
}

void launch(TensorView x, TensorView weight, TensorView y, double eps) {
  if (y.numel() == 0) return;
  TVM_FFI_CHECK(x.size(1) < 1 << 30, ValueError) << "rmsnorm: expected rows of less than 2^30 columns, got " << x.size(1);
  const tvm::ffi::CUDADeviceGuard guard(x.device().device_id);
  const DLDataType t = x.dtype();
  if (t.bits == 32) rmsnorm<float>(x, weight, y, float(eps));
  else if (t.code == kDLFloat) rmsnorm<f16>(x, weight, y, float(eps));
  else rmsnorm<bf16>(x, weight, y, float(eps));
  TVM_FFI_CHECK_CUDA_ERROR(cudaGetLastError());
}
"""

DEFINES = {"PACKS": PACKS, "BLOCK": BLOCK, "STREAM": STREAM}

module = tvm_ffi.cpp.load_inline(
    "rmsnorm",
    cuda_sources=SOURCE,
    functions=["launch"],
    extra_cuda_cflags=[f"-D{name}={value}" for name, value in DEFINES.items()],
)


def kernel_fn(x, weight, eps=1e-6):
    x = x if x.stride(-1) == 1 else x.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    module.launch(x, weight.contiguous(), y, float(eps))
    return y
