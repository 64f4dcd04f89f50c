# mypy: disable-error-code="untyped-decorator,no-untyped-def"
"""The smallest kernel there is: compiled once, so that Triton's compiler has loaded all that it loads at first use."""

import triton
import triton.language as tl


@triton.jit
def copy_kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + offset, tl.load(x_ptr + offset, mask=offset < n), mask=offset < n)
