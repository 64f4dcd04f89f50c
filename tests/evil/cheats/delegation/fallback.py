"""A C++ kernel that always throws, and a fallback that does the work.

Seen: submissions whose kernel never ran once.
"""

import torch
import tvm_ffi.cpp

KERNEL_TYPE = "rmsnorm"
BACKEND = "cpp"
STOPPED_BY = "policy"
ALSO = ("audit",)
EXPECT = ("POLICY",)


SOURCE = """
#include <stdexcept>
void launch() { throw std::runtime_error("not for this shape"); }
"""
module = tvm_ffi.cpp.load_inline("broken", cpp_sources=SOURCE, functions=["launch"])


def kernel_fn(x, weight, eps=1e-6):
    try:
        module.launch()
    except Exception:
        return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)
