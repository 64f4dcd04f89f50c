"""C++ with OpenMP in a string of the file, built by ``tvm_ffi.cpp.load_inline`` with the machine's own compiler."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from autokernel.assets import cache_folder
from autokernel.backends._policy import TORCH_ALLOCATION, refusal
from autokernel.extension import Missing

# Parsing the binding's headers is most of a small kernel's build (1.3 s, of which 0.8 s here on a 2-core EPYC), so
# they are precompiled once for the flags that starters use. Other flags fall back to the headers as text.
FLAGS = "-std=c++17 -fPIC -O2 -O3 -march=native -fopenmp".split()
MORE_FLAGS: tuple[list[str], ...] = (
    [],
    ["-mprefer-vector-width=512"],
)  # of the starters' flags, the one that needs a variant of its own
HEADERS = """
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/dtype.h>
#include <tvm/ffi/error.h>
#include <tvm/ffi/extra/c_env_api.h>
#include <tvm/ffi/function.h>
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>
"""

GUIDE = """
- A file builds its source by `tvm_ffi.cpp.load_inline(name, cpp_sources=SOURCE, functions=["launch"],
  extra_cflags=[...])` when it is imported: 1 to 2 s with the headers tvm/ffi/container/tensor.h, algorithm, cmath,
  cstdint, cstring, limits, vector, which are precompiled for the starters' flags (-O3 or -O2, -march=native,
  -fopenmp). Templates that are instantiated for three dtypes triple the rest.
- A function takes `tvm::ffi::TensorView` (data_ptr(), size(i), stride(i), dtype(), ndim()) and plain numbers;
  strides are in elements. dtype().code is kDLFloat (bits 32 or 16) or kDLBfloat (bf16). Outputs are allocated in
  Python (`torch.empty`, `new_empty`) and passed in. `kernel_fn` may allocate, view, reshape, make contiguous, and
  nothing that computes.
- The compiler here may be as old as GCC 12: `#pragma omp simd`, `#pragma GCC unroll N` and vector types (`typedef
  float vec __attribute__((vector_size(64)))`) all work; `_Float16` arithmetic does not vectorise, so convert
  through bits. A pragma expands no macro: name constants as `constexpr int` and pass tunables by -D.
- Threads are OpenMP's, as many as the judge says and pinned; ask for no other number. All must be idle when the
  function returns. A parallel region costs 2 to 10 µs, and more where threads have gone to sleep: `if (work >
  GRAIN)`. Results must not depend on the number of threads or on timing: fixed chunks, sums in a fixed order, no
  `reduction` clause over floats across threads, no atomics.
- Allocate scratch once a call and aligned to 64 bytes (`operator new` with `std::align_val_t(64)`); large buffers
  that are allocated and freed in every call cost page faults. Never a static buffer that keeps results.
- -ffast-math breaks NaN and infinity; -fno-trapping-math and -fno-math-errno do not.
"""


class CppBackend:
    name = "cpp"
    imports = frozenset({"__future__", "math", "torch", "tvm_ffi"})
    devices = ("cpu",)
    aten: frozenset[str] | None = frozenset(
        "empty empty_like empty_strided zeros zeros_like zero_ fill_ full full_like new_empty resize_ as_strided view "
        "_unsafe_view reshape _reshape_alias alias transpose t permute unsqueeze squeeze slice select expand split "
        "chunk contiguous clone copy_ _to_copy to detach unfold".split()
    )

    def missing(self) -> Sequence[Missing]:
        needs = [
            Missing("a C++ compiler (c++)", "apt-get install g++") if not shutil.which(_compiler()) else None,
            Missing("ninja", "pip install ninja") if not shutil.which("ninja", path=_path()) else None,
        ]
        return [need for need in needs if need]

    def environment(self, cache: str) -> dict[str, str]:
        header = precompiled_header()
        compiler = f"{_compiler()} -include {header}" if header else _compiler()
        return {"TVM_FFI_CACHE_DIR": f"{cache}/tvm-ffi", "CXX": compiler, "PATH": _path()}

    def check(self, tree: ast.Module) -> str | None:
        return refusal(tree, self.imports, TORCH_ALLOCATION)

    def evidence(self, cache: Path) -> Mapping[str, Mapping[str, float]]:
        del cache  # nothing is reported there
        return {}


def _compiler() -> str:
    return os.environ.get("CXX", "c++").split()[0]


def _path() -> str:
    """PATH with the interpreter's own folder first: ninja lies there when the environment is not activated."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


@functools.cache
def precompiled_header() -> Path | None:
    """The header whose precompiled form lies beside it; built on first use, in about two seconds. None: no compiler."""
    compiler = shutil.which(_compiler())
    if compiler is None:
        return None
    from tvm_ffi.libinfo import find_dlpack_include_path, find_include_path

    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    target = subprocess.run(
        [compiler, "-march=native", "-Q", "--help=target"], capture_output=True, text=True, check=False
    ).stdout
    key = repr(
        (version, target, FLAGS, MORE_FLAGS, HEADERS, find_include_path(), importlib.metadata.version("apache-tvm-ffi"))
    )
    folder = cache_folder() / "pch" / hashlib.sha256(key.encode()).hexdigest()[:16]
    header = folder / "binding.h"
    variants = header.with_suffix(".h.gch")  # a folder: the compiler takes the first of its files that fits its flags
    if variants.is_dir():
        return header
    folder.mkdir(parents=True, exist_ok=True)
    header.write_text(HEADERS)
    scratch = Path(tempfile.mkdtemp(dir=folder))
    includes = [f"-I{find_include_path()}", f"-I{find_dlpack_include_path()}"]
    builds = [
        subprocess.Popen(
            [compiler, *FLAGS, *more, *includes, "-x", "c++-header", str(header), "-o", str(scratch / f"{index}.gch")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for index, more in enumerate(MORE_FLAGS)
    ]
    failed = [build.wait() for build in builds]  # wait for all of them
    if not any(failed):
        with contextlib.suppress(OSError):  # another process was first
            scratch.rename(variants)
    shutil.rmtree(scratch, ignore_errors=True)
    return header


BACKEND = CppBackend()
