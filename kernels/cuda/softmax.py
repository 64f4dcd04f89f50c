"""Softmax, CUDA C++: y[r, :] = exp(x[r, :] - max) / sum(exp(x[r, :] - max)).

x [R, C] -> [R, C]; float32, float16 or bfloat16, exponentials and sums in float32.
Bytes: x is read, y is written: 2·R·C · itemsize. Flops: 5·R·C, an exponential among them.
A GPU moves about four bytes in the time of one such flop, so what counts is that every byte moves once, 16 at a time, and that many
are on their way at once. Four paths:
- a row fits the registers of a block (up to 32,768 half-precision columns): read once, reduce, write once;
- a longer row that fits shared memory (Hopper's: up to 116,000), and rows enough to fill the GPU: a block a row, read once. All of it
  is asked for at once and waits in shared memory, not in registers; of rows up to half of that a multiprocessor holds two, and one is
  read while the other is written;
- a row that fits neither: a block a row, read twice. The second reading finds most of it in the L2;
- a row too long for registers, and few of them: several blocks a row; partial maxima and sums go through memory between two kernels.
Rows in registers are read without a hint: to have x leave the caches first costs more where y is written at the same time.
Other GPUs: revisit PACKS and BLOCK (registers and blocks a multiprocessor holds) first, then STREAM, AHEAD and GROUPS.
"""

import torch
import tvm_ffi.cpp

KERNEL_TYPE = "softmax"
BACKEND = "cuda"

PACKS = 4  # tune: 1, 2, 4, 8 | 16-byte pieces of a row that one thread keeps in registers
BLOCK = 128  # tune: 32, 64, 128, 256, 512 | threads that a block of short rows has at least: several rows share it
STREAM = 512  # tune: 128, 256, 512, 1024 | threads a block of rows that do not fit registers
AHEAD = 4  # tune: 1, 2, 4, 8 | 16-byte pieces in flight a thread where rows are streamed
GROUPS = 4  # tune: 1, 2, 4, 8 | parts in which a row comes to shared memory: one is added up while the others come
WAVES = 2  # tune: 1, 2, 4, 8 | blocks a multiprocessor under which long rows are split

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

// The pack at column `first`, which the row fills in part: elements outside the row become `fill`.
template <typename T> __device__ inline void cut(Pack<T>& pack, int first, int columns, float fill) {
  constexpr int N = Pack<T>::N, PER_WORD = Pack<T>::PER_WORD;
  const uint32_t outside = bits(narrow<T>(fill)), whole = PER_WORD == 1 ? ~0u : 0xffffu;
  #pragma unroll
  for (int j = 0; j < N; ++j) {
    uint32_t& word = pack.word[j / PER_WORD];
    const int shift = 16 * (j % PER_WORD);
    if (first + j < 0 || first + j >= columns) word = (word & ~(whole << shift)) | outside << shift;
  }
}

