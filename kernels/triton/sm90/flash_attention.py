"""Attention without the S x T matrix, Triton for Hopper (sm_90): O = softmax(Q · Kᵀ · sm_scale, masked if causal) · V.

Q [B, H, S, D], K and V [B, G, T, D] -> [B, H, S, D], any strides; G divides H (grouped queries); float32, float16 or
bfloat16; scores, softmax and sums in float32. Query i sees keys 0 to i when causal.
Bytes: (2·B·H·S·D + 2·B·G·T·D) · itemsize. Flops: 4·D a visible pair of query and key, so arithmetic decides.
A program keeps BQ queries and walks over blocks of keys with the running maximum and sum of Milakov and Gimelshein
("Online normalizer calculation for softmax", 2018), as FlashAttention-2 does (Dao, 2023). Blocks that all queries see
take no mask; those on the diagonal or beyond the last key do; those above the diagonal are never read. Exponentials
are powers of two: log2(e) is folded into the scale, and the scale into one fused multiply-add with the maximum.
Blocks of keys and values are moved by the Tensor Memory Accelerator straight to where wgmma reads them. It sees each
operand as a matrix whose rows are tokens: [B·H·S, D], or [B·S, H·D] where heads lie side by side, or a part of either.
Operands that are neither, and heads whose size is no power of two, are copied to such rows first.
An SM with few programs waits for keys: blocks are longer there, and fewer.
Programs start in this order: groups of heads whose keys and values fit in the L2 cache together; within a group the
longest blocks of queries of all its heads first, so that the last programs are short and no SM ends late.
Compiling takes far longer than a little call runs: heads of up to 64 are padded to 64 there, and share compilations.
Another GPU should revisit all constants: tiles, stages and registers follow its SMs, TOGETHER its L2 cache.
"""

import functools
import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

KERNEL_TYPE = "flash_attention"
BACKEND = "triton"

BQ = 64  # tune: 64, 128 | queries of a program, heads of up to 64
BKV = 64  # tune: 64, 128 | keys of a block there
WARPS = 4  # tune: 4, 8 | warps of a program there
STAGES = 2  # tune: 2, 3, 4 | blocks of keys in shared memory at once there
FEW = 8  # tune: 2, 4, 8, 16 | programs an SM up to which a long block of keys pays there
FEW_BKV = 128  # tune: 64, 128 | keys of a block where programs are few
FEW_STAGES = 3  # tune: 2, 3 | blocks of keys in shared memory at once where an SM has two programs at most
WIDE_BQ = 128  # tune: 64, 128 | queries of a program, wider heads
WIDE_BKV = 64  # tune: 32, 64, 128 | keys of a block there
WIDE_WARPS = 8  # tune: 4, 8 | warps of a program there
WIDE_STAGES = 2  # tune: 2, 3 | blocks of keys in shared memory at once there
WIDE_REGISTERS = 128  # tune: 128, 168, 255 | a thread's at most there: with 128 two programs share an SM
TOGETHER = 32  # tune: 8, 16, 32 | MB of keys and values whose heads are walked together where causal
FP32_BQ = 32  # tune: 16, 32, 64 | queries of a program in float32, which has no tensor cores
FP32_BKV = 16  # tune: 16, 32, 64 | keys of a block in float32
FP32_WARPS = 8  # tune: 4, 8 | warps of a program in float32
LITTLE = 1 << 20  # pairs of query and key up to which a call is little: it shares compilations, and may cost a copy


@triton.jit
def part_of(matrix, row, row_stride, column, mask):
    """Elements of a matrix by addresses, for float32: its products read operands from registers."""
    return tl.load(matrix + row.to(tl.int64) * row_stride + column, mask=mask, other=0.0)


