"""SwiGLU feed-forward block, Triton: y = (silu(x · w_gateᵀ) · (x · w_upᵀ)) · w_downᵀ.

x [M, D], w_gate [F, D], w_up [F, D], w_down [D, F] -> [M, D]; float32, float16 or bfloat16, any strides; sums in
float32, fp32 products in fp32. Between the two kernels the hidden layer [M, F] is rounded to the dtype.
Bytes: (2·M·D + 3·D·F) · itemsize, and 2·M·F more for the hidden layer. Flops: 6·M·D·F.
Gate and up in one kernel: a tile of x is read once for both and kept in two accumulators, and silu(gate) · up happens
in registers, so that neither of the two [M, F] products is ever written. The second kernel is the product with w_down.
Large blocks are bound by the tensor cores; those of few rows by reading the weights: narrow tiles there, so that every
SM reads, and deep steps, so that much is in flight. One row needs no tensor cores: a program reads whole lines of a few
weights, and adds up products in registers.
Another GPU should revisit all constants: tiles and stages follow its shared memory, SKINNY_* its memory latency.
"""

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "fused_mlp"
BACKEND = "triton"

GATE_BM = 128  # tune: 64, 128, 256 | rows of a tile of the hidden layer
GATE_BN = 64  # tune: 64, 128 | columns of such a tile, of which there are two: gate and up
GATE_BK = 64  # tune: 32, 64 | depth of a step there
GATE_WARPS = 8  # tune: 4, 8 | warps there
GATE_STAGES = 3  # tune: 2, 3, 4 | steps that are in shared memory at once there
DOWN_BM = 128  # tune: 64, 128, 256 | rows of a tile of the result
DOWN_BN = 256  # tune: 64, 128, 256 | columns of such a tile
DOWN_BK = 64  # tune: 32, 64, 128 | depth of a step there
DOWN_WARPS = 8  # tune: 4, 8 | warps there
DOWN_STAGES = 3  # tune: 2, 3, 4, 5 | steps that are in shared memory at once there
GROUP = 8  # tune: 1, 4, 8, 16, 32 | rows of tiles that are walked together
SKINNY_BN = 32  # tune: 16, 32, 64 | columns of a tile where rows are few
SKINNY_BK = 128  # tune: 64, 128, 256 | depth of a step there
SKINNY_STAGES = 4  # tune: 3, 4, 5 | steps that are in shared memory at once there
ROW_BN = 4  # tune: 2, 4, 8 | of one row: lines of each of gate and up of a program, and half of those of down
ROW_BK = 512  # tune: 256, 512, 1024 | depth of a step there
ROW_STAGES = 4  # tune: 2, 3, 4 | steps that are in shared memory at once there
FP32_BM = 64  # tune: 32, 64, 128 | rows of a tile in float32, which has no tensor cores
FP32_BN = 32  # tune: 32, 64 | columns of a tile in float32
FP32_BK = 16  # tune: 8, 16, 32 | depth of a step in float32

ODD = 1 << 23  # products of a block whose rows begin anywhere, up to which it is not worth compilations of its own


@triton.jit
def tile_of(program, m, n, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr):
    """Programs are numbered down the columns of a group of GROUP rows of tiles: neighbours share operands in the L2."""
    tiles_m, tiles_n = tl.cdiv(m, BM), tl.cdiv(n, BN)
    first = program // (GROUP * tiles_n) * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    within = program % (GROUP * tiles_n)
    return first + within % height, within // height


