"""RMSNorm, Triton: y[r, :] = x[r, :] / sqrt(mean(x[r, :]²) + eps) · weight.

x [R, C], weight [C] -> [R, C]; float32, float16 or bfloat16, any strides; statistics in float32.
Bytes: x is read, y is written, the weight stays in the caches: (2·R·C + C) · itemsize. Flops: 4·R·C.
One operation a byte: memory decides. A row that fits in registers is read once; short rows share a program. Programs
that end after one tile keep more bytes on their way than few that stay and loop: others start while one waits. A longer
row is read twice, the second time from the caches. So is a row of WIDE_ROW where rows are many: programs that keep
nothing leave room for others, and the second reading costs no memory traffic. Where rows are few nothing else runs while
a program waits, and one reading is faster than two.
Another GPU should revisit PER_THREAD, TILE, LONG_ROW, WIDE_ROW and MANY_ROWS: they follow its registers, its number of
SMs and its memory latency.
"""

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "rmsnorm"
BACKEND = "triton"

PER_THREAD = (
    16  # tune: 8, 16, 32, 64 | elements of a tile that one thread holds: fewer threads, more loads in flight each
)
WIDE_ROW = 8192  # tune: 4096, 8192, 16384 | from here on threads hold twice as much, and many rows are read twice
TILE = 1024  # tune: 512, 1024, 2048, 4096, 8192 | least elements of a tile: short rows share a program
LONG_ROW = 32768  # tune: 8192, 16384, 32768 | longest row that is kept in registers
MANY_ROWS = 4096  # tune: 256, 1024, 2048, 4096 | from so many on, wide rows are read twice, too
LONG_BLOCK = 4096  # tune: 2048, 4096, 8192 | elements of a long row that are in flight at once
LONG_WARPS = 16  # tune: 4, 8, 16 | warps of a long row's program


@triton.jit(do_not_specialize=["rows"])  # only masks ask for it: one compilation serves all
def short_rows_kernel(
    x_ptr, weight_ptr, y_ptr, rows, columns, x_stride, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    # 64-bit row offsets: a matrix may have more than 2^31 elements.
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    # Where tiles fit the matrix (EVEN), masks are true for certain, and the compiler drops them.
    real = (column < columns) | EVEN
    inside = (row < rows) & real | EVEN
    x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    # Asked for before the sum is known: it is here when x has come.
    weight = tl.load(weight_ptr + column, mask=real, other=0.0, eviction_policy="evict_last").to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) / columns + eps)
    # In this order: x times scale is near 1 whatever x is; x times weight could overflow.
    y = x * scale * weight
    tl.store(y_ptr + row * columns + column, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def long_row_kernel(x_ptr, weight_ptr, y_ptr, columns: tl.constexpr, x_stride, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride
    y_ptr += row * columns
    offset = tl.arange(0, BLOCK)
    # A sum for each lane: lanes meet once, after the row. How long it is the compiler knows: blocks that are whole need
    # no masks. The first reading asks the L2 cache to keep the row, without which the second would cost 2 %.
    EVEN: tl.constexpr = columns % BLOCK == 0
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, columns, BLOCK):
        inside = (start + offset < columns) | EVEN
        x = tl.load(x_ptr + start + offset, mask=inside, other=0.0, eviction_policy="evict_last").to(tl.float32)
        squares += x * x
    scale = tl.rsqrt(tl.sum(squares, axis=0) / columns + eps)
    for start in range(0, columns, BLOCK):
        inside = (start + offset < columns) | EVEN
        x = tl.load(x_ptr + start + offset, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
        weight = tl.load(weight_ptr + start + offset, mask=inside, other=0.0, eviction_policy="evict_last")
        y = x * scale * weight.to(tl.float32)
        tl.store(y_ptr + start + offset, y.to(y_ptr.dtype.element_ty), mask=inside)


def cdiv(n, block):
    """How many blocks hold n."""
    return -(-n // block)


def power_of_2(n):
    """The least power of two that is not less than n."""
    return 1 << (n - 1).bit_length()


def kernel_fn(x, weight, eps=1e-6):
    rows, columns = x.shape
    if x.stride(1) != 1:
        x = x.contiguous()
    if weight.stride(0) != 1:
        weight = weight.contiguous()
    y = torch.empty((rows, columns), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    wide = columns >= WIDE_ROW and columns % LONG_BLOCK == 0
    if columns > LONG_ROW or (wide and rows >= MANY_ROWS):
        long_row_kernel[(rows,)](x, weight, y, columns, x.stride(0), eps, BLOCK=LONG_BLOCK, num_warps=LONG_WARPS)
        return y
    block = power_of_2(columns)
    tile_rows = max(1, min(TILE // block, power_of_2(rows)))
    per_thread = PER_THREAD * (2 if block >= WIDE_ROW else 1)
    warps = max(1, min(16, tile_rows * block // (32 * per_thread)))
    short_rows_kernel[(cdiv(rows, tile_rows),)](
        x, weight, y, rows, columns, x.stride(0), eps, ROWS=tile_rows, BLOCK=block,
        EVEN=columns == block and rows % tile_rows == 0, num_warps=warps,
    )  # fmt: skip
    return y