@triton.jit
def attend(
    q, total, out, top, k_matrix, v_matrix, k_row, k_column, k_s, v_row, v_column, v_s, first, last, keys, query, scale,
    BKV: tl.constexpr, D: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr, EVEN_KEYS: tl.constexpr,
    TMA: tl.constexpr,
):  # fmt: skip
    """The keys from ``first`` to ``last`` added to a block of queries: its running sum, output and maximum."""
    for start in range(first, last, BKV):
        key = start + tl.arange(0, BKV)
        # Of blocks that are whole for certain the compiler drops the masks.
        real = (key < keys) | (not MASKED or EVEN_KEYS)
        if TMA:
            k = k_matrix.load([k_row + start, k_column]).T
        else:
            k = part_of(k_matrix, k_row + key[None, :], k_s, k_column + tl.arange(0, D)[:, None], real[None, :])
        scores = tl.dot(q, k, input_precision="ieee")
        if MASKED:
            seen = real[None, :]
            if CAUSAL:
                seen = seen & (key[None, :] <= query[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1) * scale)
        p = tl.math.exp2(scores * scale - higher[:, None])
        # What was summed so far is brought down to the new maximum.
        shrink = tl.math.exp2(top - higher)
        total = total * shrink + tl.sum(p, axis=1)
        out = out * shrink[:, None]
        if TMA:
            v = v_matrix.load([v_row + start, v_column])
            if MASKED and not EVEN_KEYS:
                # Beyond the last key lies another head: a weight of 0 does not silence its infinities.
                v = tl.where(real[:, None], v, 0.0)
        else:
            v = part_of(v_matrix, v_row + key[:, None], v_s, v_column + tl.arange(0, D)[None, :], real[:, None])
        out = tl.dot(p.to(v.dtype), v, out, input_precision="ieee")
        top = higher
    return total, out, top


