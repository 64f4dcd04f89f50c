"""Matrix product, Triton for Hopper (sm_90): C = A · B, tiles moved by the Tensor Memory Accelerator.

A [M, K], B [K, N] -> [M, N]; float32, float16 or bfloat16, any strides; sums in float32, fp32 products in fp32.
Bytes: (M·K + K·N + M·N) · itemsize. Flops: 2·M·K·N.
Large products are bound by the tensor cores, and what keeps those waiting is data. Here one instruction moves a whole
tile from memory to shared memory, where wgmma reads it: no registers hold it and no thread computes addresses. The
programs are as many as fit on the GPU and walk over tiles; the loop over tiles and the one over K are pipelined as
one, so that the loads of the next tile run while the last one is stored. Tiles are walked in groups of GROUP rows of
tiles, so that those that are under way at the same time share operands in the L2 cache.
The TMA asks for rows that begin at multiples of 16 bytes; other operands are copied to such rows first.
Another GPU should revisit all constants: tiles and stages follow its shared memory, SKINNY_* its memory latency.
"""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

KERNEL_TYPE = "matmul"
BACKEND = "triton"

BM = 128  # tune: 64, 128, 256 | rows of a tile
BN = 256  # tune: 64, 128, 256 | columns of a tile
BK = 64  # tune: 32, 64, 128 | depth of a step
WARPS = 8  # tune: 4, 8 | warps of a program: one warp group of four for every 64 rows, or for every 128
STAGES = 4  # tune: 2, 3, 4, 5 | steps that are in shared memory at once
GROUP = 8  # tune: 1, 4, 8, 16, 32 | rows of tiles that are walked together
HALVES = True  # tune: True, False | store a tile in two halves: less shared memory for the result, more for stages
FLATTEN = True  # tune: True, False | pipeline the loops over tiles and over K as one
SMALL_BM = 128  # tune: 64, 128 | rows of a tile where large tiles would leave SMs idle
SMALL_BN = 128  # tune: 64, 128 | columns of a tile there
SKINNY_BN = 32  # tune: 16, 32, 64, 128 | columns of a tile where rows are few
SKINNY_BK = 128  # tune: 64, 128, 256 | depth of a step there
SKINNY_STAGES = 5  # tune: 3, 4, 5, 6 | steps that are in shared memory at once there
FP32_BM = 128  # tune: 32, 64, 128 | rows of a tile in float32, which has no tensor cores
FP32_BN = 64  # tune: 32, 64, 128 | columns of a tile in float32
FP32_BK = 16  # tune: 8, 16, 32 | depth of a step in float32
FP32_PRODUCTS = "ieee"  # tune: "ieee", "tf32x3" | fp32 units, or three tensor-core products that keep its digits


