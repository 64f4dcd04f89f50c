"""LayerNorm, Triton: y[r, :] = (x[r, :] - mean) / sqrt(var + eps) · weight + bias, var the biased variance.

x [R, C], weight [C], bias [C] -> [R, C]; float32, float16 or bfloat16, any strides; statistics in float32.
Bytes: x is read, y is written, weight and bias stay in the caches: (2·R·C + 2·C) · itemsize. Flops: 8·R·C.
Two operations a byte: memory decides. A row that fits in registers is read once, and its variance is taken about its
mean: E[x²] - E[x]² keeps no digit where the mean is far larger than the spread. Short rows share a program. A longer
row is read three times, twice from the caches.
Another GPU should revisit PER_THREAD, TILE and LONG_ROW: they follow its registers and its memory latency.
"""

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "layernorm"
BACKEND = "triton"

PER_THREAD = (
    16  # tune: 8, 16, 32, 64 | elements of a tile that one thread holds: fewer threads, more loads in flight each
)
TILE = 1024  # tune: 512, 1024, 2048, 4096, 8192 | least elements of a tile: short rows share a program
LONG_ROW = 32768  # tune: 8192, 16384, 32768 | longest row that is kept in registers
LONG_BLOCK = 4096  # tune: 2048, 4096, 8192 | elements of a long row that are in flight at once


@triton.jit(do_not_specialize=["rows"])  # only masks ask for it: one compilation serves all
def short_rows_kernel(
    x_ptr, weight_ptr, bias_ptr, y_ptr, rows, columns, x_stride, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    # 64-bit row offsets: a matrix may have more than 2^31 elements.
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    # Where tiles fit the matrix (EVEN), masks are true for certain, and the compiler drops them.
    real = (column < columns) | EVEN
    inside = (row < rows) & real | EVEN
    x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
    mean = tl.sum(x, axis=1, keep_dims=True) / columns
    # Lanes beyond the row hold 0, whose distance from the mean must not count.
    centred = tl.where(real, x - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=1, keep_dims=True) / columns + eps)
    # Asked for late: they lie in the caches, and would hold registers while the sums are made.
    weight = tl.load(weight_ptr + column, mask=real, other=0.0, eviction_policy="evict_last").to(tl.float32)
    bias = tl.load(bias_ptr + column, mask=real, other=0.0, eviction_policy="evict_last").to(tl.float32)
    y = centred * scale * weight + bias
    tl.store(y_ptr + row * columns + column, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def long_row_kernel(x_ptr, weight_ptr, bias_ptr, y_ptr, columns, x_stride, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride
    y_ptr += row * columns
    offset = tl.arange(0, BLOCK)
    # A sum for each lane: lanes meet once a pass.
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        sums += tl.load(x_ptr + start + offset, mask=start + offset < columns, other=0.0).to(tl.float32)
    mean = tl.sum(sums, axis=0) / columns
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        inside = start + offset < columns
        x = tl.load(x_ptr + start + offset, mask=inside, other=0.0).to(tl.float32)
        centred = tl.where(inside, x - mean, 0.0)
        squares += centred * centred
    scale = tl.rsqrt(tl.sum(squares, axis=0) / columns + eps)
    for start in range(0, columns, BLOCK):
        inside = start + offset < columns
        x = tl.load(x_ptr + start + offset, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
        weight = tl.load(weight_ptr + start + offset, mask=inside, other=0.0).to(tl.float32)
        bias = tl.load(bias_ptr + start + offset, mask=inside, other=0.0).to(tl.float32)
        y = (x - mean) * scale * weight + bias
        tl.store(y_ptr + start + offset, y.to(y_ptr.dtype.element_ty), mask=inside)


def cdiv(n, block):
    """How many blocks hold n."""
    return -(-n // block)


def power_of_2(n):
    """The least power of two that is not less than n."""
    return 1 << (n - 1).bit_length()


def kernel_fn(x, weight, bias, eps=1e-5):
    rows, columns = x.shape
    if x.stride(1) != 1:
        x = x.contiguous()
    if weight.stride(0) != 1:
        weight = weight.contiguous()
    if bias.stride(0) != 1:
        bias = bias.contiguous()
    y = torch.empty((rows, columns), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    if columns > LONG_ROW:
        long_row_kernel[(rows,)](x, weight, bias, y, columns, x.stride(0), eps, BLOCK=LONG_BLOCK, num_warps=8)
        return y
    block = power_of_2(columns)
    tile_rows = max(1, min(TILE // block, power_of_2(rows)))
    # By the columns that are there: a block is up to twice as wide, and threads without work would hold its warps back.
    warps = max(1, min(16, tile_rows * columns // (32 * PER_THREAD)))
    short_rows_kernel[(cdiv(rows, tile_rows),)](
        x, weight, bias, y, rows, columns, x.stride(0), eps, ROWS=tile_rows, BLOCK=block,
        EVEN=columns == block and rows % tile_rows == 0, num_warps=1 << warps.bit_length() - 1,
    )  # fmt: skip
    return y
