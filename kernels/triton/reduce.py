"""Sum of a matrix over one dimension, Triton: y[r] = sum over c of x[r, c], or y[c] = sum over r of it.

x [R, C] -> [R] (dim -1 or 1) or [C] (dim 0 or -2); float32, float16 or bfloat16, any strides; sums in float32.
Bytes: x is read once: (R·C + R) · itemsize, or (R·C + C). Flops: R·C.
One addition for each 2 to 4 bytes: memory decides, and x is read as it lies. Where the summed dimension is the
contiguous one, a program walks along it and short rows share a program; where the kept one is, a program walks across
rows with a sum for each column. Where that gives too few programs to fill the GPU, the summed dimension is cut, and a
second pass of the same kernel adds up the parts: in the same order every time.
Another GPU should revisit FILL, BLOCK, UNROLL and WARPS: they follow its number of SMs and its memory latency.
"""

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "reduce"
BACKEND = "triton"

BLOCK = 4096  # tune: 1024, 2048, 4096, 8192 | elements of a row that are in flight at once
TILE = 2048  # tune: 1024, 2048, 4096, 8192 | least elements of a tile: short rows share a program
WARPS = 16  # tune: 2, 4, 8, 16 | warps of a program
COLUMNS = 128  # tune: 32, 64, 128, 256, 512 | columns of a program, where the kept dimension is contiguous
ROWS = 32  # tune: 8, 16, 32, 64, 128 | rows that such a program has in flight at once
FILL = 512  # tune: 128, 256, 512, 1024, 2048 | programs wanted before the summed dimension is cut
STAGES = 1  # tune: 1, 2, 3, 4 | blocks fetched ahead through shared memory
UNROLL = 2  # tune: 1, 2, 4 | blocks of a row asked for before the first of them is added


@triton.jit
def along_rows_kernel(
    x_ptr, y_ptr, rows, length, span, parts, x_stride,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr, UNROLL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    # 64-bit row offsets: a matrix may have more than 2^31 elements.
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(1).to(tl.int64)
    x_ptr += row[:, None] * x_stride
    offset = tl.arange(0, BLOCK)[None, :]
    first = part * span
    last = tl.minimum(first + span, length)
    # A sum for each lane, none of them long: lanes meet once, in a tree, and the rounding stays small.
    sums = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in tl.range(first, last, BLOCK, num_stages=STAGES, loop_unroll_factor=UNROLL):
        # Where blocks fit the matrix (EVEN), masks are true for certain, and the compiler drops them.
        inside = (row < rows)[:, None] & (start + offset < last) | EVEN
        # Read once and never again: it should not push anything else out of the L2 cache.
        sums += tl.load(x_ptr + start + offset, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
    y = tl.sum(sums, axis=1).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + row * parts + part, y, mask=row < rows)


@triton.jit
def across_rows_kernel(
    x_ptr, y_ptr, columns, length, span, x_stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr
):
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    part = tl.program_id(1).to(tl.int64)
    row = tl.arange(0, ROWS)[:, None]
    first = part * span
    last = tl.minimum(first + span, length)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in tl.range(first, last, ROWS, num_stages=STAGES):
        inside = (start + row < last) & (column < columns)[None, :]
        x = tl.load(
            x_ptr + (start + row) * x_stride + column[None, :], mask=inside, other=0.0, eviction_policy="evict_first"
        )
        sums += x.to(tl.float32)
    y = tl.sum(sums, axis=0).to(y_ptr.dtype.element_ty)
    # Parts lie one after the other: the second pass walks across them in the same way.
    tl.store(y_ptr + part * columns + column, y, mask=column < columns)


def cdiv(n, block):
    """How many blocks hold n."""
    return -(-n // block)


def power_of_2(n):
    """The least power of two that is not less than n."""
    return 1 << (n - 1).bit_length()


def cut(length, least, programs):
    """Into how many parts to cut a sum of ``length`` terms, none shorter than ``least``, and how long they are."""
    parts = max(1, min(FILL // programs, length // (2 * least)))
    span = cdiv(cdiv(length, parts), least) * least
    return cdiv(length, span), span


def sum_along(x, y, rows, length, stride):
    """y[r] = sum over the contiguous dimension of x, rows ``stride`` elements apart."""
    # A row of one full block is walked in two: nothing would be on its way while warps meet for its sum.
    block = power_of_2(length)
    block = min(BLOCK, block, max(TILE, block // 2))
    tile_rows = max(1, min(TILE // block, power_of_2(rows)))
    grid = cdiv(rows, tile_rows)
    parts, span = cut(length, block, grid)
    out = y if parts == 1 else torch.empty(rows * parts, dtype=torch.float32, device=y.device)
    warps = max(1, min(WARPS, tile_rows * block // 256))
    along_rows_kernel[(grid, parts)](
        x, out, rows, length, span, parts, stride, ROWS=tile_rows, BLOCK=block, STAGES=STAGES, UNROLL=UNROLL,
        EVEN=rows % tile_rows == 0 and length % span == 0, num_warps=warps,
    )  # fmt: skip
    if parts > 1:
        sum_along(out, y, rows, parts, parts)


def sum_across(x, y, columns, length, stride):
    """y[c] = sum over rows of x that are ``stride`` elements apart and contiguous in themselves."""
    wide = min(COLUMNS, max(16, power_of_2(columns)))
    rows = min(max(ROWS, 4096 // wide) if wide < COLUMNS else ROWS, power_of_2(length))
    grid = cdiv(columns, wide)
    parts, span = cut(length, rows, grid)
    out = y if parts == 1 else torch.empty(columns * parts, dtype=torch.float32, device=y.device)
    # Half as many warps as along rows: each has several rows on their way.
    warps = max(1, min(WARPS // 2, rows * wide // 256))
    across_rows_kernel[(grid, parts)](
        x, out, columns, length, span, stride, ROWS=rows, COLUMNS=wide, STAGES=STAGES, num_warps=warps
    )
    if parts > 1:
        sum_across(out, y, columns, parts, columns)


def kernel_fn(x, dim=-1):
    summed = dim % 2
    kept, length = x.shape[1 - summed], x.shape[summed]
    y = torch.empty(kept, dtype=x.dtype, device=x.device)
    if kept == 0:
        return y
    if length == 0:
        return y.zero_()
    if 1 not in x.stride():
        x = x.contiguous()
    if x.stride(summed) == 1:
        sum_along(x, y, kept, length, x.stride(1 - summed))
    else:
        sum_across(x, y, kept, length, x.stride(summed))
    return y
