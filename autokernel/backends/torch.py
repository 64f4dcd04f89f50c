"""Plain PyTorch in the file: for tests, and for problems that have no starter in another backend."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path

from autokernel.backends._policy import refusal
from autokernel.extension import Missing

GUIDE = """
- Plain PyTorch, any operation, on the CPU or a GPU. There is no kernel to write, only operations to choose: fewer
  passes over memory, the fused library call in place of a chain, views in place of copies.
- Count what a line does: each elementwise operation reads and writes whole tensors; `a * b + c` is two passes
  unless compiled; `.float()` and `.to()` copy when the dtype changes; boolean masks, `where` with a scalar tensor
  and indexing allocate. `torch.compile(dynamic=True)` on a function fuses elementwise chains and reductions; the
  first call of a new shape may compile, and some shapes of the sweep come once only: without dynamic=True that
  costs seconds each, and TIMEOUT.
- On a small workload Python and dispatch cost more than the work: some 2 to 5 µs an operation on a CPU, 5 to 10 on
  a GPU. Fewer operations, no temporary views in a loop.
- Inputs must come back unchanged: in-place operations only on what this call has allocated. No global switches
  (TF32, default dtype, number of threads).
- Statistics in fp32 for half-precision inputs, as the oracle does; library calls already do so.
- This backend cannot beat the best library call by much; a file in a language of its own (triton, cuda, cpp) can.
"""


class TorchBackend:
    name = "torch"
    imports = frozenset({"__future__", "math", "torch", "typing"})
    devices = ("cpu", "cuda")
    aten: frozenset[str] | None = None  # any operation

    def missing(self) -> Sequence[Missing]:
        return ()

    def environment(self, cache: str) -> dict[str, str]:
        return {"TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor"}

    def check(self, tree: ast.Module) -> str | None:
        return refusal(tree, self.imports, torch_names=None)

    def evidence(self, cache: Path) -> Mapping[str, Mapping[str, float]]:
        del cache  # nothing is reported there
        return {}


BACKEND = TorchBackend()
