"""CUDA C++ in a string of the file, built by ``tvm_ffi.cpp.load_inline`` with nvcc for the architecture of the device.

What the compiler made of a kernel (registers, stack, shared memory) is read from the machine code in the library that
was built, so that neither a log of the build nor a tool of the full CUDA toolkit (cuobjdump) is needed.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import math
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autokernel.backends import _light_nvcc
from autokernel.backends._occupancy import RESERVED_SHARED_BYTES, WARP, occupancy
from autokernel.backends._policy import TORCH_ALLOCATION, refusal
from autokernel.extension import Missing
from autokernel.types import AutokernelError

GUIDE = """\
CUDA C++ here: the file holds one source string, built by tvm_ffi.cpp.load_inline(cuda_sources=...) with nvcc for the
device's own architecture (sm_90a on Hopper). Exported functions take tvm::ffi::TensorView; kernel_fn allocates outputs
with torch.empty and does nothing else that computes. Launch on the stream that TVMFFIEnvGetStream gives.
- Count bytes first. A row kernel is done when it moves each byte once: 16 bytes a thread and access (uint4), coalesced
  across the warp, 4 or more independent loads in flight before the first is used, __ldcs / __stcs for what is touched
  once. Check alignment where it matters; rows of odd length start anywhere.
- Keep a row in registers between the passes over it (constant indices only: a run-time index moves the array to local
  memory). Several rows a block where rows are short; several blocks a row where rows are few and long.
- Reduce with __shfl_xor_sync inside a warp, then once through shared memory. No float atomics: results must repeat
  bit for bit. Sums in float32. A maximum that may be -inf, a row that is all -inf, a NaN: all are tested.
- fp32 problems are float32 arithmetic (FFMA), never TF32. --use_fast_math flushes denormals and breaks infinities.
- Products in half precision: tiles of shared memory filled by cp.async in 3 or 4 stages, swizzled so that ldmatrix hits
  all 32 banks, mma.sync with float32 accumulators. On Hopper wgmma with TMA and mbarriers, one producer warp; the
  compiler's report must show HGMMA's registers without a spill.
- Occupancy: registers a thread * threads a block against 65,536, shared memory a block against 227 KB on Hopper
  (cudaFuncSetAttribute above 48 KB). Spilled registers cost more than occupancy gives. A grid smaller than the number
  of multiprocessors leaves some idle: split rows, or the sum over k, and add the parts up in a fixed order.