@triton.jit
def gate_up_kernel(
    x_ptr, gate_ptr, up_ptr, h_ptr, m, n, k, x_m, x_k, gate_n, gate_k, up_n, up_k,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    tile_m, tile_n = tile_of(tl.program_id(0), m, n, BM, BN, GROUP)
    # Rows and columns beyond the edge wrap around to real ones: their loads need no mask, and nobody stores them.
    row = ((tile_m * BM + tl.arange(0, BM)) % m).to(tl.int64)
    column = ((tile_n * BN + tl.arange(0, BN)) % n).to(tl.int64)
    step = tl.arange(0, BK)
    x_at = x_ptr + row[:, None] * x_m + step[None, :] * x_k
    gate_at = gate_ptr + column[None, :] * gate_n + step[:, None] * gate_k
    up_at = up_ptr + column[None, :] * up_n + step[:, None] * up_k
    gate = tl.zeros([BM, BN], tl.float32)
    up = tl.zeros([BM, BN], tl.float32)
    for start in range(0, k, BK):
        if EVEN_K:
            x, w_gate, w_up = tl.load(x_at), tl.load(gate_at), tl.load(up_at)
        else:
            x = tl.load(x_at, mask=start + step[None, :] < k, other=0.0)
            w_gate = tl.load(gate_at, mask=start + step[:, None] < k, other=0.0)
            w_up = tl.load(up_at, mask=start + step[:, None] < k, other=0.0)
        gate = tl.dot(x, w_gate, gate, input_precision="ieee")
        up = tl.dot(x, w_up, up, input_precision="ieee")
        x_at += BK * x_k
        gate_at += BK * gate_k
        up_at += BK * up_k

    # silu(g) = g / (1 + exp(-g)): exp may overflow to infinity, and the quotient is then the 0 it should be.
    hidden = gate / (1.0 + tl.exp(-gate)) * up
    row = tile_m * BM + tl.arange(0, BM)
    column = tile_n * BN + tl.arange(0, BN)
    h_at = h_ptr + row[:, None].to(tl.int64) * n + column[None, :]
    tl.store(h_at, hidden.to(h_ptr.dtype.element_ty), mask=(row < m)[:, None] & (column < n)[None, :])


@triton.jit
def down_kernel(
    h_ptr, w_ptr, y_ptr, m, n, k, w_n, w_k,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, EVEN_K: tl.constexpr,
):  # fmt: skip
    tile_m, tile_n = tile_of(tl.program_id(0), m, n, BM, BN, GROUP)
    row = ((tile_m * BM + tl.arange(0, BM)) % m).to(tl.int64)
    column = ((tile_n * BN + tl.arange(0, BN)) % n).to(tl.int64)
    step = tl.arange(0, BK)
    h_at = h_ptr + row[:, None] * k + step[None, :]
    w_at = w_ptr + column[None, :] * w_n + step[:, None] * w_k
    sums = tl.zeros([BM, BN], tl.float32)
    for start in range(0, k, BK):
        if EVEN_K:
            h, w = tl.load(h_at), tl.load(w_at)
        else:
            h = tl.load(h_at, mask=start + step[None, :] < k, other=0.0)
            w = tl.load(w_at, mask=start + step[:, None] < k, other=0.0)
        sums = tl.dot(h, w, sums, input_precision="ieee")
        h_at += BK
        w_at += BK * w_k

    row = tile_m * BM + tl.arange(0, BM)
    column = tile_n * BN + tl.arange(0, BN)
    y_at = y_ptr + row[:, None].to(tl.int64) * n + column[None, :]
    tl.store(y_at, sums.to(y_ptr.dtype.element_ty), mask=(row < m)[:, None] & (column < n)[None, :])


# The same for any sizes and strides, compiled once: element by element, with all masks.
@triton.jit(do_not_specialize=["m", "n", "k", "x_m", "x_k", "gate_n", "gate_k", "up_n", "up_k"])
def odd_gate_up_kernel(
    x_ptr, gate_ptr, up_ptr, h_ptr, m, n, k, x_m, x_k, gate_n, gate_k, up_n, up_k,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    gate_up_kernel(
        x_ptr, gate_ptr, up_ptr, h_ptr, m, n, k, x_m, x_k, gate_n, gate_k, up_n, up_k,
        BM, BN, BK, GROUP=1, EVEN_K=False,
    )  # fmt: skip


@triton.jit(do_not_specialize=["m", "n", "k", "w_n", "w_k"])
def odd_down_kernel(
    h_ptr, w_ptr, y_ptr, m, n, k, w_n, w_k, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):  # fmt: skip
    down_kernel(h_ptr, w_ptr, y_ptr, m, n, k, w_n, w_k, BM, BN, BK, GROUP=1, EVEN_K=False)


@triton.jit
def row_kernel(
    x_ptr, w_ptr, up_ptr, y_ptr, n, k, x_k, w_n, up_n,
    BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, EVEN_K: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """x · wᵀ for one row of x; GATED: silu of that times x · upᵀ. Each thread sums up what it reads: no tensor cores."""
    column = tl.program_id(0) * BN + tl.arange(0, BN)
    line = (column % n).to(tl.int64)
    step = tl.arange(0, BK)
    w_at = w_ptr + line[:, None] * w_n + step[None, :]
    up_at = up_ptr + line[:, None] * up_n + step[None, :]
    sums = tl.zeros([BN, BK], tl.float32)
    ups = tl.zeros([BN, BK], tl.float32)
    for start in tl.range(0, k, BK, num_stages=STAGES):
        inside = (start + step < k)[None, :]
        if EVEN_K:
            x, w = tl.load(x_ptr + (start + step) * x_k), tl.load(w_at)
        else:
            x = tl.load(x_ptr + (start + step) * x_k, mask=start + step < k, other=0.0)
            w = tl.load(w_at, mask=inside, other=0.0)
        sums += w.to(tl.float32) * x.to(tl.float32)[None, :]
        if GATED:
            up = tl.load(up_at) if EVEN_K else tl.load(up_at, mask=inside, other=0.0)
            ups += up.to(tl.float32) * x.to(tl.float32)[None, :]
        w_at += BK
        up_at += BK
    y = tl.sum(sums, axis=1)
    if GATED:
        y = y / (1.0 + tl.exp(-y)) * tl.sum(ups, axis=1)
    tl.store(y_ptr + column, y.to(y_ptr.dtype.element_ty), mask=column < n)


def cdiv(n, block):
    """How many blocks hold n."""
    return -(-n // block)


def power_of_2(n):
    """The least power of two that is not less than n."""
    return 1 << (n - 1).bit_length()


_sms = {}


def multiprocessors(device):
    if device.type != "cuda":  # the interpreter's device
        return 1
    if device not in _sms:
        _sms[device] = torch.cuda.get_device_properties(device).multi_processor_count
    return _sms[device]


def tiling(m, n, dtype, device, large):
    """(BM, BN, BK, warps, stages) for a product of [m, n]: ``large`` where such tiles fill the GPU."""
    if dtype == torch.float32:
        return min(FP32_BM, max(16, power_of_2(m))), FP32_BN, FP32_BK, 4, 2
    if m <= 64:
        return max(16, power_of_2(m)), SKINNY_BN, SKINNY_BK, 4, SKINNY_STAGES
    if cdiv(m, large[0]) * cdiv(n, large[1]) >= multiprocessors(device):
        return large
    return 64, 64, 32, 4, 5


def kernel_fn(x, w_gate, w_up, w_down):
    m, width = x.shape
    hidden = w_gate.shape[0]
    y = torch.empty((m, width), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    h = torch.empty((m, hidden), dtype=x.dtype, device=x.device)
    if m * width * hidden <= ODD and any(max(t.stride()) % 8 for t in (x, w_gate, w_up, w_down)):
        odd_gate_up_kernel[(cdiv(m, 32) * cdiv(hidden, 32),)](
            x, w_gate, w_up, h, m, hidden, width, *x.stride(), *w_gate.stride(), *w_up.stride(),
            BM=32, BN=32, BK=32, num_warps=4, num_stages=1,
        )  # fmt: skip
        odd_down_kernel[(cdiv(m, 32) * cdiv(width, 32),)](
            h, w_down, y, m, width, hidden, *w_down.stride(), BM=32, BN=32, BK=32, num_warps=4, num_stages=1
        )
        return y
    if m == 1 and w_gate.stride(1) == w_up.stride(1) == w_down.stride(1) == 1:
        row_kernel[(cdiv(hidden, ROW_BN),)](
            x, w_gate, w_up, h, hidden, width, x.stride(1), w_gate.stride(0), w_up.stride(0),
            BN=ROW_BN, BK=ROW_BK, STAGES=ROW_STAGES, EVEN_K=width % ROW_BK == 0, GATED=True, num_warps=4,
        )  # fmt: skip
        row_kernel[(cdiv(width, 2 * ROW_BN),)](
            h, w_down, w_down, y, width, hidden, 1, w_down.stride(0), w_down.stride(0),
            BN=2 * ROW_BN, BK=ROW_BK, STAGES=ROW_STAGES, EVEN_K=hidden % ROW_BK == 0, GATED=False, num_warps=4,
        )  # fmt: skip
        return y
    large = (GATE_BM, GATE_BN, GATE_BK, GATE_WARPS, GATE_STAGES)
    bm, bn, bk, warps, stages = tiling(m, hidden, x.dtype, x.device, large)
    gate_up_kernel[(cdiv(m, bm) * cdiv(hidden, bn),)](
        x, w_gate, w_up, h, m, hidden, width, *x.stride(), *w_gate.stride(), *w_up.stride(),
        BM=bm, BN=bn, BK=bk, GROUP=GROUP, EVEN_K=width % bk == 0, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    large = (DOWN_BM, DOWN_BN, DOWN_BK, DOWN_WARPS, DOWN_STAGES)
    bm, bn, bk, warps, stages = tiling(m, width, x.dtype, x.device, large)
    down_kernel[(cdiv(m, bm) * cdiv(width, bn),)](
        h, w_down, y, m, width, hidden, *w_down.stride(),
        BM=bm, BN=bn, BK=bk, GROUP=GROUP, EVEN_K=hidden % bk == 0, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return y
