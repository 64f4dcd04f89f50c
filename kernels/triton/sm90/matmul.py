"""Matrix product, Triton for Hopper (sm_90): C = A · B, tiles moved by the Tensor Memory Accelerator.

A [M, K], B [K, N] -> [M, N]; float32, float16 or bfloat16, any strides; sums in float32, fp32 products in fp32.
Bytes: (M·K + K·N + M·N) · itemsize. Flops: 2·M·K·N.
Large products are bound by the tensor cores, and what keeps those waiting is data. Here one instruction moves a whole
tile from memory to shared memory, where wgmma reads it: no registers hold it and no thread computes addresses. The
programs are as many as fit on the GPU and walk over tiles; the loop over tiles and the one over K are pipelined as
one, so that the loads of the next tile run while the last one is stored. Tiles are walked in groups of GROUP rows of
tiles, so that those that are under way at the same time share operands in the L2 cache.
The TMA asks for rows that begin at multiples of 16 bytes; other operands are copied to such rows first. And each
matrix must be described to it, which takes the host longer than a small product takes the GPU: those, and float32,
go through pointers. How large a tile
is: the larger, the less is read twice, but the SM that gets most tiles ends last. Of the smaller two an SM holds two
programs or more, and one works while another starts or stores; programs of the largest walk.
Products of few rows are bound by reading B: every SM must read, and much be in flight. A few rows take narrow tiles
and deep steps; a single one and more than 32 gain from wider tiles, whose lines of B are whole cache lines, with the
sum over K in parts that a second kernel adds up.
Another GPU should revisit all constants: tiles and stages follow its shared memory, SKINNY_* its memory latency.
"""

import functools

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
GROUP = 16  # tune: 1, 4, 8, 16, 32 | rows of tiles that are walked together
HALVES = True  # tune: True, False | store a tile in two halves: less shared memory for the result, more for stages
FLATTEN = True  # tune: True, False | pipeline the loops over tiles and over K as one
BUSY = 0.8  # tune: 0.7, 0.8, 0.9 | least share of the SMs' time that tiles of this size have to fill
MIDDLE_BM = 128  # tune: 64, 128 | rows of a tile where they would not
MIDDLE_BN = 128  # tune: 64, 128 | columns of a tile there
MIDDLE_STAGES = 3  # tune: 2, 3, 4 | steps that are in shared memory at once there: with 3, two programs share an SM
LITTLE_BM = 64  # tune: 64, 128 | rows of a tile where there are at most two of these an SM
LITTLE_BN = 128  # tune: 64, 128 | columns of a tile there
LITTLE_STAGES = 4  # tune: 3, 4, 5 | steps that are in shared memory at once there
TMA_FROM = 1  # tune: 1, 4, 16, 64 | billions (2^30) of products above which the TMA moves the tiles
SKINNY_BN = 32  # tune: 16, 32, 64, 128 | columns of a tile where rows are few
SKINNY_BK = 256  # tune: 64, 128, 256 | depth of a step there
SKINNY_STAGES = 4  # tune: 3, 4, 5, 6 | steps that are in shared memory at once there
ROW_BN = 128  # tune: 64, 128 | columns of a tile of one row
ROW_PARTS = 4  # tune: 1, 2, 4, 8 | parts of its sum over K
SOME_PARTS = 2  # tune: 1, 2, 4 | parts of the sum over K for 33 to 64 rows
MORE_PARTS = 4  # tune: 1, 2, 4 | for 65 to 128 rows and a long sum, at most
FP32_BM = 128  # tune: 32, 64, 128 | rows of a tile in float32, which has no tensor cores
FP32_BN = 64  # tune: 32, 64, 128 | columns of a tile in float32
FP32_BK = 16  # tune: 8, 16, 32 | depth of a step in float32
FP32_WARPS = 8  # tune: 4, 8 | warps of a program in float32
ODD = 1 << 23  # products of operands whose rows begin anywhere, up to which they are not worth a compilation each
FP32_PRODUCTS = "ieee"  # tune: "ieee", "tf32x3" | fp32 units, or three tensor-core products that keep its digits


@triton.jit
def corner_of(tile, m, n, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr):
    """Tiles are numbered down the columns of a group of GROUP rows of tiles, then on to the next group."""
    tiles_m, tiles_n = tl.cdiv(m, BM), tl.cdiv(n, BN)
    first = tile // (GROUP * tiles_n) * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    return (first + tile % (GROUP * tiles_n) % height) * BM, tile % (GROUP * tiles_n) // height * BN


