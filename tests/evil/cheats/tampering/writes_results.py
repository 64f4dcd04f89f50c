"""Rows are written into the results and the folder of the judge, beside honest work.

Seen: harnesses that run with the user's rights.
"""

import pathlib

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "landlock"
EXPECT = ("BUILD",)


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


for folder in (pathlib.Path.cwd().parent, pathlib.Path.cwd().parent.parent):
    (folder / "results.tsv").write_text("1\tPASS\t100x\n")


def kernel_fn(x, weight, eps=1e-6):
    return honest(x, weight, eps)
