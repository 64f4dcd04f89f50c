"""SwiGLU feed-forward block, Triton for Hopper (sm_90): y = (silu(x · w_gateᵀ) · (x · w_upᵀ)) · w_downᵀ.

x [M, D], w_gate [F, D], w_up [F, D], w_down [D, F] -> [M, D]; float32, float16 or bfloat16, any strides; sums in
float32, fp32 products in fp32. Between the two kernels the hidden layer [M, F] is rounded to the dtype.
Bytes: (2·M·D + 3·D·F) · itemsize, and 2·M·F more for the hidden layer. Flops: 6·M·D·F.
Gate and up in one kernel: a tile of x is moved once for both and kept in two accumulators, and silu(gate) · up happens
in registers, so that neither of the two [M, F] products is ever written. The second kernel is the product with w_down.
Tiles are moved by the Tensor Memory Accelerator straight to where wgmma reads them. The programs are as many as fit on
the GPU and walk over tiles. With FLATTEN the loops over tiles and over depth are pipelined as one, and the loads of the
next tile run while the last one is stored; two accumulators leave few registers for it. Groups of GROUP rows share the L2.
The TMA asks for rows that begin at multiples of 16 bytes; other operands are copied to such rows first. And each
matrix must be described to it, which takes the host longer than a block of few rows takes the GPU: those, and float32,
go through pointers. They are bound by reading the weights: narrow tiles, so that every SM reads, and deep steps. One row
needs no tensor cores: a program reads whole lines of a few weights, and adds up products in registers.
Another GPU should revisit all constants: tiles and stages follow its shared memory, SKINNY_* its memory latency.
"""

import functools

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

KERNEL_TYPE = "fused_mlp"
BACKEND = "triton"

GATE_BM = 128  # tune: 64, 128, 256 | rows of a tile of the hidden layer
GATE_BN = 128  # tune: 64, 128 | columns of such a tile, of which there are two: gate and up
GATE_BK = 64  # tune: 32, 64, 128 | depth of a step there
GATE_WARPS = 8  # tune: 4, 8 | warps there
GATE_STAGES = 3  # tune: 2, 3, 4 | steps that are in shared memory at once there
DOWN_BM = 128  # tune: 64, 128, 256 | rows of a tile of the result
DOWN_BN = 256  # tune: 64, 128, 256 | columns of such a tile
DOWN_BK = 64  # tune: 32, 64, 128 | depth of a step there
DOWN_WARPS = 8  # tune: 4, 8 | warps there
DOWN_STAGES = 3  # tune: 2, 3, 4, 5 | steps that are in shared memory at once there
GROUP = 16  # tune: 1, 4, 8, 16, 32 | rows of tiles that are walked together
FLATTEN = False  # tune: True, False | pipeline the loops over tiles and over depth as one
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
def corner_of(tile, m, n, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr):
    """Tiles are numbered down the columns of a group of GROUP rows of tiles: neighbours share operands in the L2."""
    tiles_m, tiles_n = tl.cdiv(m, BM), tl.cdiv(n, BN)
    first = tile // (GROUP * tiles_n) * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    within = tile % (GROUP * tiles_n)
    return (first + within % height) * BM, within // height * BN


@triton.jit
def part_of(desc, row, column, TURNED: tl.constexpr):
    """The tile of a matrix that begins at [row, column]; TURNED: the descriptor sees its transpose."""
    return desc.load([column, row]).T if TURNED else desc.load([row, column])


@triton.jit
def gate_up_kernel(
    x_desc, gate_desc, up_desc, h_desc, m, n, k,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, X_TURNED: tl.constexpr,
    GATE_TURNED: tl.constexpr, UP_TURNED: tl.constexpr, FLATTEN: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(m, BM) * tl.cdiv(n, BN)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=FLATTEN):
        row, column = corner_of(tile, m, n, BM, BN, GROUP)
        gate = tl.zeros([BM, BN], tl.float32)
        up = tl.zeros([BM, BN], tl.float32)
        for step in range(tl.cdiv(k, BK)):
            # Beyond the edges the TMA gives zeros: no masks. wgmma reads weights as they lie, [n, k].
            x = part_of(x_desc, row, step * BK, X_TURNED)
            w_gate = part_of(gate_desc, column, step * BK, GATE_TURNED)
            w_up = part_of(up_desc, column, step * BK, UP_TURNED)
            gate = tl.dot(x, w_gate.T, gate)
            up = tl.dot(x, w_up.T, up)
        # silu(g) = g / (1 + exp(-g)): exp may overflow to infinity, and the quotient is then the 0 it should be.
        h_desc.store([row, column], (gate / (1.0 + tl.exp(-gate)) * up).to(h_desc.dtype))


