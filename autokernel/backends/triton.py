"""Triton kernels, compiled on first call for the GPU at hand; in Triton's interpreter (TRITON_INTERPRET=1) on a CPU.

What the compiler reported is read from Triton's own cache: the metadata it writes beside each binary (warps, shared
memory) and the binary's ELF notes (registers, stack). Standard library only: neither torch nor triton is imported.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import importlib.util
import itertools
import json
import os
import re
import shutil
import stat
import struct
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from autokernel.assets import cache_folder
from autokernel.backends._occupancy import WARP, occupancy
from autokernel.backends._policy import FORBIDDEN_NAMES, TORCH_ALLOCATION, refusal
from autokernel.backends.cuda import architecture
from autokernel.extension import Missing

GUIDE = """\
- A program handles a tile; tl.arange and block shapes are powers of two; sizes known at compile time are tl.constexpr.
- Mask every load and store that may leave the tensor; give `other` the neutral element (0, or -inf for a maximum).
- Accumulate in float32. tl.dot takes fp16 and bf16 as they are; fp32 products need input_precision="ieee" (the default
  is TF32, which the judge refuses) or "tf32x3".
- Offsets in 64 bits where rows times stride may pass 2^31: tl.program_id(0).to(tl.int64).
- Memory-bound kernels: read each byte once, 16 bytes a thread (contiguous last dimension, strides divisible by 16),
  25 KB or more in flight on each SM: several programs an SM, 16 to 64 elements a thread, several short rows a program.
- Stream what is used once (eviction_policy="evict_first"), keep what is shared ("evict_last").
- Products: tiles of 128x128 or 128x256 with 4 or 8 warps, K in steps of 64, 3 to 5 stages; walk tiles in groups, so
  that they share operands in the L2 cache; leave masks out where the tile divides the sizes (a constexpr flag).
- Attention: exp2 with log2(e) folded into the scale, masks on the diagonal blocks only, never on all of them.
- On Hopper and later: tl.make_tensor_descriptor or triton.tools.tensor_descriptor.TensorDescriptor (TMA) frees
  registers and address arithmetic; base and strides must be multiples of 16 bytes, the last stride 1.
- num_warps and num_stages go with the launch and belong in `# tune:` constants. Spills (see the evidence) cost more
  than a smaller tile; occupancy matters for memory-bound kernels and hardly for products.
