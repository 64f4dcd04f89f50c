"""Matrix product, Triton: C = A · B.

A [M, K], B [K, N] -> [M, N]; float32, float16 or bfloat16, any strides; sums in float32, fp32 products in fp32.
Bytes: (M·K + K·N + M·N) · itemsize. Flops: 2·M·K·N.
Large products are bound by the tensor cores: a program multiplies a tile of BM x BN in steps of BK, loads for the next
STAGES - 1 steps under way while it multiplies. Programs walk the tiles in groups of GROUP rows of tiles, so that those
that run together share operands in the L2 cache. Products of few rows are bound by reading B: narrow tiles there, so
that every SM reads, and deep steps, so that much is in flight.
Another GPU should revisit all constants: tiles and stages follow its shared memory, SKINNY_* its memory latency.
"""

import functools

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "matmul"
BACKEND = "triton"

BM = 128  # tune: 64, 128, 256 | rows of a tile
BN = 256  # tune: 64, 128, 256 | columns of a tile
BK = 64  # tune: 32, 64, 128 | depth of a step
WARPS = 8  # tune: 4, 8 | warps of a program
STAGES = 3  # tune: 2, 3, 4, 5 | steps that are in shared memory at once
GROUP = 8  # tune: 1, 4, 8, 16, 32 | rows of tiles that are walked together
SKINNY_BN = 32  # tune: 16, 32, 64, 128 | columns of a tile where rows are few
SKINNY_BK = 256  # tune: 64, 128, 256 | depth of a step there
SKINNY_STAGES = 4  # tune: 3, 4, 5, 6 | steps that are in shared memory at once there
FP32_BM = 128  # tune: 32, 64, 128 | rows of a tile in float32, which has no tensor cores
FP32_BN = 64  # tune: 32, 64, 128 | columns of a tile in float32
FP32_BK = 16  # tune: 8, 16, 32 | depth of a step in float32
FP32_WARPS = 8  # tune: 4, 8 | warps of a program in float32
ODD = 1 << 23  # products of operands whose rows begin anywhere, up to which they are not worth a compilation each
FP32_PRODUCTS = "ieee"  # tune: "ieee", "tf32x3" | fp32 units, or three tensor-core products that keep its digits


@triton.jit
def matmul_kernel(
    a_ptr, b_ptr, c_ptr, m, n, k, a_m, a_k, b_k, b_n,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, EVEN_K: tl.constexpr,
    PRODUCTS: tl.constexpr,
):  # fmt: skip
    # Programs are numbered down the columns of a group of GROUP rows of tiles, then on to the next group.
    program = tl.program_id(0)
    tiles_m, tiles_n = tl.cdiv(m, BM), tl.cdiv(n, BN)
    group = program // (GROUP * tiles_n)
    first = group * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    tile_m = first + (program % (GROUP * tiles_n)) % height
    tile_n = (program % (GROUP * tiles_n)) // height

    # Rows and columns beyond the edge wrap around to real ones: their loads need no mask, and nobody stores them.
    row = ((tile_m * BM + tl.arange(0, BM)) % m).to(tl.int64)
    column = ((tile_n * BN + tl.arange(0, BN)) % n).to(tl.int64)
    step = tl.arange(0, BK)
    a_at = a_ptr + row[:, None] * a_m + step[None, :] * a_k
    b_at = b_ptr + step[:, None] * b_k + column[None, :] * b_n
    sums = tl.zeros([BM, BN], tl.float32)
    for start in range(0, k, BK):
        if EVEN_K:
            a, b = tl.load(a_at), tl.load(b_at)
        else:
            a = tl.load(a_at, mask=start + step[None, :] < k, other=0.0)
            b = tl.load(b_at, mask=start + step[:, None] < k, other=0.0)
        sums = tl.dot(a, b, sums, input_precision=PRODUCTS)
        a_at += BK * a_k
        b_at += BK * b_k

    row = tile_m * BM + tl.arange(0, BM)
    column = tile_n * BN + tl.arange(0, BN)
    c_at = c_ptr + row[:, None].to(tl.int64) * n + column[None, :]
    tl.store(c_at, sums.to(c_ptr.dtype.element_ty), mask=(row < m)[:, None] & (column < n)[None, :])


@triton.jit(do_not_specialize=["m", "n", "k", "a_m", "a_k", "b_k", "b_n"])
def odd_kernel(a_ptr, b_ptr, c_ptr, m, n, k, a_m, a_k, b_k, b_n, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    """The same for any sizes and strides, compiled once: element by element, with all masks."""
    matmul_kernel(a_ptr, b_ptr, c_ptr, m, n, k, a_m, a_k, b_k, b_n, BM, BN, BK, GROUP=1, EVEN_K=False, PRODUCTS="ieee")


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


@functools.lru_cache
def tiling(m, n, dtype, device):
    """(BM, BN, BK, warps, stages) for this product. Kept: small products wait for the host."""
    if dtype == torch.float32:
        return min(FP32_BM, max(16, power_of_2(m))), FP32_BN, FP32_BK, FP32_WARPS, 2
    if m <= 64:
        if m > 32:  # steps of so many rows fit the shared memory of smaller GPUs when they are half as deep
            return 64, SKINNY_BN, SKINNY_BK // 2, 4, SKINNY_STAGES + 1
        return max(16, power_of_2(m)), SKINNY_BN, SKINNY_BK, 4, SKINNY_STAGES
    if cdiv(m, BM) * cdiv(n, BN) >= multiprocessors(device) * 3 // 4:
        return BM, BN, BK, WARPS, STAGES
    # Large tiles would leave many SMs idle.
    if cdiv(m, 128) * cdiv(n, 128) >= multiprocessors(device) * 3 // 4:
        return 128, 128, 64, 4, 4
    return 64, 64, 32, 4, 5


def kernel_fn(A, B):
    m, k = A.shape
    n = B.shape[1]
    c = torch.empty((m, n), dtype=A.dtype, device=A.device)
    if c.numel() == 0:
        return c
    if m * n * k <= ODD and (max(A.stride()) % 8 or max(B.stride()) % 8):
        odd_kernel[(cdiv(m, 32) * cdiv(n, 32),)](
            A, B, c, m, n, k, *A.stride(), *B.stride(), BM=32, BN=32, BK=32, num_warps=4, num_stages=1
        )
        return c
    bm, bn, bk, warps, stages = tiling(m, n, A.dtype, A.device)
    matmul_kernel[(cdiv(m, bm) * cdiv(n, bn),)](
        A, B, c, m, n, k, *A.stride(), *B.stride(), BM=bm, BN=bn, BK=bk, GROUP=GROUP, EVEN_K=k % bk == 0,
        PRODUCTS=FP32_PRODUCTS if A.dtype == torch.float32 else "ieee", num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return c
