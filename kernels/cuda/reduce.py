"""Sum over one dimension, CUDA C++: y[r] = sum over c of x[r, c] (dim -1), or y[c] = sum over r of x[r, c] (dim 0).

x [R, C], dim one of -2, -1, 0, 1 -> [R] or [C]; float32, float16 or bfloat16, sums in float32.
Bytes: x is read once, R·C · itemsize; the output is small. Flops: R·C: next to none, so all that counts is how many bytes are on their
way. Both kernels read 16 bytes a thread, and several such packs before the first is added. Rows: a warp or more a row, several rows a
block where they are short. Few packs a thread and many threads do best: 2048 of them with 32 bytes each are 64 KiB on their way to a
multiprocessor, and no thread needs more than the 32 registers that so many leave it. Whole packs are read without a question asked;
the two at a row's ends, which it fills in part, apart. Long rows of whole packs alone, as many for every thread, have a kernel that
knows of no ends. Columns: a thread owns the columns of one pack and walks down, a warp covers 512 bytes of a row.
Where the output is too small to fill the GPU, several blocks share a sum; their parts are added by a second launch, in a fixed order:
no atomics, so that results repeat bit for bit.
Other GPUs: revisit ROW_THREADS, ROW_AHEAD, EVEN_AHEAD, AHEAD and WAVES (bytes on their way, blocks a multiprocessor holds).
"""

import torch
import tvm_ffi.cpp

KERNEL_TYPE = "reduce"
BACKEND = "cuda"

ROW_THREADS = 1024  # tune: 128, 256, 512, 1024 | most threads a row
ROW_AHEAD = 2  # tune: 1, 2, 4, 8 | packs of a row in flight a thread
EVEN_AHEAD = 4  # tune: 1, 2, 4, 8 | the same of a row that so many packs of all its threads divide
THREADS = 512  # tune: 128, 256, 512 | threads a block that sums columns, or short rows
AHEAD = 4  # tune: 1, 2, 4, 8 | packs of columns in flight a thread
WAVES = 4  # tune: 1, 2, 4, 8, 16 | blocks a multiprocessor under which sums are split

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

template <typename T> __device__ inline Pack<T> load_whole(const T* p) {
  const uint4 raw = __ldcs(reinterpret_cast<const uint4*>(p));
  return {raw.x, raw.y, raw.z, raw.w};
}
template <typename T> __device__ inline float sum_of(const Pack<T>& pack) {
  float sum = 0;
  #pragma unroll
  for (int j = 0; j < Pack<T>::N; j += 2) sum += element(pack, j) + element(pack, j + 1);
  return sum;
}

__device__ inline float over_warp(float sum) {
  #pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
  return sum;
}

// Writes a row's sum, from those of `threads` threads: all of one threadIdx.y. scratch has a place for each warp of the block.
template <typename Out> __device__ inline void write_sum(float sum, int threads, float* scratch, Out* y, bool live) {
  sum = over_warp(sum);
  if (threads > 32) {
    float* mine = scratch + threadIdx.y * (threads / 32);
    if (threadIdx.x % 32 == 0) mine[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x < 32) sum = over_warp(int(threadIdx.x) < threads / 32 ? mine[threadIdx.x] : 0.0f);
  }
  if (threadIdx.x == 0 && live) *y = narrow<Out>(sum);
}

// ---- over columns, a block a row: rows begin at 16-byte boundaries, a thread has `packs` packs, a multiple of EVEN_AHEAD
template <typename T>
__global__ void __launch_bounds__(ROW_THREADS, EVEN_AHEAD <= 4 ? 2048 / ROW_THREADS : 1)
reduce_even_rows(const T* x, int64_t stride, T* y, int packs) {
  __shared__ float scratch[32];
  constexpr int N = Pack<T>::N;
  const T* at = x + blockIdx.x * stride + int(threadIdx.x) * N;
  float sum = 0;
  for (; packs > 0; packs -= EVEN_AHEAD, at += EVEN_AHEAD * ROW_THREADS * N) {
    Pack<T> pack[EVEN_AHEAD];
    #pragma unroll
    for (int k = 0; k < EVEN_AHEAD; ++k) pack[k] = load_whole(at + k * ROW_THREADS * N);
    #pragma unroll
    for (int k = 0; k < EVEN_AHEAD; ++k) sum += sum_of(pack[k]);
  }
  write_sum(sum, ROW_THREADS, scratch, y + blockIdx.x, true);
}