// Pack at column `first` of a row; elements outside the row are `fill`. EVEN: rows are whole packs, so that no pack is
// cut. Elsewhere a pack that the row fills in part is read whole all the same: 16 aligned bytes lie in one allocation,
// whose size is a multiple of that. LAST: not read again, so the caches may drop it first.
template <bool EVEN, bool LAST = false, typename T>
__device__ inline Pack<T> load(const T* row, int first, int columns, float fill) {
  constexpr int N = Pack<T>::N, PER_WORD = Pack<T>::PER_WORD;
  const uint32_t outside = bits(narrow<T>(fill));
  const uint32_t empty = PER_WORD == 1 ? outside : outside | outside << 16;
  uint4 raw = make_uint4(empty, empty, empty, empty);
  if (EVEN ? first < columns : first + N > 0 && max(first, 0) < columns) {
    const uint4* p = reinterpret_cast<const uint4*>(row + first);
    raw = LAST ? __ldcs(p) : *p;
  }
  Pack<T> pack;
  pack.word[0] = raw.x, pack.word[1] = raw.y, pack.word[2] = raw.z, pack.word[3] = raw.w;
  if (!EVEN && (first < 0 || first + N > columns)) cut(pack, first, columns, fill);
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
constexpr float LOG2_E = 1.4426950408889634f;
__device__ inline float fast_exp(float v) { return exp2_approx(v * LOG2_E); }

// A maximum of -inf would make exp(-inf - -inf) a NaN; with 0 in its place exp gives the 0 that is meant.
__device__ inline float base_of(float max) { return max == -INFINITY ? 0.0f : max; }

struct Exp {  // of what an element is above `base`
  float base;
  __device__ explicit Exp(float base) : base(base) {}
  __device__ float operator()(float v) const { return fast_exp(v - base); }
};
// The same in one instruction less, for float16 alone: base's product with log2 e is rounded, which takes all exponentials
// times the same factor, and the division by the sum takes it away. What a thread summed below a base of its own keeps its
// factor: float16's steps are so wide beside it that less than 2^-14 of the sum is off. Other types know no such bound.
struct ExpOfHalf {
  float base;
  __device__ explicit ExpOfHalf(float base) : base(base * LOG2_E) {}
  __device__ float operator()(float v) const { return exp2_approx(fmaf(v, LOG2_E, -base)); }
};

template <bool EVEN, typename T, typename E>
__device__ inline void write(T* out, int first, int columns, const Pack<T>& pack, E exp, float scale) {
  float v[Pack<T>::N];
  #pragma unroll
  for (int j = 0; j < Pack<T>::N; ++j) v[j] = exp(element(pack, j)) * scale;
  store<EVEN>(out, first, columns, v);
}

// ---- a row in registers: blockDim = (threads a row, rows a block)
template <typename T, bool EVEN>
__global__ void __launch_bounds__(1024) softmax_registers(const T* x, int64_t stride, T* y, int64_t rows, int columns) {
  __shared__ float scratch[2][32];
  const int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  const bool live = row < rows;  // a thread without a row stays for the barriers
  const T* in = x + (live ? row : 0) * stride;
  const int length = live ? columns : 0;
  const int head = EVEN ? 0 : head_of(in);

  Pack<T> kept[PACKS];
  float max = -INFINITY;
  #pragma unroll
  for (int i = 0; i < PACKS; ++i)
    kept[i] = load<EVEN>(in, (i * int(blockDim.x) + int(threadIdx.x)) * Pack<T>::N - head, length, -INFINITY);
  #pragma unroll
  for (int i = 0; i < PACKS; ++i)
    #pragma unroll
    for (int j = 0; j < Pack<T>::N; ++j) max = fmaxf(max, element(kept[i], j));  // a NaN shows in the sum
  max = base_of(across_row(max, Max(), scratch[0]));

  float sum = 0;
  #pragma unroll
  for (int i = 0; i < PACKS; ++i) {
    repack(kept[i]);
    #pragma unroll
    for (int j = 0; j < Pack<T>::N; ++j) sum += fast_exp(element(kept[i], j) - max);
  }
  const float scale = __fdividef(1.0f, across_row(sum, Sum(), scratch[1]));

  #pragma unroll
  for (int i = 0; i < PACKS; ++i) {
    repack(kept[i]);
    write<EVEN>(y + row * columns, (i * int(blockDim.x) + int(threadIdx.x)) * Pack<T>::N - head, length, kept[i], Exp(max), scale);
  }
}

// ---- longer rows: maximum and sum of exponentials in one reading, the sum rescaled as the maximum grows
template <typename E, int COUNT, typename T> __device__ inline void add(const Pack<T> (&packs)[COUNT], float& max, float& sum) {
  float higher = max;
  #pragma unroll
  for (int k = 0; k < COUNT; ++k)
    #pragma unroll
    for (int j = 0; j < Pack<T>::N; ++j) higher = fmaxf(higher, element(packs[k], j));
  const float base = base_of(higher);
  const E exp(base);
  sum *= fast_exp(max - base);  // by 1 where the maximum stays
  #pragma unroll
  for (int k = 0; k < COUNT; ++k)
    #pragma unroll
    for (int j = 0; j < Pack<T>::N; ++j) sum += exp(element(packs[k], j));
  max = higher;
}

// A row's maximum and sum from those of its threads
__device__ inline float2 together(float max, float sum, float (*scratch)[32]) {
  const float all = across_row(max, Max(), scratch[0]);
  return {all, across_row(sum * fast_exp(max - base_of(all)), Sum(), scratch[1])};
}

template <typename T> __device__ inline int pieces(const T* in, int columns) {
  return (columns + head_of(in) + Pack<T>::N - 1) / Pack<T>::N;
}

// ---- rows that fit shared memory, in GROUPS groups of `span` packs. A thread copies packs to places that it alone reads:
// it waits for its own copies, for the block only where sums meet. No register is held for a pack on its way.
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

template <typename T>
__global__ void __launch_bounds__(STREAM, 2) softmax_shared(const T* x, int64_t stride, T* y, int columns, int span) {
  constexpr int N = Pack<T>::N;
  using E = std::conditional_t<std::is_same_v<T, f16>, ExpOfHalf, Exp>;
  extern __shared__ __align__(16) uint4 places[];  // of a row's packs
  __shared__ float scratch[2][32];
  const T* in = x + blockIdx.x * stride;
  const int head = head_of(in), packs = pieces(in, columns);
  in -= head;  // pack i is at in + i * N
  T* out = y + int64_t(blockIdx.x) * columns - head;
  for (int group = 0; group < GROUPS; ++group) {
    const int end = min(packs, (group + 1) * span);
    for (int i = group * span + int(threadIdx.x); i < end; i += STREAM) copy_async(places + i, in + int64_t(i) * N, 16);
    copy_async_commit();
  }

  const int first = head > 0, whole = (columns + head) / N;  // packs [first, whole) are whole
  auto kept = [&](int i) {
    const uint4 raw = places[i];
    return Pack<T>{raw.x, raw.y, raw.z, raw.w};
  };
  auto read = [&](int i) {
    Pack<T> pack = kept(i);
    if (i < first || i >= whole) cut(pack, i * N - head, columns, -INFINITY);
    return pack;
  };
  float max = -INFINITY, sum = 0;
  #pragma unroll 1
  for (int group = 0; group < GROUPS; ++group) {
    copy_async_wait<GROUPS - 1>();
    const int end = min(packs, (group + 1) * span);
    int i = group * span + int(threadIdx.x);
    for (; i + STREAM < end; i += 2 * STREAM) {
      const Pack<T> pair[2] = {read(i), read(i + STREAM)};
      add<E>(pair, max, sum);
    }
    if (i < end) {
      const Pack<T> last[1] = {read(i)};
      add<E>(last, max, sum);
    }
    copy_async_commit();  // of nothing: GROUPS - 1 groups are younger than the next one, too
  }
  const float2 stats = together(max, sum, scratch);
  const E exp(base_of(stats.x));
  const float scale = __fdividef(1.0f, stats.y);

  const int plain = aligned(out) ? whole : 0;  // packs [first, plain) are whole in y, too; others go an element at a time
  #pragma unroll 2
  for (int i = threadIdx.x; i < packs; i += STREAM) {
    const Pack<T> pack = kept(i);
    T* at = out + i * N;
    if (i >= first && i < plain) {
      write<true>(at, 0, N, pack, exp, scale);
    } else {
      #pragma unroll
      for (int j = 0; j < N; ++j)
        if (i * N + j >= head && i * N + j < columns + head) at[j] = narrow<T>(exp(element(pack, j)) * scale);
    }
  }
}

// ---- rows that do not: pieces [from, to)
template <typename T>
__device__ inline float2 stream(const T* in, int from, int to, int columns, float (*scratch)[32]) {
  const int head = head_of(in);
  float max = -INFINITY, sum = 0;
  for (int i = from + threadIdx.x; i < to; i += AHEAD * int(blockDim.x)) {
    Pack<T> packs[AHEAD];
    #pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      const int piece = i + k * int(blockDim.x);
      packs[k] = load<false>(in, piece * Pack<T>::N - head, piece < to ? columns : 0, -INFINITY);
    }
    add<Exp>(packs, max, sum);
  }
  return together(max, sum, scratch);
}