- Indices that multiply by a stride are int64_t. Shapes: empty, 1, 1023, 4097, odd strides, every dtype of the file.
- Build time counts: few template instances, no torch headers, no thrust or cub unless it pays. Of tvm-ffi's headers
  TensorView, CUDADeviceGuard, TVM_FFI_CHECK (also _EQ to _GE), TVM_FFI_CHECK_CUDA_ERROR and numbers as parameters are
  quick; anything else of them (String, Tensor, Any, a std::string after <<) costs 2.5 s more."""

LIBRARIES = re.compile(
    r"\b((?:cublas|cudnn|cufft|cusparse|cusolver|cutlass|cute|thrust|nvrtc|cuModule|cuLibrary)\w*)\s*(?:::|\(|/)"
)


class CudaBackend:
    name = "cuda"
    imports = frozenset({"__future__", "math", "torch", "tvm_ffi"})
    devices = ("cuda",)
    guide = GUIDE
    aten: frozenset[str] | None = frozenset(
        "empty empty_like empty_strided zeros zeros_like zero_ fill_ full full_like new_empty resize_ as_strided view "
        "_unsafe_view reshape _reshape_alias alias transpose t permute unsqueeze squeeze slice select expand split "
        "chunk contiguous clone copy_ _to_copy to detach unfold".split()
    )

    def missing(self) -> Sequence[Missing]:
        nvcc = _nvcc()
        needs = [
            Missing(
                "the CUDA compiler (nvcc)",
                "install the CUDA toolkit of your driver's version, or set CUDA_HOME to where it lies",
            )
            if nvcc is None
            else None,
            Missing("a C++ compiler (c++), nvcc's host compiler", "apt-get install g++")
            if not shutil.which("c++")
            else None,
            Missing("ninja", "pip install ninja") if not shutil.which("ninja", path=_path(None)) else None,
        ]
        return [need for need in needs if need]

    def environment(self, cache: str) -> dict[str, str]:
        nvcc = _nvcc()
        # Machine code as it is, so that ``evidence`` can read it; the driver would inflate it at load anyway.
        flags = [*os.environ.get("NVCC_APPEND_FLAGS", "").split(), "-no-compress"]
        found = {
            "TVM_FFI_CACHE_DIR": f"{cache}/tvm-ffi",
            "TVM_FFI_GPU_BACKEND": "cuda",
            "PATH": _path(nvcc),
            "CUDA_CACHE_PATH": f"{cache}/driver",
        }
        if nvcc is not None:
            found["CUDA_HOME"] = str(_light_nvcc.toolkit(nvcc))
            flags += _light_nvcc.parallel_flags(nvcc)
        found["NVCC_APPEND_FLAGS"] = " ".join(flags)
        target = architecture()
        if target is not None:
            found["TVM_FFI_CUDA_ARCH_LIST"] = target
        return found

    def check(self, tree: ast.Module) -> str | None:
        refused = refusal(tree, self.imports, TORCH_ALLOCATION)
        if refused:
            return refused
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                library = LIBRARIES.search(node.value)
                if library:
                    name = library.group(1)
                    return (
                        f"line {node.lineno}: the embedded source uses {name}: the kernel's own code must do the work"
                    )
        return None

    def evidence(self, cache: Path) -> Mapping[str, Mapping[str, float]]:
        """What the compiler made of every kernel of the libraries built under ``cache``, by kernel name.

        registers (a thread), spill_bytes (the stack frame a thread: spilled registers, and arrays indexed at run time;
        0 is good), shared_bytes (static shared memory a block) and variants (template instances). Where the kernel has
        __launch_bounds__, also threads (the most of a block) and, where the SM is known, occupancy_at_bounds: resident
        warps over the SM's most, 0 to 1, of blocks that large and without dynamic shared memory, which only a launch
        knows. The figures are those of the instance that spills most, then uses most registers. What cannot be read is
        left out: the files were written by a candidate's process.
        """
        worst: dict[str, dict[str, float]] = {}
        variants: dict[str, int] = {}
        for library in sorted(Path(cache).rglob("*.so")):
            for mangled, figures in resources(_bytes_of(library)).items():
                name = _plain(mangled)
                variants[name] = variants.get(name, 0) + 1
                if name not in worst or _rank(figures) > _rank(worst[name]):
                    worst[name] = figures
        return {name: {**figures, "variants": variants[name]} for name, figures in sorted(worst.items())}


def architecture() -> str | None:
    """The device's architecture as tvm_ffi wants it: "8.0", "9.0a". $TVM_FFI_CUDA_ARCH_LIST when it is set; None
    without a GPU. From 9.0 on with the "a": wgmma, setmaxnreg and their successors exist only there.
    """
    chosen = os.environ.get("TVM_FFI_CUDA_ARCH_LIST")
    return chosen or _device_architecture()


@functools.cache
def _device_architecture() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    except subprocess.TimeoutExpired as error:
        raise AutokernelError(
            "expected nvidia-smi to name the GPU's architecture, and it did not answer in 30 s: set "
            "TVM_FFI_CUDA_ARCH_LIST (9.0a for an H100 or H200)"
        ) from error
    capability = re.match(r"(\d+)\.(\d+)\s*$", done.stdout.partition("\n")[0])
    if done.returncode or capability is None:
        return None
    return f"{capability[1]}.{capability[2]}" + ("a" if int(capability[1]) >= 9 else "")


def _nvcc() -> Path | None:
    """nvcc of CUDA_HOME or CUDA_PATH, else of the PATH, else where the toolkit's installer puts it: the first that has
    the toolkit's headers beside it (a script on the PATH that calls another has not).
    """
    found = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    homes += [str(Path(found).resolve().parent.parent)] if found else []
    for home in (*homes, "/usr/local/cuda"):
        if home and shutil.which("nvcc", path=f"{home}/bin") and (Path(home) / "include" / "cuda_runtime.h").is_file():
            return Path(home).resolve() / "bin" / "nvcc"
    return None


def _path(nvcc: Path | None) -> str:
    """PATH with the interpreter's own folder first (ninja lies there when the environment is not activated)."""
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    return os.pathsep.join(folders if nvcc is None else [*folders, str(nvcc.parent)])


# ------------------------------------------------------------------------------------------------- machine code

EM_CUDA = 190
ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
SECTION = struct.Struct("<IIQQQQIIQQ")
SYMBOL = struct.Struct("<IBBHQQ")
REGISTERS, FRAME_BYTES = 0x2F, 0x11  # attributes of .nv.info: (symbol, value) pairs
MOST_THREADS = 0x05  # of .nv.info.<kernel>, where it has __launch_bounds__: most threads of a block in x, y, z
WIDE_FLAGS_ABI = 8  # from this ABI on (CUDA 13) the second byte of an ELF's flags is the architecture, before the first
LIBRARY_BYTES = 256 << 20
MOST_BLOCK_THREADS = 1024
VALUE_FOLLOWS = 4  # an attribute's format whose value has a length of its own; others take four bytes in all


