"""A script that stands for a tool of the CUDA toolkit: it runs the calls for real, on the CPU, and writes to its log
what the tool's manual says that the tool writes. The tools need a GPU: tests/evaluate/test_tools_gpu.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

from autokernel.types import Measurements, Status, Verdict

KERNEL = """
import torch
KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"
def kernel_fn(x, weight, eps=1e-6):
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)
"""
TOOL = """#!{python}
import subprocess, sys
at = sys.argv.index("--log-file")
program = sys.argv.index({python!r}, at)
open(sys.argv[at + 1], "w").write({words!r})
done = subprocess.run(sys.argv[program:])
sys.exit(done.returncode or {status})
"""
PASS = Verdict(Status.PASS, "done", "", measurements=Measurements(10.0, {}, None, {"R4xC8_fp32": 10.0}, 1.0))


def tool(folder: Path, words: str, status: int = 0) -> str:
    """An executable that does as a tool does."""
    path = folder / "tool"
    path.write_text(TOOL.format(python=sys.executable, words=words, status=status))
    path.chmod(0o755)
    return str(path)