template <typename T>
__device__ inline void write_row(const T* in, T* out, int from, int to, int columns, float base, float scale) {
  const int head = head_of(in);
  for (int i = from + threadIdx.x; i < to; i += AHEAD * int(blockDim.x)) {
    Pack<T> packs[AHEAD];
    #pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      const int piece = i + k * int(blockDim.x);
      packs[k] = load<false, true>(in, piece * Pack<T>::N - head, piece < to ? columns : 0, 0.0f);
    }
    #pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      const int piece = i + k * int(blockDim.x);
      write<false>(out, piece * Pack<T>::N - head, piece < to ? columns : 0, packs[k], Exp(base), scale);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(STREAM) softmax_stream(const T* x, int64_t stride, T* y, int columns) {
  __shared__ float scratch[2][32];
  const T* in = x + blockIdx.x * stride;
  const int all = pieces(in, columns);
  const float2 stats = stream(in, 0, all, columns, scratch);
  write_row(in, y + int64_t(blockIdx.x) * columns, 0, all, columns, base_of(stats.x), __fdividef(1.0f, stats.y));
}

// ---- few long rows: gridDim = (parts of a row, rows)
template <typename T>
__global__ void __launch_bounds__(STREAM) softmax_parts(const T* x, int64_t stride, float2* parts, int columns) {
  __shared__ float scratch[2][32];
  const T* in = x + blockIdx.y * stride;
  const int all = pieces(in, columns), each = (all + int(gridDim.x) - 1) / int(gridDim.x), from = int(blockIdx.x) * each;
  const float2 stats = stream(in, from, min(from + each, all), columns, scratch);
  if (threadIdx.x == 0) parts[int64_t(blockIdx.y) * gridDim.x + blockIdx.x] = stats;
}

template <typename T>
__global__ void __launch_bounds__(STREAM) softmax_write(const T* x, int64_t stride, const float2* parts, T* y, int columns) {
  const float2* mine = parts + int64_t(blockIdx.y) * gridDim.x;
  float max = -INFINITY, sum = 0;
  for (int p = 0; p < gridDim.x; ++p) max = fmaxf(max, mine[p].x);
  max = base_of(max);
  for (int p = 0; p < gridDim.x; ++p) sum += mine[p].y * fast_exp(mine[p].x - max);
  const T* in = x + blockIdx.y * stride;
  const int all = pieces(in, columns), each = (all + int(gridDim.x) - 1) / int(gridDim.x), from = int(blockIdx.x) * each;
  write_row(in, y + int64_t(blockIdx.y) * columns, from, min(from + each, all), columns, max, __fdividef(1.0f, sum));
}

// How many blocks share a row: 1 unless it is too long for registers and rows are too few for the GPU.
int64_t parts(TensorView x) {
  const int64_t per = 128 / x.dtype().bits, all = (x.size(1) + per - 1) / per + 1;
  int processors = 1;
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, x.device().device_id);
  if (all <= PACKS * 1024 || x.size(0) >= processors * WAVES) return 1;
  return std::clamp<int64_t>((processors * WAVES + x.size(0) - 1) / x.size(0), 1, (all + STREAM - 1) / STREAM);
}