@triton.jit
def down_kernel(
    h_desc, w_desc, y, m, n, k,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    W_TURNED: tl.constexpr, Y_TMA: tl.constexpr, FLATTEN: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(m, BM) * tl.cdiv(n, BN)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=FLATTEN):
        row, column = corner_of(tile, m, n, BM, BN, GROUP)
        sums = tl.zeros([BM, BN], tl.float32)
        for step in range(tl.cdiv(k, BK)):
            h = h_desc.load([row, step * BK])
            w = part_of(w_desc, column, step * BK, W_TURNED)
            sums = tl.dot(h, w.T, sums)
        if Y_TMA:
            y.store([row, column], sums.to(y.dtype))
        else:  # rows that do not begin at multiples of 16 bytes
            rows, columns = row + tl.arange(0, BM)[:, None], column + tl.arange(0, BN)[None, :]
            inside = (rows < m) & (columns < n)
            tl.store(y + rows.to(tl.int64) * n + columns, sums.to(y.dtype.element_ty), mask=inside)


@triton.jit
def small_kernel(
    x_ptr, w_ptr, up_ptr, y_ptr, m, n, k, x_m, x_k, w_n, w_k, up_n, up_k, y_m,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, EVEN_K: tl.constexpr,
    GATED: tl.constexpr,
):  # fmt: skip
    """A tile of x · wᵀ, read through pointers; GATED: silu of that times x · upᵀ."""
    first_row, first_column = corner_of(tl.program_id(0), m, n, BM, BN, GROUP)
    # Rows and columns beyond the edge wrap around to real ones: their loads need no mask, and nobody stores them.
    row = ((first_row + tl.arange(0, BM)) % m).to(tl.int64)
    column = ((first_column + tl.arange(0, BN)) % n).to(tl.int64)
    step = tl.arange(0, BK)
    x_at = x_ptr + row[:, None] * x_m + step[None, :] * x_k
    w_at = w_ptr + column[None, :] * w_n + step[:, None] * w_k
    up_at = up_ptr + column[None, :] * up_n + step[:, None] * up_k
    sums = tl.zeros([BM, BN], tl.float32)
    ups = tl.zeros([BM, BN], tl.float32)
    for start in range(0, k, BK):
        inside = start + step < k
        x = tl.load(x_at) if EVEN_K else tl.load(x_at, mask=inside[None, :], other=0.0)
        w = tl.load(w_at) if EVEN_K else tl.load(w_at, mask=inside[:, None], other=0.0)
        sums = tl.dot(x, w, sums, input_precision="ieee")
        if GATED:
            up = tl.load(up_at) if EVEN_K else tl.load(up_at, mask=inside[:, None], other=0.0)
            ups = tl.dot(x, up, ups, input_precision="ieee")
        x_at += BK * x_k
        w_at += BK * w_k
        up_at += BK * up_k
    if GATED:
        sums = sums / (1.0 + tl.exp(-sums)) * ups
    row = first_row + tl.arange(0, BM)
    column = first_column + tl.arange(0, BN)
    y_at = y_ptr + row[:, None].to(tl.int64) * y_m + column[None, :]
    tl.store(y_at, sums.to(y_ptr.dtype.element_ty), mask=(row < m)[:, None] & (column < n)[None, :])


@triton.jit(do_not_specialize=["m", "n", "k", "x_m", "x_k", "w_n", "w_k", "up_n", "up_k", "y_m"])
def odd_kernel(
    x_ptr, w_ptr, up_ptr, y_ptr, m, n, k, x_m, x_k, w_n, w_k, up_n, up_k, y_m,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, EVEN_K: tl.constexpr,
    GATED: tl.constexpr,
):  # fmt: skip
    """The same for any sizes and strides, compiled once: it reads element by element."""
    small_kernel(
        x_ptr, w_ptr, up_ptr, y_ptr, m, n, k, x_m, x_k, w_n, w_k, up_n, up_k, y_m, BM, BN, BK, GROUP, EVEN_K, GATED
    )


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


