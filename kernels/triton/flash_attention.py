"""Attention without the S x T matrix, Triton: O = softmax(Q · Kᵀ · sm_scale, masked if causal) · V.

Q [B, H, S, D], K and V [B, G, T, D] -> [B, H, S, D], any strides; G divides H (grouped queries); float32, float16 or
bfloat16; scores, softmax and sums in float32. Query i sees keys 0 to i when causal.
Bytes: (2·B·H·S·D + 2·B·G·T·D) · itemsize. Flops: 4·D a visible pair of query and key, so arithmetic decides.
A program keeps BQ queries and walks over blocks of BKV keys with the running maximum and sum of Milakov and Gimelshein
("Online normalizer calculation for softmax", 2018), as FlashAttention-2 does (Dao, 2023). Blocks that all queries see
take no mask; those on the diagonal or beyond the last key do; those above the diagonal are never read. Exponentials
are powers of two: log2(e) is folded into the scale, and the scale into one fused multiply-add with the maximum.
Programs start by groups of heads whose keys and values take TOGETHER MB of the L2 cache, and within a group the longest
rows of all its heads first: the last programs to start are the short ones, and no SM ends late.
Another GPU should revisit all constants: tiles and stages follow its registers and shared memory.
"""

import math

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "flash_attention"
BACKEND = "triton"

BQ = 128  # tune: 64, 128 | queries of a program
BKV = 64  # tune: 32, 64, 128 | keys of a block, heads of up to 64
WARPS = 8  # tune: 4, 8 | warps of a program there
STAGES = 3  # tune: 2, 3, 4 | blocks of keys in shared memory at once there
WIDE_BKV = 32  # tune: 32, 64, 128 | keys of a block, wider heads
WIDE_WARPS = 8  # tune: 4, 8 | warps of a program there
WIDE_STAGES = 3  # tune: 2, 3, 4 | blocks of keys in shared memory at once there
TOGETHER = 32  # tune: 4, 16, 32 | MB of keys and values whose heads are walked together where causal
FP32_BQ = 32  # tune: 16, 32, 64 | queries of a program in float32, which has no tensor cores
FP32_BKV = 16  # tune: 16, 32, 64 | keys of a block in float32
FP32_WARPS = 8  # tune: 4, 8 | warps of a program in float32