// ---- over columns. blockDim = (threads a row, rows a block), gridDim = (blocks of rows, parts of a row), of `each` packs
template <typename In, typename Out>
__global__ void __launch_bounds__(ROW_THREADS, ROW_AHEAD <= 2 ? 2048 / ROW_THREADS : 1)
reduce_rows(const In* x, int64_t stride, Out* y, int64_t rows, int columns, int each) {
  __shared__ float scratch[32];
  constexpr int N = Pack<In>::N;
  const int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  const In* in = x + (row < rows ? row : 0) * stride;
  const int head = head_of(in), packs = row < rows ? (columns + head + N - 1) / N : 0;
  const int from = int(blockIdx.y) * each, to = min(from + each, packs);
  const int whole = min(to, (columns + head) / N), step = int(blockDim.x);
  // A row that begins within pack 0 comes to it last: what it fills in part is read with the remainder.
  const int cut = from == 0 && to > 0 && head > 0, end = to + cut;
  int i = from + cut + int(threadIdx.x);
  float sum = 0;
  for (; i + (ROW_AHEAD - 1) * step < whole; i += ROW_AHEAD * step) {
    Pack<In> pack[ROW_AHEAD];
    #pragma unroll
    for (int k = 0; k < ROW_AHEAD; ++k) pack[k] = load_whole(in + int64_t(i + k * step) * N - head);
    #pragma unroll
    for (int k = 0; k < ROW_AHEAD; ++k) sum += sum_of(pack[k]);
  }
  for (; i < end; i += ROW_AHEAD * step) {
    Pack<In> pack[ROW_AHEAD];
    #pragma unroll
    for (int k = 0; k < ROW_AHEAD; ++k) {
      const int piece = i + k * step;
      pack[k] = load(in, (piece < to ? piece : 0) * N - head, piece < end ? columns : 0, 0.0f);
    }
    #pragma unroll
    for (int k = 0; k < ROW_AHEAD; ++k) sum += sum_of(pack[k]);
  }
  write_sum(sum, step, scratch, y + row * gridDim.y + blockIdx.y, row < rows);
}

// ---- over rows. blockDim = (32, THREADS / 32): a warp reads 32 packs of a row, its rows are blockDim.y apart.
// gridDim = (columns / (32 packs), parts of the rows). y is [parts, columns].
template <typename In, typename Out>
__global__ void __launch_bounds__(THREADS)
reduce_columns(const In* x, int64_t stride, Out* y, int64_t rows, int columns) {
  constexpr int N = Pack<In>::N, WARPS = THREADS / 32;
  __shared__ float scratch[WARPS][N][32];
  const int64_t each = (rows + gridDim.y - 1) / gridDim.y, from = blockIdx.y * each;
  const int64_t to = from + each < rows ? from + each : rows;
  // Every row is cut at the same columns where the stride allows it; elsewhere elements are read one at a time.
  const bool even = aligned(x) && stride % N == 0;
  const int first = (int(blockIdx.x) * 32 + int(threadIdx.x)) * N;
  float sum[N] = {};
  for (int64_t r = from + threadIdx.y; r < to; r += AHEAD * WARPS) {
    Pack<In> pack[AHEAD];
    #pragma unroll
    for (int k = 0; k < AHEAD; ++k) {
      const int64_t row = r + k * WARPS;
      if (even) {
        pack[k] = load(x + row * stride, first, row < to ? columns : 0, 0.0f);
      } else {
        #pragma unroll
        for (int j = 0; j < N; ++j) {
          const uint32_t value = row < to && first + j < columns ? bits(x[row * stride + first + j]) : 0;
          uint32_t& word = pack[k].word[j / Pack<In>::PER_WORD];
          word = j % Pack<In>::PER_WORD ? word | value << 16 : value;
        }
      }
    }
    #pragma unroll
    for (int k = 0; k < AHEAD; ++k)
      #pragma unroll
      for (int j = 0; j < N; ++j) sum[j] += element(pack[k], j);
  }
  #pragma unroll
  for (int j = 0; j < N; ++j) scratch[threadIdx.y][j][threadIdx.x] = sum[j];
  __syncthreads();
  for (int c = threadIdx.y * 32 + threadIdx.x; c < 32 * N; c += THREADS) {
    float total = 0;
    #pragma unroll
    for (int w = 0; w < WARPS; ++w) total += scratch[w][c % N][c / N];
    const int column = int(blockIdx.x) * 32 * N + c;
    if (column < columns) y[int64_t(blockIdx.y) * columns + column] = narrow<Out>(total);
  }
}

constexpr int BLOCK_ROWS = 32;  // rows below which a part of a column is not worth a block's start

// How many blocks share one sum: enough that every multiprocessor has WAVES of them.
int64_t parts(TensorView x, bool over_rows) {
  int processors = 1;
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, x.device().device_id);
  const int64_t rows = x.size(0), packs = (x.size(1) * x.dtype().bits + 127) / 128;
  const int64_t blocks = std::max<int64_t>(1, over_rows ? (packs + 31) / 32 : rows);
  const int64_t most = over_rows ? rows / BLOCK_ROWS : packs / (ROW_THREADS * ROW_AHEAD);
  return std::clamp<int64_t>((int64_t(processors) * WAVES + blocks - 1) / blocks, 1, std::max<int64_t>(1, most));
}

