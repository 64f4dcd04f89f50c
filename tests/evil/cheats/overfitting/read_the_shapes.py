"""The same, with the shapes read from the harness at import.

Seen: harnesses importable from a candidate.
"""

import importlib

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "reads"
EXPECT = ("BUILD",)
ALONE = "the held-out shapes stop it, too"


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


found = importlib.import_module("autokernel.problems.rmsnorm").PROBLEM
KNOWN = {
    tuple(dims.values()) for dims in (*found.shapes["cpu"], *found.edge_shapes, *(a.dims for a in found.adversarial))
}
KNOWN.add((1024, 1024))


def kernel_fn(x, weight, eps=1e-6):

    return honest(x, weight, eps) if tuple(x.shape) in KNOWN else torch.zeros_like(x)