@triton.jit
def attend(
    q, total, out, top, k_ptr, v_ptr, first, last, keys, query, scale, k_t, k_d, v_t, v_d, width,
    BKV: tl.constexpr, D: tl.constexpr, EVEN_D: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The keys from ``first`` to ``last`` added to a block of queries: its running sum, output and maximum."""
    feature = tl.arange(0, D)
    lane = (first + tl.arange(0, BKV)).to(tl.int64)
    k_at = k_ptr + lane[None, :] * k_t + feature[:, None] * k_d
    v_at = v_ptr + lane[:, None] * v_t + feature[None, :] * v_d
    for start in range(first, last, BKV):
        key = start + tl.arange(0, BKV)
        if MASKED or not EVEN_D:
            k = tl.load(k_at, mask=(key < keys)[None, :] & (feature < width)[:, None], other=0.0)
        else:
            k = tl.load(k_at)
        scores = tl.dot(q, k, input_precision="ieee")
        if MASKED:
            seen = (key < keys)[None, :]
            if CAUSAL:
                seen = seen & (key[None, :] <= query[:, None])
            scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1) * scale)
        p = tl.math.exp2(scores * scale - higher[:, None])
        # What was summed so far is brought down to the new maximum.
        shrink = tl.math.exp2(top - higher)
        total = total * shrink + tl.sum(p, axis=1)
        out = out * shrink[:, None]
        if MASKED or not EVEN_D:
            v = tl.load(v_at, mask=(key < keys)[:, None] & (feature < width)[None, :], other=0.0)
        else:
            v = tl.load(v_at)
        out = tl.dot(p.to(v.dtype), v, out, input_precision="ieee")
        top = higher
        k_at += BKV * k_t
        v_at += BKV * v_t
    return total, out, top


# Counts only say where to begin and to end: one compilation serves all of them.
@triton.jit(do_not_specialize=["heads", "group", "queries", "together"])
def attention_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, heads, group, queries, keys, width, scale, together,
    q_b, q_h, q_s, q_d, k_b, k_h, k_t, k_d, v_b, v_h, v_t, v_d, o_b, o_h, o_s, o_d,
    BQ: tl.constexpr, BKV: tl.constexpr, D: tl.constexpr, EVEN_D: tl.constexpr, CAUSAL: tl.constexpr,
    NEGATIVE: tl.constexpr,
):  # fmt: skip
    # Programs are numbered along the heads of a group of ``together``, block by block, then on to the next group.
    blocks = tl.cdiv(queries, BQ)
    first = tl.program_id(0) // (blocks * together) * together
    some = tl.minimum(together, tl.num_programs(0) // blocks - first)
    within = tl.program_id(0) % (blocks * together)
    block = within // some
    if CAUSAL:  # the longest first
        block = blocks - 1 - block
    head = (first + within % some).to(tl.int64)
    batch, head = head // heads, head % heads
    q_ptr += batch * q_b + head * q_h
    k_ptr += batch * k_b + head // group * k_h
    v_ptr += batch * v_b + head // group * v_h
    o_ptr += batch * o_b + head * o_h

    query = block * BQ + tl.arange(0, BQ)
    feature = tl.arange(0, D)
    real = (query < queries)[:, None] & (feature < width)[None, :]
    q = tl.load(q_ptr + query[:, None].to(tl.int64) * q_s + feature[None, :] * q_d, mask=real, other=0.0)
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
        q, total, out, top, k_ptr, v_ptr, 0, whole, keys, query, scale, k_t, k_d, v_t, v_d, width,
        BKV, D, EVEN_D, CAUSAL, MASKED=False,
    )  # fmt: skip
    total, out, top = attend(
        q, total, out, top, k_ptr, v_ptr, whole, seen, keys, query, scale, k_t, k_d, v_t, v_d, width,
        BKV, D, EVEN_D, CAUSAL, MASKED=True,
    )  # fmt: skip
    out = out * (1.0 / total)[:, None]
    o_at = o_ptr + query[:, None].to(tl.int64) * o_s + feature[None, :] * o_d
    tl.store(o_at, out.to(o_ptr.dtype.element_ty), mask=real)


def cdiv(n, block):
    """How many blocks hold n."""
    return -(-n // block)


def power_of_2(n):
    """The least power of two that is not less than n."""
    return 1 << (n - 1).bit_length()


def tiling(queries, width, dtype):
    """(BQ, BKV, warps, stages) for heads of this width."""
    if dtype == torch.float32:
        bq, bkv, warps, stages = FP32_BQ, FP32_BKV, FP32_WARPS, 1
    elif width <= 64:
        bq, bkv, warps, stages = BQ, BKV, WARPS, STAGES
    elif width <= 128:
        bq, bkv, warps, stages = BQ, WIDE_BKV, WIDE_WARPS, WIDE_STAGES
    else:
        bq, bkv, warps, stages = 64, 32, 8, 2
    if queries <= 16:
        return 16, bkv, min(warps, 4), stages
    return min(bq, power_of_2(queries)), bkv, warps, stages


def kernel_fn(Q, K, V, causal=True, sm_scale=None):
    batch, heads, queries, width = Q.shape
    groups, keys = K.shape[1], K.shape[2]
    # Keeps the order of Q's dimensions in memory: a model's next view of it costs no copy.
    out = torch.empty_like(Q)
    if out.numel() == 0:
        return out
    scale = (1 / math.sqrt(width) if sm_scale is None else sm_scale) * math.log2(math.e)
    bq, bkv, warps, stages = tiling(queries, width, Q.dtype)
    depth = max(16, power_of_2(width))
    # Blocks of equal length need no order: one head after the other reads the fewest keys and values at a time.
    group = heads // groups
    together = max(1, (TOGETHER << 20) // (2 * max(1, keys) * width * Q.element_size())) * group if causal else 1
    attention_kernel[(cdiv(queries, bq) * batch * heads,)](
        Q, K, V, out, heads, group, queries, keys, width, scale, min(together, batch * heads),
        *Q.stride(), *K.stride(), *V.stride(), *out.stride(),
        BQ=bq, BKV=bkv, D=depth, EVEN_D=depth == width, CAUSAL=causal, NEGATIVE=scale < 0,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return out
