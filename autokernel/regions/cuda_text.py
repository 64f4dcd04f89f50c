"""The CUDA C++ of generated starters: what it says differently from C++, helpers, and the file around them."""

from __future__ import annotations

import dataclasses
import string

from autokernel.regions import cpp_text

# CUDA has its own versions of these, which keep every digit that counts: nothing has to vectorise here.
DIALECT = dataclasses.replace(
    cpp_text.DIALECT,
    functions={
        **cpp_text.DIALECT.functions, "exp": "std::exp({0})", "expm1": "std::expm1({0})", "rsqrt": "rsqrtf({0})",
        "sigmoid": "1.0f / (1.0f + std::exp(-{0}))", "tanh": "std::tanh({0})", "erf": "std::erf({0})",
    },
)  # fmt: skip

ELEMENTS = {"fp32": "float", "fp16": "f16", "bf16": "bf16"}
INCLUDES = {"fp16": "#include <cuda_fp16.h>\n", "bf16": "#include <cuda_bf16.h>\n"}
ALIASES = {"fp16": "using f16 = __half;\n", "bf16": "using bf16 = __nv_bfloat16;\n"}
WIDEN = {
    "fp32": "__device__ inline float widen(float v) { return v; }\n",
    "fp16": "__device__ inline float widen(f16 v) { return __half2float(v); }\n",
    "bf16": "__device__ inline float widen(bf16 v) { return __bfloat162float(v); }\n",
}
NARROW = {
    "fp32": "template <> __device__ inline float narrow(float v) { return v; }\n",
    "fp16": "template <> __device__ inline f16 narrow(float v) { return __float2half_rn(v); }\n",
    "bf16": "template <> __device__ inline bf16 narrow(float v) { return __float2bfloat16_rn(v); }\n",
}
TAKES = {  # whether the call's tensors are of this dtype
    "fp32": "out.dtype().bits == 32",
    "fp16": "out.dtype().bits == 16 && out.dtype().code == kDLFloat",
    "bf16": "out.dtype().code == kDLBfloat",
}

OPERATIONS = {
    "Sum": """\
struct Sum {
  static __device__ float none() { return 0; }
  __device__ float operator()(float a, float b) const { return a + b; }
};
""",
    "Larger": """\
struct Larger {  // NaN where one is
  static __device__ float none() { return -INFINITY; }
  __device__ float operator()(float a, float b) const { return a > b || a != a ? a : b; }
};
""",
    "Smaller": """\
struct Smaller {  // NaN where one is
  static __device__ float none() { return INFINITY; }
  __device__ float operator()(float a, float b) const { return a < b || a != a ? a : b; }
};
""",
}
ACROSS_ROW = """\
// v of all threads of a row (those of one threadIdx.y), combined in a fixed order; all of them get the result. Each
// call has a scratch of its own, so that one barrier is enough, and every warp combines the warps' results itself.
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
"""

FILE = string.Template('''\
"""$name, CUDA C++: written from the operations of the model's graph.

$tensors
$dtypes; everything in between, sums too, in float32. Rows: $rows; columns: $columns.
Bytes: $moved, where each moves once. Flops: $flops.
$how
Other GPUs: revisit THREADS and AHEAD (how many bytes are on their way).
"""

import torch
import tvm_ffi.cpp

KERNEL_TYPE = "$name"
BACKEND = "cuda"

THREADS = $threads  # tune: 64, 128, 256, 512, 1024 | threads a block
PER_THREAD = 8  # tune: 1, 2, 4, 8, 16, 32 | columns that a thread takes where there are threads enough
AHEAD = 4  # tune: 1, 2, 4, 8 | columns whose loads a thread has on their way at once

SOURCE = """
$includes#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/extra/cuda/device_guard.h>
#include <algorithm>
#include <cmath>
#include <cstdint>

using tvm::ffi::TensorView;
$aliases
$helpers
$kernel

struct Launch { dim3 grid, block; cudaStream_t stream; };

$geometry

template <typename T> void run($views) {
  const Launch on = launch_of($row_count, $column_count, out.device());
  region<T><<<on.grid, on.block, 0, on.stream>>>(
$call);
}

void launch($views) {
  if (out.numel() == 0) return;
  const tvm::ffi::CUDADeviceGuard guard(out.device().device_id);
$dispatch
  TVM_FFI_CHECK_CUDA_ERROR(cudaGetLastError());
}
"""

DEFINES = {"THREADS": THREADS, "PER_THREAD": PER_THREAD, "AHEAD": AHEAD}

module = tvm_ffi.cpp.load_inline(
    "$name",
    cuda_sources=SOURCE,
    functions=["launch"],
    extra_cuda_cflags=[f"-D{name}={value}" for name, value in DEFINES.items()],
)


def kernel_fn($arguments):
$prepared    out = torch.empty($shape, dtype=$first.dtype, device=$first.device)
    module.launch($arguments, out)
    return out
''')

# How a region is worked through, sentence by sentence.
SWEPT = "Whole warps take a row, a block several rows where they are short. A row is swept {sweeps}"
AGAIN = ": what differs by column is computed anew in each sweep, and all but the first find the row in the caches"
TILED = "Nothing is reduced: blocks divide the rows, and the columns of long ones"

CHECKED = """\
  TVM_FFI_CHECK(blocks < 1ll << 31, ValueError) << "expected rows for less than 2^31 blocks, got " << rows;
  const auto stream = static_cast<cudaStream_t>(TVMFFIEnvGetStream(device.device_type, device.device_id));
"""
GEOMETRY = {  # by whether the region reduces
    True: f"""\
// Whole warps a row, and several rows a block where they are short.
Launch launch_of(int64_t rows, int64_t columns, DLDevice device) {{
  const int64_t warps = (columns + 32 * PER_THREAD - 1) / (32 * PER_THREAD);
  const unsigned a_row = 32 * unsigned(std::clamp<int64_t>(warps, 1, THREADS / 32)), together = THREADS / a_row;
  const int64_t blocks = (rows + together - 1) / together;
{CHECKED}  return {{dim3(unsigned(blocks)), dim3(a_row, together), stream}};
}}""",
    False: f"""\
// Several rows a block where they are short, several blocks a row where it is long.
Launch launch_of(int64_t rows, int64_t columns, DLDevice device) {{
  const int64_t warps = (columns + 32 * PER_THREAD - 1) / (32 * PER_THREAD);
  const unsigned a_row = unsigned(std::min({{columns, 32 * warps, int64_t(THREADS)}})), together = THREADS / a_row;
  const int64_t blocks = (rows + together - 1) / together, piece = int64_t(a_row) * PER_THREAD;
  const int64_t pieces = std::min<int64_t>((columns + piece - 1) / piece, 65535);  // a grid has no more in y
{CHECKED}  return {{dim3(unsigned(blocks), unsigned(pieces)), dim3(a_row, together), stream}};
}}""",
}
