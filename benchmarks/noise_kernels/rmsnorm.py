"""RMSNorm that can be told to waste a share of its work: x [R, C], weight [C] -> [R, C]. For noise.py; no starter.

One program a row. EXTRA more programs, in percent of the rows, do rows that others do, too.
"""

import torch
import triton
import triton.language as tl

KERNEL_TYPE = "rmsnorm"
BACKEND = "triton"

EXTRA = 0.0


@triton.jit
def row_kernel(x_ptr, weight_ptr, y_ptr, rows, columns, x_stride, eps, BLOCK: tl.constexpr):
    row = (tl.program_id(0) % rows).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x, axis=0) / columns + eps) * weight
    tl.store(y_ptr + row * columns + column, y.to(y_ptr.dtype.element_ty), mask=inside)


def kernel_fn(x, weight, eps=1e-6):
    rows, columns = x.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    y = torch.empty((rows, columns), dtype=x.dtype, device=x.device)
    if y.numel():
        block = triton.next_power_of_2(columns)
        row_kernel[(rows + round(rows * EXTRA / 100),)](
            x, weight.contiguous(), y, rows, columns, x.stride(0), eps,
            BLOCK=block, num_warps=max(1, min(16, block // 512)),
        )  # fmt: skip
    return y
