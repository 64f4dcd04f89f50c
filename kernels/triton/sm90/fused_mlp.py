"""SwiGLU feed-forward block, Triton for Hopper (sm_90): y = (silu(x · w_gateᵀ) · (x · w_upᵀ)) · w_downᵀ.

x [M, D], w_gate [F, D], w_up [F, D], w_down [D, F] -> [M, D]; float32, float16 or bfloat16, any strides; sums in
float32, fp32 products in fp32. Between the two kernels the hidden layer [M, F] is rounded to the dtype.
Bytes: (2·M·D + 3·D·F) · itemsize, and 2·M·F more for the hidden layer. Flops: 6·M·D·F.
Gate and up in one kernel: a tile of x is moved once for both and kept in two accumulators, and silu(gate) · up happens
in registers, so that neither of the two [M, F] products is ever written. The second kernel is the product with w_down.
Tiles are moved by the Tensor Memory Accelerator straight to where wgmma reads them. The programs are as many as fit on
the GPU and walk over tiles; the loop over tiles and the one over depth are pipelined as one, so that the loads of the
next tile run while the last one is stored. Tiles are walked in groups of GROUP rows, which share operands in the L2.
The TMA asks for rows that begin at multiples of 16 bytes; other operands are copied to such rows first.
Another GPU should revisit all constants: tiles and stages follow its shared memory, SKINNY_* its memory latency.
"""

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
GROUP = 8  # tune: 1, 4, 8, 16, 32 | rows of tiles that are walked together
FLATTEN = True  # tune: True, False | pipeline the loops over tiles and over depth as one
SKINNY_BN = 32  # tune: 16, 32, 64 | columns of a tile where rows are few
SKINNY_BK = 128  # tune: 64, 128, 256 | depth of a step there
SKINNY_STAGES = 4  # tune: 3, 4, 5 | steps that are in shared memory at once there
FP32_BM = 64  # tune: 32, 64, 128 | rows of a tile in float32, which has no tensor cores
FP32_BN = 32  # tune: 32, 64 | columns of a tile in float32
FP32_BK = 16  # tune: 8, 16, 32 | depth of a step in float32


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
            gate = tl.dot(x, w_gate.T, gate, input_precision="ieee")
            up = tl.dot(x, w_up.T, up, input_precision="ieee")
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
            sums = tl.dot(h, w.T, sums, input_precision="ieee")
        if Y_TMA:
            y.store([row, column], sums.to(y.dtype))
        else:  # rows that do not begin at multiples of 16 bytes
            rows, columns = row + tl.arange(0, BM)[:, None], column + tl.arange(0, BN)[None, :]
            inside = (rows < m) & (columns < n)
            tl.store(y + rows.to(tl.int64) * n + columns, sums.to(y.dtype.element_ty), mask=inside)


def aligned(t):
    """(a matrix whose rows the TMA can read, whether it is the transpose of ``t``): a view where that is possible."""
    for view, turned in ((t, False), (t.t(), True)):
        step, unit = view.stride()
        if unit == 1 and step >= view.shape[1] and step * t.element_size() % 16 == 0 and t.data_ptr() % 16 == 0:
            return view, turned
    padding = 16 // t.element_size()
    rows = torch.empty((t.shape[0], triton.cdiv(t.shape[1], padding) * padding), dtype=t.dtype, device=t.device)
    return rows[:, : t.shape[1]].copy_(t), False


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


def tiling(m, n, dtype, sms, large):
    """(BM, BN, BK, warps, stages, programs on an SM) for a product of [m, n]; ``large`` where that fills the GPU."""
    if dtype == torch.float32:
        return min(FP32_BM, max(16, triton.next_power_of_2(m))), FP32_BN, FP32_BK, 4, 2, 4
    if m <= 64:
        return max(16, triton.next_power_of_2(m)), SKINNY_BN, SKINNY_BK, 4, SKINNY_STAGES, 4
    if triton.cdiv(m, large[0]) * triton.cdiv(n, large[1]) >= sms:
        return large
    return 64, 64, 64, 4, 4, 2


def kernel_fn(x, w_gate, w_up, w_down):
    m, width = x.shape
    hidden = w_gate.shape[0]
    y = torch.empty((m, width), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    sms = multiprocessors(x.device)
    # Rows of the hidden layer begin at multiples of 16 bytes, whatever its width: both kernels may use the TMA.
    padding = 16 // x.element_size()
    h = torch.empty((m, triton.cdiv(hidden, padding) * padding), dtype=x.dtype, device=x.device)[:, :hidden]

    large = (GATE_BM, GATE_BN, GATE_BK, GATE_WARPS, GATE_STAGES, 1)
    bm, bn, bk, warps, stages, programs = tiling(m, hidden, x.dtype, sms, large)
    x_desc, x_turned = described(x, bm, bk)
    gate_desc, gate_turned = described(w_gate, bn, bk)
    up_desc, up_turned = described(w_up, bn, bk)
    gate_up_kernel[(min(triton.cdiv(m, bm) * triton.cdiv(hidden, bn), sms * programs),)](
        x_desc, gate_desc, up_desc, TensorDescriptor(h, h.shape, h.stride(), [bm, bn]), m, hidden, width,
        BM=bm, BN=bn, BK=bk, GROUP=GROUP, X_TURNED=x_turned, GATE_TURNED=gate_turned, UP_TURNED=up_turned,
        FLATTEN=FLATTEN, num_warps=warps, num_stages=stages,
    )  # fmt: skip

    large = (DOWN_BM, DOWN_BN, DOWN_BK, DOWN_WARPS, DOWN_STAGES, 1)
    bm, bn, bk, warps, stages, programs = tiling(m, width, x.dtype, sms, large)
    w_desc, w_turned = described(w_down, bn, bk)
    y_tma = width * y.element_size() % 16 == 0
    out = TensorDescriptor(y, y.shape, y.stride(), [bm, bn]) if y_tma else y
    down_kernel[(min(triton.cdiv(m, bm) * triton.cdiv(width, bn), sms * programs),)](
        TensorDescriptor(h, h.shape, h.stride(), [bm, bk]), w_desc, out, m, width, hidden,
        BM=bm, BN=bn, BK=bk, GROUP=GROUP, W_TURNED=w_turned, Y_TMA=y_tma, FLATTEN=FLATTEN,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return y
