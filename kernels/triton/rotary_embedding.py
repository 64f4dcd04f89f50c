"""Rotary position embedding, Triton: each pair of features (a, b) is turned by its position's angle.

x [B, H, S, D], cos and sin [S, D/2] or [S, D] -> [B, H, S, D]; float32, float16 or bfloat16, any strides, float32
inside. Pairs are (2i, 2i + 1) when interleaved, else (i, i + D/2): out = (a·cos - b·sin, b·cos + a·sin).
Bytes: x is read, y is written, the tables once: (2·B·H·S·D + 2·S·P) · itemsize. Flops: 3·B·H·S·D.
Three operations for each 4 to 8 bytes: memory decides. The tables are the same for every head: a program turns a tile
of positions of several heads and loads its part of the tables once. Interleaved pairs are loaded as they lie, in whole
lines, and taken apart in registers.
Another GPU should revisit TILE, HEADS and WARPS: they follow its memory latency and how much its L2 cache delivers.
"""

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "rotary_embedding"
BACKEND = "triton"

TILE = 1024  # tune: 512, 1024, 2048, 4096, 8192 | features of a tile: positions times features of a head
HEADS = 1  # tune: 1, 2, 4, 8, 16, 32 | heads that a program turns, one after the other, with the same angles
WARPS = 4  # tune: 1, 2, 4, 8 | warps of a program


@triton.jit
def rotary_kernel(
    x_ptr, cos_ptr, sin_ptr, y_ptr, heads, positions,
    x_b, x_h, x_s, x_d, y_b, y_h, y_s, y_d, cos_s, cos_d, sin_s, sin_d,
    half: tl.constexpr, INTERLEAVED: tl.constexpr, WIDE: tl.constexpr, HEADS: tl.constexpr, POSITIONS: tl.constexpr,
    HALF: tl.constexpr,
):  # fmt: skip
    # 64-bit offsets: a batch may have more than 2^31 elements.
    position = tl.program_id(0).to(tl.int64) * POSITIONS + tl.arange(0, POSITIONS)[:, None]
    batch = tl.program_id(2).to(tl.int64)
    pair = tl.arange(0, HALF)[None, :]
    real = (position < positions) & (pair < half)

    # Where a pair's first and second feature, and their angles, lie along D. Tables as wide as D have an angle for
    # each feature; narrow ones have one for each pair.
    if INTERLEAVED:
        a_at, b_at = 2 * pair, 2 * pair + 1
    else:
        a_at, b_at = pair, pair + half
    cos_row, sin_row = cos_ptr + position * cos_s, sin_ptr + position * sin_s
    if WIDE:
        cos_a = tl.load(cos_row + a_at * cos_d, mask=real, other=0.0).to(tl.float32)
        sin_a = tl.load(sin_row + a_at * sin_d, mask=real, other=0.0).to(tl.float32)
        cos_b = tl.load(cos_row + b_at * cos_d, mask=real, other=0.0).to(tl.float32)
        sin_b = tl.load(sin_row + b_at * sin_d, mask=real, other=0.0).to(tl.float32)
    else:
        cos_a = tl.load(cos_row + pair * cos_d, mask=real, other=0.0).to(tl.float32)
        sin_a = tl.load(sin_row + pair * sin_d, mask=real, other=0.0).to(tl.float32)
        cos_b, sin_b = cos_a, sin_a

    first = tl.program_id(1) * HEADS
    x_row = x_ptr + batch * x_b + first.to(tl.int64) * x_h + position * x_s
    y_row = y_ptr + batch * y_b + first.to(tl.int64) * y_h + position * y_s
    for _ in range(first, tl.minimum(first + HEADS, heads)):
        if INTERLEAVED:
            # One load of both: every line of memory is asked for once.
            feature = tl.arange(0, 2 * HALF)[None, :]
            both = (position < positions) & (feature < 2 * half)
            x = tl.load(x_row + feature * x_d, mask=both, other=0.0).to(tl.float32)
            a, b = tl.split(tl.reshape(x, (POSITIONS, HALF, 2)))
            y = tl.reshape(tl.join(a * cos_a - b * sin_a, b * cos_b + a * sin_b), (POSITIONS, 2 * HALF))
            tl.store(y_row + feature * y_d, y.to(y_ptr.dtype.element_ty), mask=both)
        else:
            a = tl.load(x_row + a_at * x_d, mask=real, other=0.0).to(tl.float32)
            b = tl.load(x_row + b_at * x_d, mask=real, other=0.0).to(tl.float32)
            tl.store(y_row + a_at * y_d, (a * cos_a - b * sin_a).to(y_ptr.dtype.element_ty), mask=real)
            tl.store(y_row + b_at * y_d, (b * cos_b + a * sin_b).to(y_ptr.dtype.element_ty), mask=real)
        x_row += x_h
        y_row += y_h


def cdiv(n, block):
    """How many blocks hold n."""
    return -(-n // block)


def power_of_2(n):
    """The least power of two that is not less than n."""
    return 1 << (n - 1).bit_length()


def kernel_fn(x, cos, sin, interleaved=True):
    batch, heads, positions, width = x.shape
    # Keeps the order of x's dimensions in memory: a model's next view of it costs no copy.
    y = torch.empty_like(x)
    if y.numel() == 0:
        return y
    half = power_of_2(width // 2)
    tile = max(1, min(TILE // (2 * half), power_of_2(positions)))
    grid = (cdiv(positions, tile), cdiv(heads, HEADS), batch)
    rotary_kernel[grid](
        x, cos, sin, y, heads, positions, *x.stride(), *y.stride(), *cos.stride(), *sin.stride(),
        half=width // 2, INTERLEAVED=interleaved, WIDE=cos.shape[1] == width, HEADS=HEADS, POSITIONS=tile, HALF=half,
        num_warps=max(1, min(WARPS, tile * half // 128)),
    )  # fmt: skip
    return y