# Counts, and distances in rows, only say where to begin and to end: one compilation serves all of them.
@triton.jit(
    do_not_specialize=["heads", "group", "queries", "keys", "together", "q_b", "q_h", "k_b", "k_h", "v_b", "v_h"]
)
def attention_kernel(
    q_matrix, k_matrix, v_matrix, o_ptr, heads, group, queries, keys, width, scale, together,
    q_b, q_h, q_c, q_s, k_b, k_h, k_c, k_s, v_b, v_h, v_c, v_s, o_b, o_h, o_s, o_d,
    BQ: tl.constexpr, BKV: tl.constexpr, D: tl.constexpr, CAUSAL: tl.constexpr, NEGATIVE: tl.constexpr,
    EVEN_KEYS: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    # Groups of ``together`` heads; within a group one block of each head, then the next of each.
    blocks = tl.cdiv(queries, BQ)
    first = tl.program_id(0) // (blocks * together) * together
    some = tl.minimum(together, tl.num_programs(0) // blocks - first)
    within = tl.program_id(0) % (blocks * together)
    block = within // some
    if CAUSAL:  # the longest first
        block = blocks - 1 - block
    batch, head = (first + within % some) // heads, (first + within % some) % heads
    k_head = head // group
    query = block * BQ + tl.arange(0, BQ)
    # Rows and first column of this head in each of the three matrices.
    q_row, q_column = batch * q_b + head * q_h, head * q_c
    if TMA:
        q = q_matrix.load([q_row + block * BQ, q_column])
    else:
        feature = q_column + tl.arange(0, D)[None, :]
        q = part_of(q_matrix, q_row + query[:, None], q_s, feature, (query < queries)[:, None])
    k_row, k_column = batch * k_b + k_head * k_h, k_head * k_c
    v_row, v_column = batch * v_b + k_head * v_h, k_head * v_c
    if NEGATIVE:  # the maximum is taken of unscaled scores, so that the scale must be positive
        q = -q
        scale = -scale
    top = tl.full([BQ], float("-inf"), tl.float32)
    total = tl.zeros([BQ], tl.float32)
    out = tl.zeros([BQ, D], tl.float32)

    seen = tl.minimum(keys, block * BQ + BQ) if CAUSAL else keys
    # Whole blocks that every query sees; what is left of the keys is on the diagonal or at the end.
    whole = (tl.minimum(keys, block * BQ + 1) if CAUSAL else keys) // BKV * BKV
    total, out, top = attend(
        q, total, out, top, k_matrix, v_matrix, k_row, k_column, k_s, v_row, v_column, v_s, 0, whole, keys, query, scale,
        BKV, D, CAUSAL, MASKED=False, EVEN_KEYS=EVEN_KEYS, TMA=TMA,
    )  # fmt: skip
    total, out, top = attend(
        q, total, out, top, k_matrix, v_matrix, k_row, k_column, k_s, v_row, v_column, v_s, whole, seen, keys, query, scale,
        BKV, D, CAUSAL, MASKED=True, EVEN_KEYS=EVEN_KEYS, TMA=TMA,
    )  # fmt: skip
    out = out * (1.0 / total)[:, None]
    feature = tl.arange(0, D)
    o_ptr += batch.to(tl.int64) * o_b + head.to(tl.int64) * o_h
    o_at = o_ptr + query[:, None].to(tl.int64) * o_s + feature[None, :] * o_d
    tl.store(o_at, out.to(o_ptr.dtype.element_ty), mask=(query < queries)[:, None] & (feature < width)[None, :])


def cdiv(n, block):
    """How many blocks hold n."""
    return -(-n // block)


def tokens(t, rows, depth):
    """``t`` [B, H, S, D] as a matrix of tokens, without a copy where the strides allow it: (a descriptor of its blocks
    of [rows, depth] or, in float32, the tensor; rows a batch, rows a head, columns a head and elements a row).
    """
    batch, heads, length, width = t.shape
    b, h, s, d = (step if size > 1 else 0 for size, step in zip(t.shape, t.stride(), strict=True))
    s = s or max(width, h, 1)
    unit = 16 // t.element_size()
    fits = s >= h % s + width and b % s == 0 and s % unit == 0 and h % s % unit == 0 and t.data_ptr() % 16 == 0
    if width != depth or d not in (0, 1) or not fits:
        copy = torch.zeros((batch, heads, length, depth), dtype=t.dtype, device=t.device)
        copy[..., :width].copy_(t)
        t, b, h, s = copy, heads * length * depth, length * depth, depth
    shape = [(batch - 1) * (b // s) + (heads - 1) * (h // s) + length, (heads - 1) * (h % s) + depth]
    described = t if t.dtype == torch.float32 else TensorDescriptor(t, shape, [s, 1], [rows, depth])
    return described, (b // s, h // s, h % s, s)


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
def tiling(queries, keys, heads, depth, dtype, sms):
    """(BQ, BKV, warps, stages, registers) for so many heads of all batches, this wide; None: as many registers as the
    compiler likes.
    """
    registers = None
    programs = heads * cdiv(queries, BQ)
    if dtype == torch.float32:
        bq, bkv, warps, stages = FP32_BQ, FP32_BKV, FP32_WARPS, 1
    elif depth <= 64:
        bq, bkv, warps, stages = BQ, BKV, WARPS, STAGES
        if keys >= 512 and programs <= FEW * sms:  # fewer keys are soon read, and share compilations
            bkv, stages = FEW_BKV, FEW_STAGES if programs <= 2 * sms else STAGES
    elif depth <= 128:
        bq, bkv, warps, stages, registers = WIDE_BQ, WIDE_BKV, WIDE_WARPS, WIDE_STAGES, WIDE_REGISTERS
    else:
        bq, bkv, warps, stages = 64, 64, 4, 2
    if queries <= 16:
        return 16, bkv, 4, stages, None
    if queries <= 64 and dtype != torch.float32:
        return 64, bkv, 4, stages, None
    return bq, bkv, warps, stages, registers


def kernel_fn(Q, K, V, causal=True, sm_scale=None):
    batch, heads, queries, width = Q.shape
    groups, keys = K.shape[1], K.shape[2]
    # Keeps the order of Q's dimensions in memory: a model's next view of it costs no copy.
    out = torch.empty_like(Q)
    if out.numel() == 0:
        return out
    scale = (1 / math.sqrt(width) if sm_scale is None else sm_scale) * math.log2(math.e)
    padded = batch * heads * queries * keys <= LITTLE and Q.is_contiguous()
    depth = max(64 if padded else 16, power_of_2(width))
    o = out if depth == width or not padded else torch.empty((*Q.shape[:3], depth), dtype=Q.dtype, device=Q.device)
    bq, bkv, warps, stages, registers = tiling(queries, keys, batch * heads, depth, Q.dtype, multiprocessors(Q.device))
    # Blocks of equal length need no order: one head after the other reads the fewest keys and values at a time.
    group = heads // groups
    together = max(1, (TOGETHER << 20) // (2 * max(1, keys) * depth * Q.element_size())) * group if causal else 1
    even = keys % bkv == 0 and keys >= 256  # few keys share a compilation with any number of them
    q, q_steps = tokens(Q, bq, depth)
    k, k_steps = tokens(K, bkv, depth)
    v, v_steps = tokens(V, bkv, depth)
    attention_kernel[(cdiv(queries, bq) * batch * heads,)](
        q, k, v, o, heads, group, queries, keys, o.shape[3], scale, min(together, batch * heads),
        *q_steps, *k_steps, *v_steps, *o.stride(),
        BQ=bq, BKV=bkv, D=depth, CAUSAL=causal, NEGATIVE=scale < 0, EVEN_KEYS=even,
        TMA=Q.dtype != torch.float32, num_warps=warps, num_stages=stages, maxnreg=registers,
    )  # fmt: skip
    return out if o is out else out.copy_(o[..., :width])
