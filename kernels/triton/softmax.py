"""Softmax, Triton: y[r, :] = exp(x[r, :] - max) / sum(exp(x[r, :] - max)).

x [R, C] -> [R, C]; float32, float16 or bfloat16, any strides; exponentials and sums in float32.
Bytes: x is read, y is written: 2·R·C · itemsize. Flops: 5·R·C, an exponential among them.
Five operations for each 2 to 4 bytes: memory decides. So a row that fits in registers is read once and stays there
(short rows share a program); a longer row is read twice, the second time mostly from the L2 cache. On the first way
each thread keeps a maximum and a sum of its own and corrects the sum when its maximum rises (Milakov and Gimelshein,
"Online normalizer calculation for softmax", 2018), so that threads meet only once a row. A thread of a long row holds one
vector at a time: with 32 registers two programs of 32 warps fill a multiprocessor, and that is worth a quarter of the time
(16 warps with two vectors take 75 registers, and fill a quarter of it).
Another GPU should revisit PER_THREAD, LONG_ROW, LONG_BLOCK and LONG_WARPS: they follow its registers, its L2 and its
memory latency.
"""

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "softmax"
BACKEND = "triton"

PER_THREAD = (
    16  # tune: 8, 16, 32, 64 | elements of a tile that one thread holds: fewer threads, more loads in flight each
)
TILE = 2048  # tune: 512, 1024, 2048, 4096, 8192 | least elements of a tile: short rows share a program
LONG_ROW = 32768  # tune: 4096, 8192, 16384, 32768 | longest row that is kept in registers
LONG_BLOCK = 8192  # tune: 1024, 2048, 4096, 8192, 16384 | halves of a long row in flight at once; half as many floats
LONG_WARPS = 32  # tune: 4, 8, 16, 32 | warps of a long row's program
STAGES = 1  # tune: 1, 2, 3 | blocks of a long row fetched ahead through shared memory


@triton.jit(do_not_specialize=["rows"])  # only masks ask for it: one compilation serves all
def short_rows_kernel(x_ptr, y_ptr, rows, columns, x_stride, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    # 64-bit row offsets: a matrix may have more than 2^31 elements.
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < columns)
    # -inf changes neither a maximum nor a sum of exponentials.
    x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=float("-inf")).to(tl.float32)
    e = tl.exp(x - tl.max(x, axis=1, keep_dims=True))
    # One division a row instead of one an element; a row of nothing but -inf is NaN already.
    y = e * (1.0 / tl.sum(e, axis=1, keep_dims=True))
    tl.store(y_ptr + row * columns + column, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def add(x, top, total):
    """Elements x [lanes, n] added to each lane's maximum and sum of exponentials; -inf changes neither."""
    higher = tl.maximum(top, tl.max(x, axis=1))
    # A lane that has seen nothing but -inf must not compute -inf - -inf.
    base = tl.where(higher == float("-inf"), 0.0, higher)
    return higher, total * tl.exp(top - base) + tl.sum(tl.exp(x - base[:, None]), axis=1)


@triton.jit
def put(x_at, y_at, mask, highest, scale):
    x = tl.load(x_at, mask=mask, other=0.0).to(tl.float32)
    tl.store(y_at, (tl.exp(x - highest) * scale).to(y_at.dtype.element_ty), mask=mask)


@triton.jit
def long_row_kernel(
    x_ptr, y_ptr, columns, x_stride,
    BLOCK: tl.constexpr, VECTOR: tl.constexpr, TOGETHER: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # A row of 50257 elements starts anywhere. What comes before its first 16-byte boundary is taken apart, so that all
    # else is moved in whole vectors and without masks. TOGETHER: rows of x and y have their boundaries at one place.
    row = tl.program_id(0).to(tl.int64)
    begin = row * x_stride
    head = tl.minimum((VECTOR - begin % VECTOR) % VECTOR, columns).to(tl.int32)
    x_row, y_row = x_ptr + begin, y_ptr + row * columns
    x_at = x_ptr + tl.multiple_of(begin + head, VECTOR)
    y_at = y_ptr + (tl.multiple_of(row * columns + head, VECTOR) if TOGETHER else row * columns + head)
    whole = (columns - head) // BLOCK * BLOCK

    # A thread's vector is one 16-byte load: the maximum over axis 1 is taken inside the thread, without shuffles.
    lane = tl.arange(0, BLOCK // VECTOR)
    offset = lane[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
    top = tl.full([BLOCK // VECTOR], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK // VECTOR], tl.float32)
    x = tl.load(x_row + lane, mask=lane < head, other=float("-inf"))
    top, total = add(x.to(tl.float32)[:, None], top, total)
    for start in tl.range(0, whole, BLOCK, num_stages=STAGES):
        # Wanted once more: the L2 cache should rather keep it than what is written.
        block = tl.load(x_at + start + offset, eviction_policy="evict_last")
        top, total = add(block.to(tl.float32), top, total)
    x = tl.load(x_at + whole + offset, mask=whole + offset < columns - head, other=float("-inf"))
    top, total = add(x.to(tl.float32), top, total)

    highest = tl.max(top, axis=0)
    base = tl.where(highest == float("-inf"), 0.0, highest)
    scale = 1.0 / tl.sum(total * tl.exp(top - base), axis=0)
    # Backwards: what the first way read last is what the caches still hold.
    put(x_at + whole + offset, y_at + whole + offset, whole + offset < columns - head, highest, scale)
    for done in tl.range(BLOCK, whole + BLOCK, BLOCK, num_stages=STAGES):
        again = tl.load(x_at + (whole - done) + offset, eviction_policy="evict_first").to(tl.float32)
        y = (tl.exp(again - highest) * scale).to(y_ptr.dtype.element_ty)
        tl.store(y_at + (whole - done) + offset, y, cache_modifier=".cs")
    put(x_row + lane, y_row + lane, lane < head, highest, scale)


def cdiv(n, block):
    """How many blocks hold n."""
    return -(-n // block)


def power_of_2(n):
    """The least power of two that is not less than n."""
    return 1 << (n - 1).bit_length()


def kernel_fn(x):
    rows, columns = x.shape
    if x.stride(1) != 1:
        x = x.contiguous()
    y = torch.empty((rows, columns), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    if columns > LONG_ROW:
        vector = 16 // x.element_size()
        long_row_kernel[(rows,)](
            x, y, columns, x.stride(0), BLOCK=LONG_BLOCK * vector // 8, VECTOR=vector,
            TOGETHER=(x.stride(0) - columns) % vector == 0, STAGES=STAGES, num_warps=LONG_WARPS,
        )  # fmt: skip
        return y
    block = power_of_2(columns)
    tile_rows = max(1, min(TILE // block, power_of_2(rows)))
    warps = max(1, min(16, tile_rows * block // (32 * PER_THREAD)))
    short_rows_kernel[(cdiv(rows, tile_rows),)](
        x, y, rows, columns, x.stride(0), ROWS=tile_rows, BLOCK=block, num_warps=warps
    )
    return y