def cdiv(n, block):  # how many blocks hold n
    return -(-n // block)


def aligned(t):
    """(a matrix whose rows the TMA can read, whether it is the transpose of ``t``): a view where that is possible."""
    (rows, columns), (down, along), piece = t.shape, t.stride(), 16 // t.element_size()
    if t.data_ptr() % 16 == 0:
        if along == 1 and down >= columns and down % piece == 0:
            return t, False
        if down == 1 and along >= rows and along % piece == 0:
            return t.t(), True
    padded = torch.empty((rows, cdiv(columns, piece) * piece), dtype=t.dtype, device=t.device)
    return padded[:, :columns].copy_(t), False


def described(t, rows, columns):
    """(a descriptor of blocks [rows, columns] of ``t``, whether it sees the transpose)."""
    view, turned = aligned(t)
    return TensorDescriptor(view, view.shape, view.stride(), [columns, rows] if turned else [rows, columns]), turned


_sms = {}


def multiprocessors(device):
    if device.type != "cuda":  # the interpreter's device
        return 1
    if device not in _sms:
        _sms[device] = torch.cuda.get_device_properties(device).multi_processor_count
    return _sms[device]


@functools.lru_cache
def tiling(m, n, sms, large):
    """(BM, BN, BK, warps, stages, programs) for a product of [m, n]; ``large`` where that fills the GPU."""
    tile = large if cdiv(m, large[0]) * cdiv(n, large[1]) >= sms else (64, 128, 64, 4, 4)
    return *tile, min(cdiv(m, tile[0]) * cdiv(n, tile[1]), sms if tile is large else 2 * sms)


def small_tiling(m, dtype):
    """(BM, BN, BK, warps, stages) of products through pointers."""
    rows = max(16, 1 << (m - 1).bit_length())
    if dtype == torch.float32:
        return min(FP32_BM, rows), FP32_BN, FP32_BK, 4, 2
    if m <= 64:
        return rows, SKINNY_BN, SKINNY_BK, 4, SKINNY_STAGES
    return 64, 64, 64, 4, 4


def kernel_fn(x, w_gate, w_up, w_down):
    m, width = x.shape
    hidden = w_gate.shape[0]
    y = torch.empty((m, width), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    # Rows of the hidden layer begin at multiples of 16 bytes, whatever its width: both kernels may use the TMA.
    padding = 16 // x.element_size()
    h = torch.empty((m, cdiv(hidden, padding) * padding), dtype=x.dtype, device=x.device)[:, :hidden]
    little = m * width * hidden <= ODD
    odd = little and any(max(t.stride()) % 8 for t in (x, w_gate, w_up, w_down))
    if m == 1 and not odd and w_gate.stride(1) == w_up.stride(1) == w_down.stride(1) == 1:
        row_kernel[(cdiv(hidden, ROW_BN),)](
            x, w_gate, w_up, h, hidden, width, x.stride(1), w_gate.stride(0), w_up.stride(0),
            BN=ROW_BN, BK=ROW_BK, STAGES=ROW_STAGES, EVEN_K=width % ROW_BK == 0, GATED=True, num_warps=4,
        )  # fmt: skip
        row_kernel[(cdiv(width, 2 * ROW_BN),)](
            h, w_down, w_down, y, width, hidden, 1, w_down.stride(0), w_down.stride(0),
            BN=2 * ROW_BN, BK=ROW_BK, STAGES=ROW_STAGES, EVEN_K=hidden % ROW_BK == 0, GATED=False, num_warps=4,
        )  # fmt: skip
        return y
    sms = multiprocessors(x.device)
    whole = little or width % 64 == hidden % 64 == 0  # else pointers take masks, and read element by element
    few = whole and cdiv(m, GATE_BM) * cdiv(hidden, GATE_BN) < sms
    if odd or m <= 64 or x.dtype == torch.float32 or few:
        kernel, tile = (odd_kernel, (32, 32, 32, 4, 1)) if odd else (small_kernel, small_tiling(m, x.dtype))
        bm, bn, bk, warps, stages = tile
        kernel[(cdiv(m, bm) * cdiv(hidden, bn),)](
            x, w_gate, w_up, h, m, hidden, width, *x.stride(), *w_gate.stride(), *w_up.stride(), h.stride(0),
            BM=bm, BN=bn, BK=bk, GROUP=GROUP, EVEN_K=width % bk == 0 and not odd, GATED=True,
            num_warps=warps, num_stages=stages,
        )  # fmt: skip
        kernel[(cdiv(m, bm) * cdiv(width, bn),)](
            h, w_down, w_down, y, m, width, hidden, *h.stride(), *w_down.stride(), *w_down.stride(), width,
            BM=bm, BN=bn, BK=bk, GROUP=GROUP, EVEN_K=hidden % bk == 0 and not odd, GATED=False,
            num_warps=warps, num_stages=stages,
        )  # fmt: skip
        return y
    large = (GATE_BM, GATE_BN, GATE_BK, GATE_WARPS, GATE_STAGES)
    bm, bn, bk, warps, stages, programs = tiling(m, hidden, sms, large)
    x_desc, x_turned = described(x, bm, bk)
    gate_desc, gate_turned = described(w_gate, bn, bk)
    up_desc, up_turned = described(w_up, bn, bk)
    gate_up_kernel[(programs,)](
        x_desc, gate_desc, up_desc, TensorDescriptor(h, h.shape, h.stride(), [bm, bn]), m, hidden, width,
        BM=bm, BN=bn, BK=bk, GROUP=GROUP, X_TURNED=x_turned, GATE_TURNED=gate_turned, UP_TURNED=up_turned,
        FLATTEN=FLATTEN, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    large = (DOWN_BM, DOWN_BN, DOWN_BK, DOWN_WARPS, DOWN_STAGES)
    bm, bn, bk, warps, stages, programs = tiling(m, width, sms, large)
    w_desc, w_turned = described(w_down, bn, bk)
    y_tma = width * y.element_size() % 16 == 0
    out = TensorDescriptor(y, y.shape, y.stride(), [bm, bn]) if y_tma else y
    down_kernel[(programs,)](
        TensorDescriptor(h, h.shape, h.stride(), [bm, bk]), w_desc, out, m, width, hidden,
        BM=bm, BN=bn, BK=bk, GROUP=GROUP, W_TURNED=w_turned, Y_TMA=y_tma, FLATTEN=FLATTEN,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return y