@triton.jit
def matmul_tile(
    tile, a_desc, b_desc, c_desc, m, n, k,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, A_TURNED: tl.constexpr,
    B_TURNED: tl.constexpr, C_TMA: tl.constexpr, HALVES: tl.constexpr,
):  # fmt: skip
    row, column = corner_of(tile, m, n, BM, BN, GROUP)
    sums = tl.zeros([BM, BN], tl.float32)
    for step in range(tl.cdiv(k, BK)):
        # Beyond the edges the TMA gives zeros: no masks. wgmma reads either operand in either order.
        a = a_desc.load([step * BK, row]).T if A_TURNED else a_desc.load([row, step * BK])
        b = b_desc.load([column, step * BK]).T if B_TURNED else b_desc.load([step * BK, column])
        sums = tl.dot(a, b, sums)
    if not C_TMA:
        rows, columns = row + tl.arange(0, BM)[:, None], column + tl.arange(0, BN)[None, :]
        inside = (rows < m) & (columns < n)
        tl.store(c_desc + rows.to(tl.int64) * n + columns, sums.to(c_desc.dtype.element_ty), mask=inside)
    elif HALVES:
        left, right = tl.split(tl.permute(tl.reshape(sums, (BM, 2, BN // 2)), (0, 2, 1)))
        c_desc.store([row, column], left.to(c_desc.dtype))
        c_desc.store([row, column + BN // 2], right.to(c_desc.dtype))
    else:
        c_desc.store([row, column], sums.to(c_desc.dtype))


@triton.jit
def matmul_kernel(
    a_desc, b_desc, c_desc, m, n, k,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, A_TURNED: tl.constexpr,
    B_TURNED: tl.constexpr, WALKS: tl.constexpr, HALVES: tl.constexpr, FLATTEN: tl.constexpr,
):  # fmt: skip
    """One tile a program, stored through pointers; or programs that walk over tiles, stored by the TMA."""
    if WALKS:
        tiles = tl.cdiv(m, BM) * tl.cdiv(n, BN)
        for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=FLATTEN):
            matmul_tile(tile, a_desc, b_desc, c_desc, m, n, k, BM, BN, BK, GROUP, A_TURNED, B_TURNED, True, HALVES)
    else:
        matmul_tile(
            tl.program_id(0), a_desc, b_desc, c_desc, m, n, k, BM, BN, BK, GROUP, A_TURNED, B_TURNED, False, False
        )


@triton.jit
def small_kernel(
    a_ptr, b_ptr, c_ptr, m, n, k, a_m, a_k, b_k, b_n,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, EVEN_K: tl.constexpr,
    PRODUCTS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One tile a program, or one of PARTS of its sum over K, read through pointers."""
    first_row, first_column = corner_of(tl.program_id(0), m, n, BM, BN, GROUP)
    begin, end = 0, k
    if PARTS > 1:
        depth = tl.cdiv(tl.cdiv(k, BK), PARTS) * BK
        begin = tl.program_id(1) * depth
        end = tl.minimum(k, begin + depth)
        a_ptr += begin.to(tl.int64) * a_k
        b_ptr += begin.to(tl.int64) * b_k
        c_ptr += tl.program_id(1) * m * n
    # Rows and columns beyond the edge wrap around to real ones: their loads need no mask, and nobody stores them.
    row = ((first_row + tl.arange(0, BM)) % m).to(tl.int64)
    column = ((first_column + tl.arange(0, BN)) % n).to(tl.int64)
    step = tl.arange(0, BK)
    a_at = a_ptr + row[:, None] * a_m + step[None, :] * a_k
    b_at = b_ptr + step[:, None] * b_k + column[None, :] * b_n
    sums = tl.zeros([BM, BN], tl.float32)
    for start in range(begin, end, BK):
        if EVEN_K:
            a, b = tl.load(a_at), tl.load(b_at)
        else:
            a = tl.load(a_at, mask=start + step[None, :] < k, other=0.0)
            b = tl.load(b_at, mask=start + step[:, None] < k, other=0.0)
        sums = tl.dot(a, b, sums, input_precision=PRODUCTS)
        a_at += BK * a_k
        b_at += BK * b_k
    row = first_row + tl.arange(0, BM)
    column = first_column + tl.arange(0, BN)
    c_at = c_ptr + row[:, None].to(tl.int64) * n + column[None, :]
    tl.store(c_at, sums.to(c_ptr.dtype.element_ty), mask=(row < m)[:, None] & (column < n)[None, :])


@triton.jit(do_not_specialize=["m", "n", "k", "a_m", "a_k", "b_k", "b_n"])
def odd_kernel(a_ptr, b_ptr, c_ptr, m, n, k, a_m, a_k, b_k, b_n, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """The same for any sizes and strides, compiled once: element by element, with all masks."""
    small_kernel(
        a_ptr, b_ptr, c_ptr, m, n, k, a_m, a_k, b_k, b_n, BM, BN, BK, GROUP=1, EVEN_K=False, PRODUCTS="ieee", PARTS=1
    )


@triton.jit
def add_kernel(parts_ptr, c_ptr, size, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for part in tl.static_range(PARTS):
        total += tl.load(parts_ptr + part * size + at, mask=at < size, other=0.0)
    tl.store(c_ptr + at, total.to(c_ptr.dtype.element_ty), mask=at < size)


def cdiv(n, block):
    """How many blocks hold n."""
    return -(-n // block)


def power_of_2(n):
    """The least power of two that is not less than n."""
    return 1 << (n - 1).bit_length()


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


_sms = {}


def multiprocessors(device):
    if device.type != "cuda":  # the interpreter's device
        return 1
    if device not in _sms:
        _sms[device] = torch.cuda.get_device_properties(device).multi_processor_count
    return _sms[device]


@functools.lru_cache
def tiling(m, n, k, dtype, sms):
    """(BM, BN, BK, warps, stages, parts of the sum over K, whether the TMA moves the tiles) for this product. Kept: small
    ones wait for the host.
    """
    if dtype == torch.float32:
        return min(FP32_BM, max(16, power_of_2(m))), FP32_BN, FP32_BK, FP32_WARPS, 2, 1, False
    if m == 1:
        return 16, ROW_BN, 64, 4, 5, ROW_PARTS, False
    if m <= 32:
        return max(16, power_of_2(m)), SKINNY_BN, SKINNY_BK, 4, SKINNY_STAGES, 1, False
    if m <= 64:
        return 64, 64, 128, 4, 4, SOME_PARTS, False
    if m <= 128 and k >= 2048 and k % 64 == 0:
        return 128, 128, 64, 4, 4, max(1, min(MORE_PARTS, sms // cdiv(n, 128))), False
    tiles, little = cdiv(m, BM) * cdiv(n, BN), cdiv(m, LITTLE_BM) * cdiv(n, LITTLE_BN)
    # Where the last step is not whole, pointers have masks and read element by element.
    if m * n * k <= ((TMA_FROM << 30) if k % 64 == 0 else ODD):
        few = little < sms * 2 // 3
        return (64, 64, 64, 4, 4, 1, False) if few else (LITTLE_BM, LITTLE_BN, 64, 4, LITTLE_STAGES, 1, False)
    if little <= 2 * sms:
        return LITTLE_BM, LITTLE_BN, 64, 4, LITTLE_STAGES, 1, True
    if tiles >= BUSY * sms * cdiv(tiles, sms) and n % 8 == 0:  # other rows of C are not the TMA's to store
        return BM, BN, BK, WARPS, STAGES, 1, True
    return MIDDLE_BM, MIDDLE_BN, 64, 4, MIDDLE_STAGES, 1, True


def kernel_fn(A, B):
    m, k = A.shape
    n = B.shape[1]
    c = torch.empty((m, n), dtype=A.dtype, device=A.device)
    if c.numel() == 0 or k == 0:
        return c.zero_()
    if m * n * k <= ODD and (max(A.stride()) % 8 or max(B.stride()) % 8):
        odd_kernel[(cdiv(m, 32) * cdiv(n, 32),)](
            A, B, c, m, n, k, *A.stride(), *B.stride(), BM=32, BN=32, BK=32, num_warps=4, num_stages=1
        )
        return c
    sms = multiprocessors(A.device)
    bm, bn, bk, warps, stages, parts, tma = tiling(m, n, k, A.dtype, sms)
    tiles = cdiv(m, bm) * cdiv(n, bn)
    if not tma:
        out = c if parts == 1 else torch.empty((parts, m, n), dtype=torch.float32, device=A.device)
        small_kernel[(tiles, parts)](
            A, B, out, m, n, k, *A.stride(), *B.stride(), BM=bm, BN=bn, BK=bk, GROUP=GROUP, EVEN_K=k % bk == 0,
            PRODUCTS=FP32_PRODUCTS if A.dtype == torch.float32 else "ieee", PARTS=parts,
            num_warps=warps, num_stages=stages,
        )  # fmt: skip
        if parts > 1:
            add_kernel[(cdiv(m * n, 256),)](out, c, m * n, PARTS=parts, BLOCK=256, num_warps=2)
        return c
    a, a_turned = aligned(A)
    b, b_turned = aligned(B)
    # Large tiles are walked over: the next one's loads run while the last one is stored. Of others an SM holds several.
    walks = (bm, bn) == (BM, BN) and n % 8 == 0
    halves = HALVES and bn >= 64
    matmul_kernel[(min(sms, tiles) if walks else tiles,)](
        TensorDescriptor(a, a.shape, a.stride(), [bk, bm] if a_turned else [bm, bk]),
        TensorDescriptor(b, b.shape, b.stride(), [bn, bk] if b_turned else [bk, bn]),
        TensorDescriptor(c, c.shape, c.stride(), [bm, bn // 2 if halves else bn]) if walks else c,
        m, n, k, BM=bm, BN=bn, BK=bk, GROUP=GROUP, A_TURNED=a_turned, B_TURNED=b_turned, WALKS=walks, HALVES=halves,
        FLATTEN=FLATTEN, num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return c