- Launching costs microseconds of Python: one launch, one torch.empty, nothing else in kernel_fn.
- No float atomics: results must be bitwise the same on every run. No @triton.autotune: the loop is the tuner.
- Integer arguments that equal 1 or are divisible by 16 are compiled separately; do_not_specialize avoids that.
"""

# ELF64 and the attributes of its .nv.info section: (format 4: a sized value), then the attribute.
_SVAL, _REGCOUNT, _FRAME_SIZE = 4, 0x2F, 0x11
_MOST_BYTES, _MOST_FILES = 64 << 20, 1000  # of what a candidate may have written


class TritonBackend:
    name = "triton"
    imports = frozenset({"__future__", "math", "torch", "triton"})
    guide = GUIDE

    @property
    def devices(self) -> tuple[str, ...]:
        return ("cuda", "cpu") if interpreting() else ("cuda",)

    @property
    def aten(self) -> frozenset[str] | None:
        allowed = frozenset(
            "empty empty_like empty_strided zeros zeros_like zero_ fill_ full full_like new_empty resize_ as_strided "
            "view _unsafe_view reshape _reshape_alias alias transpose t permute unsqueeze squeeze slice select expand "
            "split split_with_sizes chunk contiguous clone copy_ _to_copy to detach unfold".split()
        )
        return allowed | {"set_"} if interpreting() else allowed  # how the interpreter looks at a tensor's memory

    def missing(self) -> Sequence[Missing]:
        found = importlib.util.find_spec("triton")
        if found is None or not found.submodule_search_locations:
            return (Missing("triton", "pip install triton"),)
        if interpreting():
            return ()
        folder = Path(next(iter(found.submodule_search_locations)))
        ptxas = folder / "backends" / "nvidia" / "bin" / "ptxas"
        header = Path(sysconfig.get_paths()["include"]) / "Python.h"
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        needs = [
            Missing("ptxas", "pip install --force-reinstall triton, or set TRITON_PTXAS_PATH to the CUDA toolkit's")
            if not (ptxas.is_file() or shutil.which("ptxas") or os.environ.get("TRITON_PTXAS_PATH"))
            else None,
            Missing("a C compiler (cc), which builds Triton's launchers", "apt-get install gcc")
            if not any(shutil.which(compiler) for compiler in ("gcc", "clang"))
            else None,
            Missing(f"Python.h, which Triton's launchers include ({header})", f"apt-get install python{version}-dev")
            if not header.is_file()
            else None,
        ]
        return [need for need in needs if need]

    def environment(self, cache: str) -> dict[str, str]:
        """Caches below ``cache``; products and sums may fuse, which Triton's versions set differently."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        return {
            "TRITON_HOME": cache,
            "TRITON_CACHE_DIR": f"{cache}/triton",
            "TRITON_DEFAULT_FP_FUSION": "1",
            "PATH": path,
        }

    def warm_up(self) -> None:
        """Load the compiler, by compiling something: it costs every process a second otherwise. And build, in a process
        of its own, what the driver's part of Triton builds once a machine (see ``furnish``).
        """
        changed = {"TRITON_CACHE_DIR": str(_common()), "TRITON_ALWAYS_COMPILE": "1"}
        os.environ.update(changed)
        try:
            from triton.backends.compiler import GPUTarget
            from triton.compiler import ASTSource, compile
            from triton.runtime import driver

            from autokernel.backends._warm_kernel import copy_kernel

            pid = os.fork()  # it opens the driver's library, which starts threads
            if pid == 0:
                with contextlib.suppress(Exception):
                    _ = driver.active.utils
                os._exit(0)
            os.waitpid(pid, 0)
            chip = re.match(r"(\d+)\.(\d+)", architecture() or "")
            if chip:
                types = {"x_ptr": "*fp32", "y_ptr": "*fp32", "n": "i32", "BLOCK": "constexpr"}
                source = ASTSource(fn=copy_kernel, signature=types, constexprs={"BLOCK": 16})
                compile(source, target=GPUTarget("cuda", int(chip[1] + chip[2]), WARP))
        except Exception as error:  # then every runner does it for itself, and says why it cannot
            print(f"triton could not be warmed up: {error}", file=sys.stderr)
        finally:
            for name in changed:
                del os.environ[name]

    def furnish(self, cache: Path) -> None:
        """Triton's own extension module for the driver, which it would compile for half a second in each new cache."""
        for module in _common().glob("*/cuda_utils*.so"):
            place = cache / "triton" / module.parent.name
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy2(module, place / module.name)

    def check(self, tree: ast.Module) -> str | None:
        """As for other languages on the host's side; a kernel's own body may say ``tl.sum``, but nothing of torch."""
        kernels = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and _is_jit(node)]
        if not kernels:
            return "no function is decorated with @triton.jit: the file has no kernel of its own"
        for kernel in kernels:
            for node in ast.walk(kernel):
                reason = _kernel_refusal(node)
                if reason:
                    return f"line {getattr(node, 'lineno', kernel.lineno)}: {reason}"
        launched = {kernel.name for kernel in kernels}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in launched:
                return (
                    f"line {node.lineno}: {node.value.id}.{node.attr}: a kernel is launched with [grid], nothing else"
                )
        host = _WithoutKernels().visit(copy.deepcopy(tree))
        return refusal(host, self.imports, TORCH_ALLOCATION)

    def evidence(self, cache: Path) -> Mapping[str, Mapping[str, float]]:
        """What the compiler reported for the kernels built below ``cache``, by kernel name.

        registers (a thread), spill_bytes (the stack frame a thread; 0 is good), shared_bytes (a program), warps (a
        program), occupancy (resident warps over the SM's most, 0 to 1, where the SM is known) and variants (how many
        were compiled). Where there are several variants the figures are those of the one that spills most, then uses
        most registers. What cannot be read is left out: the files were written by a candidate's process.
        """
        worst: dict[str, dict[str, float]] = {}
        variants: dict[str, int] = {}
        for name, figures in _binaries(Path(cache)):
            variants[name] = variants.get(name, 0) + 1
            known = worst.get(name)
            rank = (figures["spill_bytes"], figures["registers"], figures["shared_bytes"])
            if known is None or rank > (known["spill_bytes"], known["registers"], known["shared_bytes"]):
                worst[name] = figures
        return {name: {**figures, "variants": variants[name]} for name, figures in sorted(worst.items())}


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


