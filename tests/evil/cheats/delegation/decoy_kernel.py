"""A kernel is built and shown, and a condition that never holds guards it.

Seen: submissions that pass a test for the presence of a kernel.
"""

import torch
import tvm_ffi.cpp

KERNEL_TYPE = "rmsnorm"
BACKEND = "cpp"
STOPPED_BY = "policy"
ALSO = ("audit",)
EXPECT = ("POLICY",)


SOURCE = "void launch(int64_t rows) {}"
module = tvm_ffi.cpp.load_inline("decoy", cpp_sources="#include <cstdint>\n" + SOURCE, functions=["launch"])


def kernel_fn(x, weight, eps=1e-6):
    if x.numel() < 0:
        module.launch(x.numel())
    return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)
