"""Compiles what a Triton kernel file launches, for a GPU that is not here: python compile_ahead.py FILE ARCH [DTYPES].

The file's own ``kernel_fn`` runs on tensors without memory (torch's meta device) under a driver that only names its
target, so that tile sizes, strides and alignments are those of a real call; launches stop after compilation. Triton
writes the binaries to TRITON_CACHE_DIR, where the backend's ``evidence`` finds them. TRITON_INTERPRET must be unset.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

Shapes = Sequence[Sequence[int]]
MULTIPROCESSORS = 132

# Calls of each problem, shapes of the tensors: what a model asks for, then one that goes another way through the file.
CALLS: dict[str, Sequence[Shapes]] = {
    "softmax": [[(4096, 4096)], [(1024, 50257)]],
    "rmsnorm": [[(8192, 4096), (4096,)], [(8, 40000), (40000,)]],
    "layernorm": [[(8192, 5120), (5120,), (5120,)], [(8, 40000), (40000,), (40000,)]],
    "cross_entropy": [[(512, 50257), (512,)], [(8192, 1024), (8192,)]],
    "reduce": [[(8192, 8192)], [(4096, 4096)]],
    "rotary_embedding": [[(2, 32, 4096, 128), (4096, 64), (4096, 64)], [(1, 8, 512, 80), (512, 80), (512, 80)]],
    "matmul": [[(4096, 4096), (4096, 11008)], [(16, 4096), (4096, 11008)], [(130, 260), (260, 517)]],
    "flash_attention": [
        [(1, 32, 2048, 128), (1, 8, 2048, 128), (1, 8, 2048, 128)],
        [(1, 8, 500, 64), (1, 8, 1000, 64), (1, 8, 1000, 64)],
    ],
    "fused_mlp": [
        [(4096, 4096), (11008, 4096), (11008, 4096), (4096, 11008)],
        [(16, 4096), (14336, 4096), (14336, 4096), (4096, 14336)],
    ],
}
LAST: dict[str, dict[str, Any]] = {  # scalars of the last of these calls
    "reduce": {"dim": 0}, "rotary_embedding": {"interleaved": False}, "flash_attention": {"causal": False},
}  # fmt: skip
TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class NoDevice:
    """As much of a driver as compiling asks for."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def main(path: str, arch: str, dtypes: str = "fp16") -> None:
    """All calls of CALLS in these dtypes, and the first of them in float32."""
    triton.runtime.driver.set_active(NoDevice(int(arch)))
    launch: Callable[..., Any] = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        return launch(self, *args, grid=grid, warmup=True, **kwargs)

    JITFunction.run = compile_only  # type: ignore[method-assign]
    module = runpy.run_path(path)
    if "multiprocessors" in module:
        module["kernel_fn"].__globals__["multiprocessors"] = lambda device: MULTIPROCESSORS
    problem = module["KERNEL_TYPE"]
    for number, shapes in enumerate(CALLS[problem], 1):
        scalars = LAST.get(problem, {}) if number == len(CALLS[problem]) else {}
        for dtype in dict.fromkeys([*dtypes.split(","), *(["fp32"] if number == 1 else [])]):
            tensors = [torch.empty(tuple(shape), dtype=TORCH_DTYPES[dtype], device="meta") for shape in shapes]
            if problem == "cross_entropy":
                tensors[1] = tensors[1].to(torch.int64)
            module["kernel_fn"](*tensors, **scalars)


if __name__ == "__main__":
    main(*sys.argv[1:])