# ---------------------------------------------------------------------------------------------- policy


def _is_jit(function: ast.FunctionDef) -> bool:
    """Whether a decorator is triton.jit, jit, or a call of either."""
    marks = [d.func if isinstance(d, ast.Call) else d for d in function.decorator_list]
    return any(ast.unparse(mark) in ("jit", "triton.jit") for mark in marks)


def _kernel_refusal(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name) and node.id in FORBIDDEN_NAMES | {"torch"}:
        return f"use of {node.id} inside a kernel"
    if isinstance(node, ast.Attribute) and node.attr.startswith("__"):
        return f"use of the attribute {node.attr}"
    if isinstance(node, ast.Import | ast.ImportFrom):
        return "an import inside a kernel"
    return None


class _WithoutKernels(ast.NodeTransformer):
    """The host's part of a file: kernels keep their name and lose their body."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if _is_jit(node):
            return ast.copy_location(ast.Pass(), node)
        return self.generic_visit(node)


# ---------------------------------------------------------------------------------------------- evidence


def _binaries(cache: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """(kernel name, its figures) of every binary below the folder that can be read."""
    for binary in sorted(itertools.islice(cache.rglob("*.cubin"), _MOST_FILES)):
        try:
            metadata = json.loads(_read(binary.with_suffix(".json")))
            name, warps = str(metadata["name"]), int(metadata["num_warps"])
            shared, arch = int(metadata["shared"]), int(metadata["target"]["arch"])
            registers, frame = resources(_read(binary))[name]
        except (OSError, ValueError, KeyError, TypeError, IndexError, ArithmeticError, RecursionError, struct.error):
            continue
        if not (0 < registers <= 255 and 0 < warps <= 32 and shared >= 0):
            continue
        figures: dict[str, float] = {
            "registers": registers,
            "spill_bytes": frame,
            "shared_bytes": shared,
            "warps": warps,
        }
        share = occupancy(arch, registers, warps, shared)
        yield name[:200], figures if share is None else {**figures, "occupancy": share}


def _read(path: Path) -> bytes:
    """A regular file of moderate size; a pipe or a link would lead the judge astray. Raises OSError."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > _MOST_BYTES:
        raise OSError(f"{path} is no file that Triton writes")
    return path.read_bytes()


def resources(cubin: bytes) -> dict[str, tuple[int, int]]:
    """Function name -> (registers a thread, bytes of its stack frame a thread), from the ELF of one CUDA binary.

    Triton puts no arrays on the stack, so that a frame means spilled registers. Raises ValueError, IndexError or
    struct.error for what is no such ELF.
    """
    if cubin[:5] != b"\x7fELF\x02":
        raise ValueError("not a 64-bit ELF")
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names_at = struct.unpack_from("<HHH", cubin, 0x3A)
    # name, type, flags, address, offset, bytes, link: the section header's first fields.
    sections = [struct.unpack_from("<IIQQQQI", cubin, table + i * size) for i in range(count)]

    def text(section: tuple[int, ...], at: int) -> str:
        start = section[4] + at
        return cubin[start : cubin.index(b"\0", start)].decode()

    by_name = {text(sections[names_at], s[0]): s for s in sections}
    symbols, info = by_name[".symtab"], by_name[".nv.info"]
    strings = sections[symbols[6]]
    found: dict[str, dict[int, int]] = {}
    at, end = info[4], info[4] + info[5]
    while at < end:
        form, attribute, length = struct.unpack_from("<BBH", cubin, at)
        at += 4
        if form != _SVAL:
            continue
        if attribute in (_REGCOUNT, _FRAME_SIZE):
            symbol, value = struct.unpack_from("<II", cubin, at)
            (name_at,) = struct.unpack_from("<I", cubin, symbols[4] + 24 * symbol)
            found.setdefault(text(strings, name_at), {})[attribute] = value
        at += length
    return {name: (v[_REGCOUNT], v.get(_FRAME_SIZE, 0)) for name, v in found.items() if _REGCOUNT in v}


def _common() -> Path:
    """Triton's cache for what no candidate had a hand in."""
    return cache_folder() / "triton"


BACKEND = TritonBackend()