def resources(data: bytes) -> dict[str, dict[str, float]]:
    """Registers, stack, static shared memory and launch bounds of every kernel in an object or a library that nvcc
    wrote with ``-no-compress``. Source of the layout: the ELF specification; .nv.info as ``ptxas -v`` confirms it.
    """
    found: dict[str, dict[str, float]] = {}
    at = data.find(b"\x7fELF", 1)
    while at >= 0:
        header = ELF_HEADER.unpack_from(data, at) if at + ELF_HEADER.size <= len(data) else None
        if header is not None and header[2] == EM_CUDA:
            with contextlib.suppress(struct.error, IndexError, ValueError):  # no such thing after all
                found.update(_cubin(data, at, header))
        at = data.find(b"\x7fELF", at + 4)
    return found


def _cubin(data: bytes, base: int, header: tuple[Any, ...]) -> dict[str, dict[str, float]]:
    sections = [SECTION.unpack_from(data, base + header[6] + i * header[11]) for i in range(header[12])]

    def text(table: int, offset: int) -> str:
        start = base + sections[table][4] + offset
        return data[start : data.index(b"\0", start)].decode()

    named = {text(header[13], section[0]): section for section in sections}
    symbols = named.get(".symtab")
    if symbols is None or ".nv.info" not in named:
        return {}

    def info(section: str) -> Iterator[tuple[int, bytes]]:
        start, size = named[section][4:6]
        return _attributes(data[base + start :][:size])

    kernels: dict[str, dict[str, float]] = {}
    for attribute, value in info(".nv.info"):
        if attribute in (REGISTERS, FRAME_BYTES) and len(value) == 8:
            symbol, amount = struct.unpack("<II", value)
            entry = SYMBOL.unpack_from(data, base + symbols[4] + symbol * SYMBOL.size)
            name = text(symbols[6], entry[0])
            if name.startswith("$"):  # a helper of the compiler inside a kernel, which its kernel counts
                continue
            shared = named.get(f".nv.shared.{name}")
            kernel = kernels.setdefault(name, {"registers": 0, "spill_bytes": 0, "shared_bytes": 0})
            kernel["registers" if attribute == REGISTERS else "spill_bytes"] = amount
            reserved = RESERVED_SHARED_BYTES if ".nv.shared.reserved.0" in named else 0
            kernel["shared_bytes"] = max(0, shared[5] - reserved) if shared else 0
    arch = header[7] >> 8 & 0xFF if header[0][8] >= WIDE_FLAGS_ABI else header[7] & 0xFF
    for name, kernel in kernels.items():
        bounds = dict(info(f".nv.info.{name}")).get(MOST_THREADS, b"") if f".nv.info.{name}" in named else b""
        kernel.update(_at_bounds(arch, kernel, bounds))
    return kernels


def _at_bounds(arch: int, kernel: Mapping[str, float], bounds: bytes) -> dict[str, float]:
    """threads and occupancy_at_bounds, as far as they are known."""
    threads = math.prod(struct.unpack("<III", bounds)) if len(bounds) == 12 else 0
    if not (0 < threads <= MOST_BLOCK_THREADS and kernel["registers"] > 0):
        return {}
    share = occupancy(arch, int(kernel["registers"]), -(-threads // WARP), int(kernel["shared_bytes"]))
    return {"threads": threads} if share is None else {"threads": threads, "occupancy_at_bounds": share}


def _attributes(info: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(info):
        layout, attribute, length = struct.unpack_from("<BBH", info, at)
        size = length if layout == VALUE_FOLLOWS else 0
        yield attribute, info[at + 4 : at + 4 + size]
        at += 4 + size


def _bytes_of(path: Path) -> bytes:
    """A regular file's bytes; none for a link, a pipe, or more than any starter's library has."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return b""
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        return file.read(LIBRARY_BYTES) if stat.S_ISREG(found.st_mode) and found.st_size <= LIBRARY_BYTES else b""


def _plain(mangled: str) -> str:
    """softmax_registers for _Z17softmax_registersIfLi4EEvPKT_lPS0_li: the name as the source has it."""
    found = re.match(r"_Z(\d+)", mangled)
    return mangled[found.end() :][: int(found[1])] if found else mangled


def _rank(figures: Mapping[str, float]) -> tuple[float, float, float]:
    return figures["spill_bytes"], figures["registers"], figures["shared_bytes"]


BACKEND = CudaBackend()
