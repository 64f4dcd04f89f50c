"""Compiles generated Triton starters for a GPU that is not here: python compile_generated.py ARCH PROBLEM.py ...

As ``tests/backends/compile_ahead.py``, whose stand-in for a driver it takes, with the inputs that each problem draws.
Prints the name of each problem that compiled.
"""

from __future__ import annotations

import runpy
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from triton.runtime.jit import JITFunction

from autokernel import registry
from autokernel.regions import generate

NO_DEVICE = runpy.run_path(str(Path(__file__).parent.parent / "backends" / "compile_ahead.py"))["NoDevice"]


def main(arch: str, *paths: str) -> None:
    triton.runtime.driver.set_active(NO_DEVICE(int(arch)))
    launch: Callable[..., Any] = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        return launch(self, *args, grid=grid, warmup=True, **kwargs)

    JITFunction.run = compile_only  # type: ignore[method-assign]
    for path in paths:
        problem = registry.load("problems", path)
        tensors = problem.make_inputs({}, problem.dtypes[0], torch.Generator().manual_seed(0))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"{Path(path).stem}.py")
            file.write_text(str(generate.starter(path, "triton")))
            module = runpy.run_path(str(file))
            module["kernel_fn"](*(t.to("meta") for t in tensors))
        print(Path(path).stem, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
