"""What every problem file shares: dtypes, random tensors, byte counts."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from autokernel.types import DType, Tolerance

TORCH_DTYPES: Mapping[DType, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
ELEMENT_BYTES: Mapping[DType, int] = {"fp32": 4, "fp16": 2, "bf16": 2}

# For sums of many rounded products: a few units in the last place of each dtype.
LOOSE: Mapping[DType, Tolerance] = {
    "fp16": Tolerance(1e-2, 1e-2),
    "bf16": Tolerance(2e-2, 2e-2),
    "fp32": Tolerance(1e-4, 1e-4),
}
# For ops whose output is one rounding away from exact: normalisations and rotations.
TIGHT: Mapping[DType, Tolerance] = {
    "fp16": Tolerance(1e-3, 1e-3),
    "bf16": Tolerance(2e-3, 2e-3),
    "fp32": Tolerance(1e-5, 1e-5),
}


def randn(
    shape: tuple[int, ...], dtype: DType, generator: torch.Generator, scale: float = 1.0, mean: float = 0.0
) -> torch.Tensor:
    """Normal random tensor on the CPU: drawn in float32, then rounded to ``dtype``."""
    return (torch.randn(shape, generator=generator) * scale + mean).to(TORCH_DTYPES[dtype])


def nbytes(dtype: DType, *shapes: tuple[int, ...]) -> int:
    """Bytes of contiguous tensors of these shapes in this dtype, each counted once."""
    return ELEMENT_BYTES[dtype] * sum(math.prod(shape) for shape in shapes)
