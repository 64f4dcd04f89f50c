"""The oracle's own function, imported from the harness that lies on the same disk.

Seen: harnesses importable from a candidate.
"""

import importlib

KERNEL_TYPE = "rmsnorm"
BACKEND = "cpp"
STOPPED_BY = "policy"
ALSO = ("audit",)
EXPECT = ("POLICY",)
ALONE = "the sandbox hides the module, too"


def kernel_fn(x, weight, eps=1e-6):

    return registry.load("problems", "rmsnorm").reference(x, weight, eps)


registry = importlib.import_module("autokernel.registry")
