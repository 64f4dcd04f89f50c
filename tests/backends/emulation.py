"""A CUDA starter on the CPU: its source against cuda_on_cpu.h, through the C++ compiler, called with CPU tensors.

What is replaced in the source: the launch ``kernel<<<grid, block>>>(...)``, which only nvcc reads; the declaration of
dynamic shared memory; and the functions that are one PTX instruction, which the header has under the same names. All
else, the Python of the file included, runs as it is written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tvm_ffi.cpp

HEADER, HOPPER = (Path(__file__).with_name(name) for name in ("cuda_on_cpu.h", "hopper_on_cpu.h"))
FLAGS = (
    "-O1 -g0 -fno-gnu-unique -fvisibility=hidden -U_FORTIFY_SOURCE -Wno-unknown-pragmas -Wno-attributes "
    "-ffp-contract=off -include"
).split()

LAUNCH = re.compile(r"(\b\w+(?:<[^;<>]*>)?)<<<(.*?)>>>\((.*?)\);", re.DOTALL)
DYNAMIC_SHARED = re.compile(r"extern __shared__ (?:__align__\(\d+\) |alignas\(\d+\) )?(\w+) (\w+)\[\];")
PTX_FUNCTION = re.compile(
    r"^(?:template <[^\n{]*>\s)?__device__ inline [^\n;{]*\{[^\n}]*\n"  # the first line
    r"(?:(?!^\}).*\n)*?\s+asm volatile\(\"[\w{](?:.*\n)*?^\}\n",  # an instruction among the others; the last
    re.MULTILINE,
)

INSTRUCTION = re.compile(r"asm volatile\(\"(?:setmaxnreg|fence)[^)]*\);")  # without an effect that the emulation has


def as_cpp(cuda: str) -> str:
    """The C++ that a CUDA source becomes."""
    cpp = INSTRUCTION.sub(";", PTX_FUNCTION.sub("", cuda))
    cpp = cpp.replace('"+f"(', '"+m"(')  # an empty statement that only holds accesses in place
    cpp = DYNAMIC_SHARED.sub(r"\1* \2 = static_cast<\1*>(emulated::dynamic_shared());", cpp)
    return LAUNCH.sub(r"emulated::launch([=] { \1(\3); }, \2);", cpp)


def built(source: str, include: Path, shared_bytes: int = 227 << 10) -> SimpleNamespace:
    """The names of a kernel file that ran with its CUDA source built for the CPU. ``include``: the CUDA headers.
    ``shared_bytes``: what the device gives a block at most.
    """

    def load_inline(
        name: str, *, cuda_sources: str, functions: Sequence[str], extra_cuda_cflags: Sequence[str] = (), **_: Any
    ) -> Any:
        defines = [flag for flag in extra_cuda_cflags if flag.startswith("-D")]
        defines.append(f"-DEMULATED_SHARED_BYTES={shared_bytes}")
        return original(
            f"{name}_on_cpu",
            cpp_sources=as_cpp(cuda_sources),
            functions=functions,
            extra_cflags=[*FLAGS, str(HOPPER if "<cuda.h>" in cuda_sources else HEADER), *defines],
            extra_include_paths=[str(include)],
        )

    original = tvm_ffi.cpp.load_inline
    names: dict[str, Any] = {"__name__": "candidate"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tvm_ffi.cpp, "load_inline", load_inline)
        exec(compile(source, "candidate.py", "exec"), names)
    return SimpleNamespace(**names)