template <typename In, typename Out>
void rows_of(const void* x, int64_t stride, int64_t rows, int columns, int parts, void* y, cudaStream_t stream) {
  const int packs = (columns / parts + Pack<In>::N - 1) / Pack<In>::N;
  const int a_row = std::min(ROW_THREADS, std::max(1, (packs + 32 * ROW_AHEAD - 1) / (32 * ROW_AHEAD)) * 32);
  const int together = std::max(1, std::min(THREADS, ROW_THREADS) / a_row);
  const dim3 grid(unsigned((rows + together - 1) / together), parts), block(a_row, together);
  // Of a row that begins within a pack and ends within one: a division less before a block's first load.
  const int each = ((columns + 2 * Pack<In>::N - 2) / Pack<In>::N + parts - 1) / parts;
  reduce_rows<In, Out><<<grid, block, 0, stream>>>(static_cast<const In*>(x), stride, static_cast<Out*>(y), rows, columns, each);
}

template <typename In, typename Out>
void columns_of(const void* x, int64_t stride, int64_t rows, int columns, int parts, void* y, cudaStream_t stream) {
  const dim3 grid((columns + 32 * Pack<In>::N - 1) / (32 * Pack<In>::N), parts), block(32, THREADS / 32);
  reduce_columns<In, Out><<<grid, block, 0, stream>>>(static_cast<const In*>(x), stride, static_cast<Out*>(y), rows, columns);
}

template <typename T> void reduce(TensorView x, TensorView partial, TensorView y, bool over_rows) {
  const auto stream = static_cast<cudaStream_t>(TVMFFIEnvGetStream(x.device().device_type, x.device().device_id));
  const int64_t rows = x.size(0), stride = x.stride(0);
  const int columns = int(x.size(1));
  void *in = x.data_ptr(), *part = partial.data_ptr(), *out = y.data_ptr();
  const int parts = int(partial.size(over_rows ? 0 : 1));
  if (over_rows && parts == 0) {
    columns_of<T, T>(in, stride, rows, columns, 1, out, stream);
  } else if (over_rows) {
    columns_of<T, float>(in, stride, rows, columns, parts, part, stream);
    columns_of<float, T>(part, columns, parts, columns, 1, out, stream);
  } else if (parts == 0) {
    constexpr int N = Pack<T>::N;
    if (columns % (ROW_THREADS * EVEN_AHEAD * N) == 0 && aligned(in) && stride % N == 0)
      reduce_even_rows<T><<<unsigned(rows), ROW_THREADS, 0, stream>>>(
        static_cast<const T*>(in), stride, static_cast<T*>(out), columns / N / ROW_THREADS);
    else rows_of<T, T>(in, stride, rows, columns, 1, out, stream);
  } else {
    rows_of<T, float>(in, stride, rows, columns, parts, part, stream);
    rows_of<float, T>(part, parts, rows, parts, 1, out, stream);
  }
}

void launch(TensorView x, TensorView partial, TensorView y, bool over_rows) {
  if (y.numel() == 0) return;
  TVM_FFI_CHECK(x.size(1) < 1 << 30, ValueError) << "reduce: expected rows of less than 2^30 columns, got " << x.size(1);
  const tvm::ffi::CUDADeviceGuard guard(x.device().device_id);
  const DLDataType t = x.dtype();
  if (t.bits == 32) reduce<float>(x, partial, y, over_rows);
  else if (t.code == kDLFloat) reduce<f16>(x, partial, y, over_rows);
  else reduce<bf16>(x, partial, y, over_rows);
  TVM_FFI_CHECK_CUDA_ERROR(cudaGetLastError());
}
"""

DEFINES = {
    "ROW_THREADS": ROW_THREADS,
    "ROW_AHEAD": ROW_AHEAD,
    "EVEN_AHEAD": EVEN_AHEAD,
    "THREADS": THREADS,
    "AHEAD": AHEAD,
    "WAVES": WAVES,
}

module = tvm_ffi.cpp.load_inline(
    "reduce",
    cuda_sources=SOURCE,
    functions=["launch", "parts"],
    extra_cuda_cflags=[f"-D{name}={value}" for name, value in DEFINES.items()],
)


def kernel_fn(x, dim=-1):
    over_rows = dim in (0, -2)
    if x.stride(1) != 1 and x.stride(0) == 1:  # the transposed matrix lies in rows: sum over its other dimension
        x, over_rows = x.t(), not over_rows
    x = x if x.stride(1) == 1 else x.contiguous()
    kept = x.shape[1] if over_rows else x.shape[0]
    y = torch.empty((kept,), dtype=x.dtype, device=x.device)
    parts = module.parts(x, over_rows)
    parts = parts if parts > 1 else 0
    partial = torch.empty((parts, kept) if over_rows else (kept, parts), dtype=torch.float32, device=x.device)
    module.launch(x, partial, y, over_rows)
    return y