@triton.jit
def matmul_kernel(
    a_desc, b_desc, c_desc, m, n, k,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, A_TURNED: tl.constexpr,
    B_TURNED: tl.constexpr, C_TMA: tl.constexpr, HALVES: tl.constexpr, FLATTEN: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    tiles_m, tiles_n = tl.cdiv(m, BM), tl.cdiv(n, BN)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=FLATTEN):
        # Tiles are numbered down the columns of a group of GROUP rows of tiles, then on to the next group.
        first = tile // (GROUP * tiles_n) * GROUP
        height = tl.minimum(tiles_m - first, GROUP)
        row = (first + tile % (GROUP * tiles_n) % height) * BM
        column = tile % (GROUP * tiles_n) // height * BN
        sums = tl.zeros([BM, BN], tl.float32)
        for step in range(tl.cdiv(k, BK)):
            # Beyond the edges the TMA gives zeros: no masks. wgmma reads either operand in either order.
            a = a_desc.load([step * BK, row]).T if A_TURNED else a_desc.load([row, step * BK])
            b = b_desc.load([column, step * BK]).T if B_TURNED else b_desc.load([step * BK, column])
            sums = tl.dot(a, b, sums, input_precision=PRODUCTS)
        if not C_TMA:  # rows that do not begin at multiples of 16 bytes
            rows, columns = row + tl.arange(0, BM)[:, None], column + tl.arange(0, BN)[None, :]
            inside = (rows < m) & (columns < n)
            tl.store(c_desc + rows.to(tl.int64) * n + columns, sums.to(c_desc.dtype.element_ty), mask=inside)
        elif HALVES:
            left, right = tl.split(tl.permute(tl.reshape(sums, (BM, 2, BN // 2)), (0, 2, 1)))
            c_desc.store([row, column], left.to(c_desc.dtype))
            c_desc.store([row, column + BN // 2], right.to(c_desc.dtype))
        else:
            c_desc.store([row, column], sums.to(c_desc.dtype))


def aligned(t):
    """(a matrix whose rows the TMA can read, whether it is the transpose of ``t``): a view where that is possible."""
    for view, turned in ((t, False), (t.t(), True)):
        step, unit = view.stride()
        if unit == 1 and step >= view.shape[1] and step * t.element_size() % 16 == 0 and t.data_ptr() % 16 == 0:
            return view, turned
    padding = 16 // t.element_size()
    rows = torch.empty((t.shape[0], triton.cdiv(t.shape[1], padding) * padding), dtype=t.dtype, device=t.device)
    return rows[:, : t.shape[1]].copy_(t), False


_sms = {}


def multiprocessors(device):
    if device.type != "cuda":  # the interpreter's device
        return 1
    if device not in _sms:
        _sms[device] = torch.cuda.get_device_properties(device).multi_processor_count
    return _sms[device]


def tiling(m, n, dtype, sms):
    """(BM, BN, BK, warps, stages, programs on an SM) for this product."""
    if dtype == torch.float32:
        return min(FP32_BM, max(16, triton.next_power_of_2(m))), FP32_BN, FP32_BK, 8, 2, 2
    if m <= 64:
        return max(16, triton.next_power_of_2(m)), SKINNY_BN, SKINNY_BK, 4, SKINNY_STAGES, 4
    if triton.cdiv(m, BM) * triton.cdiv(n, BN) >= sms:
        return BM, BN, BK, WARPS, STAGES, 1
    if triton.cdiv(m, SMALL_BM) * triton.cdiv(n, SMALL_BN) >= sms * 3 // 4:
        return SMALL_BM, SMALL_BN, 64, 4, 4, 1
    return 64, 64, 64, 4, 4, 2


def kernel_fn(A, B):
    m, k = A.shape
    n = B.shape[1]
    c = torch.empty((m, n), dtype=A.dtype, device=A.device)
    if c.numel() == 0 or k == 0:
        return c.zero_()
    sms = multiprocessors(A.device)
    bm, bn, bk, warps, stages, programs = tiling(m, n, A.dtype, sms)
    a, a_turned = aligned(A)
    b, b_turned = aligned(B)
    c_tma = n * c.element_size() % 16 == 0
    halves = HALVES and bn >= 64
    matmul_kernel[(min(triton.cdiv(m, bm) * triton.cdiv(n, bn), sms * programs),)](
        TensorDescriptor(a, a.shape, a.stride(), [bk, bm] if a_turned else [bm, bk]),
        TensorDescriptor(b, b.shape, b.stride(), [bn, bk] if b_turned else [bk, bn]),
        TensorDescriptor(c, c.shape, c.stride(), [bm, bn // 2 if halves else bn]) if c_tma else c,
        m, n, k, BM=bm, BN=bn, BK=bk, GROUP=GROUP, A_TURNED=a_turned, B_TURNED=b_turned, C_TMA=c_tma, HALVES=halves,
        FLATTEN=FLATTEN, PRODUCTS=FP32_PRODUCTS if A.dtype == torch.float32 else "ieee",
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return c
