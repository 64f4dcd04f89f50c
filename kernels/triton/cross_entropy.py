"""Cross entropy, Triton: y = mean over rows r of log(sum(exp(logits[r, :]))) - logits[r, targets[r]].

logits [R, V], targets [R] int64 -> a scalar []; float32, float16 or bfloat16, any strides; sums in float32.
Rows with a negative target do not count; a target of V or more makes the result NaN (a kernel cannot raise).
Bytes: the logits are read once: R·V · itemsize. Flops: 4·R·V, an exponential among them.
Two operations a byte: memory decides, and the exponential units come next, at about two thirds of its time. A short
row lies in registers, several rows in a program. A long row is read once: each thread keeps a maximum and a sum of its
own and corrects the sum once for each 16 bytes when its maximum rises (Milakov and Gimelshein, 2018). Where rows are
too few to fill the GPU, several programs share one. A second, small kernel adds up, in the same order every time.
Another GPU should revisit LONG_BLOCK, LONG_WARPS and FILL: they follow its memory latency and its number of SMs.
"""

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "cross_entropy"
BACKEND = "triton"

PER_THREAD = 16  # tune: 8, 16, 32 | elements of a short row's tile that one thread holds
TILE = 2048  # tune: 1024, 2048, 4096 | least elements of a tile: short rows share a program
LONG_ROW = 4096  # tune: 1024, 2048, 4096, 8192 | longest row that is kept in registers
LONG_BLOCK = 2048  # tune: 1024, 2048, 4096, 8192 | elements of a long row that are in flight at once
LONG_WARPS = 4  # tune: 4, 8, 16 | warps of a long row's program
AHEAD_ROW = 65536  # tune: 32768, 65536, 131072 | longest row, or part of one, whose blocks are not fetched ahead
STAGES = 3  # tune: 1, 2, 3, 4 | blocks of a longer one that are fetched ahead through shared memory
FILL = 512  # tune: 128, 256, 512, 1024 | programs wanted: with fewer rows than that, several share a long row


