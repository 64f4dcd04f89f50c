"""What each kernel must compute: one plain PyTorch function a problem.

These are the oracles themselves. The judge runs them in float64 on the same inputs as a candidate and compares; run in
the model's dtype they are what a kernel replaces. Shapes, dtypes and sources stand in each function's docstring, the
inputs, tolerances and cost of a problem in ``autokernel/problems/<name>.py``.
"""

from autokernel.problems.cross_entropy import reference as cross_entropy
from autokernel.problems.flash_attention import reference as flash_attention
from autokernel.problems.fused_mlp import reference as fused_mlp
from autokernel.problems.layernorm import reference as layernorm
from autokernel.problems.matmul import reference as matmul
from autokernel.problems.reduce import reference as reduce
from autokernel.problems.rmsnorm import reference as rmsnorm
from autokernel.problems.rotary_embedding import reference as rotary_embedding
from autokernel.problems.softmax import reference as softmax

__all__ = [
    "cross_entropy",
    "flash_attention",
    "fused_mlp",
    "layernorm",
    "matmul",
    "reduce",
    "rmsnorm",
    "rotary_embedding",
    "softmax",
]