// Launches softmax_shared, if a row fits the shared memory that this GPU gives a block.
template <typename T>
bool in_shared(const T* in, int64_t stride, T* out, int64_t rows, int columns, int device, cudaStream_t stream) {
  const int64_t packs = (int64_t(columns) + 2 * Pack<T>::N - 2) / Pack<T>::N;  // of a row that begins and ends within one
  const int64_t bytes = packs * 16, scratch = sizeof(float[2][32]);
  int most = 0;
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (bytes + scratch > most) return false;
  const int64_t each_thread = (packs + STREAM - 1) / STREAM, span = (each_thread + GROUPS - 1) / GROUPS * STREAM;
  TVM_FFI_CHECK_CUDA_ERROR(cudaFuncSetAttribute(softmax_shared<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));
  softmax_shared<T><<<unsigned(rows), STREAM, bytes, stream>>>(in, stride, out, columns, int(span));
  return true;
}

template <typename T> void softmax(TensorView x, TensorView partial, TensorView y) {
  const auto stream = static_cast<cudaStream_t>(TVMFFIEnvGetStream(x.device().device_type, x.device().device_id));
  const T* in = static_cast<const T*>(x.data_ptr());
  T* out = static_cast<T*>(y.data_ptr());
  const int64_t rows = x.size(0), stride = x.stride(0);
  const int columns = int(x.size(1));
  const bool even = aligned(in) && columns % Pack<T>::N == 0 && stride % Pack<T>::N == 0;
  const int all = (columns + Pack<T>::N - 1) / Pack<T>::N + !even;  // one more where a row starts between boundaries
  const unsigned a_row = unsigned((all + 32 * PACKS - 1) / (32 * PACKS) * 32);
  if (a_row <= 1024) {
    const unsigned together = std::max(1u, BLOCK / a_row);
    const dim3 grid(unsigned((rows + together - 1) / together)), block(a_row, together);
    if (even) softmax_registers<T, true><<<grid, block, 0, stream>>>(in, stride, out, rows, columns);
    else softmax_registers<T, false><<<grid, block, 0, stream>>>(in, stride, out, rows, columns);
  } else if (partial.numel() == 0) {
    if (in_shared(in, stride, out, rows, columns, x.device().device_id, stream)) return;
    softmax_stream<T><<<unsigned(rows), STREAM, 0, stream>>>(in, stride, out, columns);
  } else {
    const dim3 grid(unsigned(partial.size(1)), unsigned(rows));
    float2* stats = static_cast<float2*>(partial.data_ptr());
    softmax_parts<T><<<grid, STREAM, 0, stream>>>(in, stride, stats, columns);
    softmax_write<T><<<grid, STREAM, 0, stream>>>(in, stride, stats, out, columns);
  }
}