@triton.jit
def short_rows_kernel(
    x_ptr, target_ptr, loss_ptr, rows, classes, x_stride, target_stride, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    # 64-bit row offsets: a matrix may have more than 2^31 elements.
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    target = tl.load(target_ptr + row * target_stride, mask=row < rows, other=-1)
    # Rows that do not count are not read.
    counts = target >= 0
    column = tl.arange(0, BLOCK)
    inside = counts[:, None] & (column < classes)[None, :]
    x = tl.load(x_ptr + row[:, None] * x_stride + column[None, :], mask=inside, other=float("-inf")).to(tl.float32)
    top = tl.max(x, axis=1)
    base = tl.where(top == float("-inf"), 0.0, top)
    total = tl.sum(tl.exp(x - base[:, None]), axis=1)
    chosen = tl.load(x_ptr + row * x_stride + target, mask=counts & (target < classes), other=float("nan"))
    # In this order: the two large numbers meet first, and the small logarithm keeps its digits.
    loss = tl.log(total) + (base - chosen.to(tl.float32))
    tl.store(loss_ptr + row, tl.where(counts, loss, 0.0), mask=row < rows)


@triton.jit
def add(x, top, total):
    """Logits x [lanes, n] added to each lane's maximum and sum of exponentials; -inf changes neither."""
    higher = tl.maximum(top, tl.max(x, axis=1))
    # A lane that has seen nothing but -inf must not compute -inf - -inf.
    base = tl.where(higher == float("-inf"), 0.0, higher)
    return higher, total * tl.exp(top - base) + tl.sum(tl.exp(x - base[:, None]), axis=1)


@triton.jit
def long_row_kernel(
    x_ptr, target_ptr, top_ptr, total_ptr, chosen_ptr, classes, span, x_stride, target_stride,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    target = tl.load(target_ptr + row * target_stride)
    # Rows that do not count are not read.
    if target >= 0:
        # A row of 50257 classes starts anywhere. What comes before its first 16-byte boundary is taken apart, so that
        # all else is read in whole vectors and without masks.
        begin = row * x_stride + part * span
        count = tl.maximum(tl.minimum(span, classes - part * span), 0)
        head = tl.minimum((VECTOR - begin % VECTOR) % VECTOR, count).to(tl.int32)
        aligned = x_ptr + tl.multiple_of(begin + head, VECTOR)
        whole = (count - head) // BLOCK * BLOCK

        # A thread's vector is one 16-byte load: the maximum over axis 1 is taken inside the thread, without shuffles.
        lane = tl.arange(0, BLOCK // VECTOR)
        offset = lane[:, None] * VECTOR + tl.arange(0, VECTOR)[None, :]
        top = tl.full([BLOCK // VECTOR], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK // VECTOR], tl.float32)
        for start in tl.range(0, whole, BLOCK, num_stages=STAGES):
            # Read once and never again: it should not push anything else out of the L2 cache.
            x = tl.load(aligned + start + offset, eviction_policy="evict_first")
            top, total = add(x.to(tl.float32), top, total)
        x = tl.load(aligned + whole + offset, mask=whole + offset < count - head, other=float("-inf"))
        top, total = add(x.to(tl.float32), top, total)
        x = tl.load(x_ptr + begin + lane, mask=lane < head, other=float("-inf"))
        top, total = add(x.to(tl.float32)[:, None], top, total)

        highest = tl.max(top, axis=0)
        base = tl.where(highest == float("-inf"), 0.0, highest)
        tl.store(top_ptr + row * SPLITS + part, base)
        tl.store(total_ptr + row * SPLITS + part, tl.sum(total * tl.exp(top - base), axis=0))
        if part == 0:
            chosen = tl.load(x_ptr + row * x_stride + target, mask=target < classes, other=float("nan"))
            tl.store(chosen_ptr + row, chosen.to(tl.float32))


@triton.jit
def mean_kernel(
    loss_ptr, top_ptr, total_ptr, target_ptr, y_ptr, rows, target_stride, SPLITS: tl.constexpr, BLOCK: tl.constexpr
):
    # One program, so that the order of the sum is the same every time. SPLITS is 0 where losses are ready.
    sums = tl.zeros([BLOCK], tl.float32)
    counted = tl.zeros([BLOCK], tl.int32)
    for start in range(0, rows, BLOCK):
        row = start + tl.arange(0, BLOCK)
        target = tl.load(target_ptr + row.to(tl.int64) * target_stride, mask=row < rows, other=-1)
        counts = target >= 0
        loss = tl.load(loss_ptr + row, mask=counts, other=0.0)
        if SPLITS > 0:
            part = row[:, None] * SPLITS + tl.arange(0, SPLITS)[None, :]
            tops = tl.load(top_ptr + part, mask=counts[:, None], other=0.0)
            totals = tl.load(total_ptr + part, mask=counts[:, None], other=1.0)
            # A part that was all -inf has total 0 and top 0, which must not count as a maximum.
            top = tl.max(tl.where(totals == 0.0, float("-inf"), tops), axis=1)
            top = tl.where(top == float("-inf"), 0.0, top)
            scaled = tl.where(totals == 0.0, 0.0, totals * tl.exp(tops - top[:, None]))
            loss = tl.log(tl.sum(scaled, axis=1)) + (top - loss)
        sums += tl.where(counts, loss, 0.0)
        counted += counts.to(tl.int32)
    # The mean of no rows is 0 / 0, NaN, as in PyTorch.
    mean = tl.sum(sums, axis=0) / tl.sum(counted, axis=0).to(tl.float32)
    tl.store(y_ptr, mean.to(y_ptr.dtype.element_ty))


def cdiv(n, block):
    """How many blocks hold n."""
    return -(-n // block)


def power_of_2(n):
    """The least power of two that is not less than n."""
    return 1 << (n - 1).bit_length()


def kernel_fn(logits, targets):
    rows, classes = logits.shape
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    y = torch.empty((), dtype=logits.dtype, device=logits.device)
    if classes <= LONG_ROW:
        losses = torch.empty(max(rows, 1), dtype=torch.float32, device=logits.device)
        block = power_of_2(max(classes, 1))
        tile_rows = max(1, min(TILE // block, power_of_2(max(rows, 1))))
        warps = max(1, min(16, tile_rows * block // (32 * PER_THREAD)))
        if rows:
            short_rows_kernel[(cdiv(rows, tile_rows),)](
                logits, targets, losses, rows, classes, logits.stride(0), targets.stride(0),
                ROWS=tile_rows, BLOCK=block, num_warps=warps,
            )  # fmt: skip
        tops = totals = losses
        splits = 0
    else:
        # A power of two of parts a row, none of them shorter than a block.
        splits = power_of_2(cdiv(FILL, max(rows, 1)))
        splits = min(splits, power_of_2(cdiv(classes, LONG_BLOCK)) // 2 or 1, 64)
        span = cdiv(cdiv(classes, splits), LONG_BLOCK) * LONG_BLOCK
        scratch = torch.empty(max(rows, 1) * (2 * splits + 1), dtype=torch.float32, device=logits.device)
        tops, totals, losses = scratch.split([max(rows, 1) * n for n in (splits, splits, 1)])
        if rows:
            long_row_kernel[(rows, splits)](
                logits, targets, tops, totals, losses, classes, span, logits.stride(0), targets.stride(0),
                SPLITS=splits, BLOCK=LONG_BLOCK, VECTOR=16 // logits.element_size(),
                STAGES=STAGES if span > AHEAD_ROW else 1, num_warps=LONG_WARPS,
            )  # fmt: skip
    block = max(32, min(8192 // max(splits, 1), power_of_2(max(rows, 1))))
    warps = max(1, min(16, block * max(splits, 1) // 256))
    mean_kernel[(1,)](
        losses, tops, totals, targets, y, rows, targets.stride(0), SPLITS=splits, BLOCK=block, num_warps=warps
    )
    return y
