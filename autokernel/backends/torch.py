"""Plain PyTorch in the file: for tests, and for problems that have no starter in another backend."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path

from autokernel.backends._policy import refusal
from autokernel.extension import Missing


class TorchBackend:
    name = "torch"
    imports = frozenset({"__future__", "math", "torch", "typing"})
    devices = ("cpu", "cuda")
    aten: frozenset[str] | None = None  # any operation

    def missing(self) -> Sequence[Missing]:
        return ()

    def environment(self, cache: str) -> dict[str, str]:
        return {"TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor", "TORCHINDUCTOR_COMPILE_THREADS": "1"}

    def check(self, tree: ast.Module) -> str | None:
        return refusal(tree, self.imports, torch_names=None)

    def evidence(self, cache: Path) -> Mapping[str, Mapping[str, float]]:
        del cache  # nothing is reported there
        return {}


BACKEND = TorchBackend()