void launch(TensorView x, TensorView partial, TensorView y) {
  if (y.numel() == 0) return;
  TVM_FFI_CHECK(x.size(1) < 1 << 30, ValueError) << "softmax: expected rows of less than 2^30 columns, got " << x.size(1);
  const tvm::ffi::CUDADeviceGuard guard(x.device().device_id);
  const DLDataType t = x.dtype();
  if (t.bits == 32) softmax<float>(x, partial, y);
  else if (t.code == kDLFloat) softmax<f16>(x, partial, y);
  else softmax<bf16>(x, partial, y);
  TVM_FFI_CHECK_CUDA_ERROR(cudaGetLastError());
}
"""

DEFINES = {"PACKS": PACKS, "BLOCK": BLOCK, "STREAM": STREAM, "AHEAD": AHEAD, "GROUPS": GROUPS, "WAVES": WAVES}

module = tvm_ffi.cpp.load_inline(
    "softmax",
    cuda_sources=SOURCE,
    functions=["launch", "parts"],
    extra_cuda_cflags=[f"-D{name}={value}" for name, value in DEFINES.items()],
)


def kernel_fn(x):
    x = x if x.stride(-1) == 1 else x.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    parts = module.parts(x) if x.shape[0] else 1
    partial = torch.empty((x.shape[0], parts if parts > 1 else 0, 2), dtype=torch.float32, device=x.device)
    module.launch(x, partial, y)
    return y
