"""A product that can be told to waste a share of its work: A [M, K], B [K, N] -> [M, N]. For noise.py; no starter.

One program a tile. EXTRA is in percent of the steps along K: every program takes the whole steps of it, and of the
rest so many programs take one, past the end of K, where the operands count as zeros.
"""

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "matmul"
BACKEND = "triton"

EXTRA = 0.0


@triton.jit
def tile_kernel(
    a_ptr, b_ptr, c_ptr, m, n, k, am, ak, bk, bn, whole, part,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    tiles_m, tiles_n = tl.cdiv(m, BM), tl.cdiv(n, BN)
    first = tile // (GROUP * tiles_n) * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    row = (first + tile % (GROUP * tiles_n) % height) * BM + tl.arange(0, BM)
    column = tile % (GROUP * tiles_n) // height * BN + tl.arange(0, BN)
    depth = tl.arange(0, BK)
    a = a_ptr + row.to(tl.int64)[:, None] * am + depth[None, :] * ak
    b = b_ptr + depth.to(tl.int64)[:, None] * bk + column[None, :] * bn
    sums = tl.zeros([BM, BN], tl.float32)
    steps = tl.cdiv(k, BK) + whole + (tile % 100 < part).to(tl.int32)
    for step in range(steps):
        left = k - step * BK
        x = tl.load(a + step * BK * ak, mask=(row < m)[:, None] & (depth < left)[None, :], other=0.0)
        y = tl.load(b + step * BK * bk, mask=(depth < left)[:, None] & (column < n)[None, :], other=0.0)
        sums = tl.dot(x, y, sums, input_precision="ieee")
    inside = (row < m)[:, None] & (column < n)[None, :]
    c = c_ptr + row.to(tl.int64)[:, None] * n + column[None, :]
    tl.store(c, sums.to(c_ptr.dtype.element_ty), mask=inside)


def kernel_fn(A, B):
    m, k = A.shape
    n = B.shape[1]
    c = torch.empty((m, n), dtype=A.dtype, device=A.device)
    if c.numel() == 0 or k == 0:
        return c.zero_()
    bm, bn, bk, warps, stages = (64, 64, 16, 4, 2) if A.dtype == torch.float32 else (128, 256, 64, 8, 3)
    extra = EXTRA / 100 * triton.cdiv(k, bk)
    tile_kernel[(triton.cdiv(m, bm) * triton.cdiv(n, bn),)](
        A, B, c, m, n, k, *A.stride(), *B.stride(), int(extra), round(100 * (extra % 1)),
        BM=bm, BN=bn, BK=bk, GROUP=8, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return c
