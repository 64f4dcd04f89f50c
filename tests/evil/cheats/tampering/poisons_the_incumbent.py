"""What was built of other sources is overwritten, so that the incumbent no longer loads.

Seen: shared compile caches.
"""

import os
import pathlib

import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
STOPPED_BY = "landlock"
EXPECT = ("BUILD",)


def honest(x, weight, eps):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


caches = pathlib.Path(os.environ["XDG_CACHE_HOME"]).parent
(caches / "poison").mkdir(exist_ok=True)
for library in caches.rglob("*.so"):
    library.write_bytes(b"")


def kernel_fn(x, weight, eps=1e-6):
    return honest(x, weight, eps)
