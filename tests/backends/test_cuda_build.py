"""The quick way through nvcc: a light header for tvm-ffi's own where that is enough, and theirs where it is not."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import tvm_ffi.cpp
from tvm_ffi.cpp.extension import _decorate_with_tvm_ffi
from tvm_ffi.libinfo import find_dlpack_include_path, find_include_path

from autokernel.backends import _light_nvcc, cuda
from autokernel.backends.cuda import BACKEND

pytestmark = pytest.mark.skipif(cuda._nvcc() is None, reason="no nvcc")

# ------------------------------------------------------------------------------------------------- what it means

BINDING = """
#include <tvm/ffi/container/tensor.h>
#include <string>
using tvm::ffi::TensorView;

double facts(TensorView x, int64_t which) {
  const TensorView copy = x;
  if (which == 0) return copy.ndim() * 10 + x.dim();
  if (which == 1) return x.numel() + 1000 * x.shape().Product() + 1000000 * int64_t(x.sizes().size());
  if (which == 2) return x.size(0) + 100 * x.size(-1) + 10000 * x.shape()[1];
  if (which == 3) return x.stride(0) + 100 * x.stride(-1) + 10000 * x.strides()[1];
  if (which == 4) return x.dtype().code * 10000 + x.dtype().bits * 10 + x.dtype().lanes;
  if (which == 5) return x.device().device_type * 10 + x.device().device_id;
  if (which == 6) return (x.dtype() == DLDataType{kDLFloat, 32, 1}) + 2 * (x.dtype() != DLDataType{kDLBfloat, 16, 1});
  if (which == 7) return static_cast<float*>(x.data_ptr())[1] + x.byte_offset() + x.size(2);
  double sum = 0;
  for (int64_t length : x.shape()) sum = sum * 100 + length;
  return sum;
}
int64_t numbers(int a, float b, bool c, double d, uint8_t e) { return int64_t(a + 10 * b + 1000 * c + 10000 * d) + e; }
bool is_even(const TensorView& x) { return x.numel() % 2 == 0; }
float half(float x) { return x / 2; }
void nothing() {}
void refuse(TensorView x, int64_t how) {
  TVM_FFI_CHECK(how != 0, ValueError) << "expected " << 1.5f << " or " << uint64_t(1) << 'x' << ", got " << x.size(0);
  TVM_FFI_CHECK_EQ(how, 2, TypeError) << "two";
  TVM_FFI_ICHECK_LT(x.numel(), how) << "many";
}
void throw_standard() { std::stoi("no number"); }
"""
FUNCTIONS = ["facts", "numbers", "is_even", "half", "nothing", "refuse", "throw_standard"]


def answer(function: Any, *arguments: Any) -> tuple[type, Any]:
    """What the call gives, as Python sees it: the result and its type, or the error's type and message."""
    try:
        result = function(*arguments)
    except Exception as error:
        return type(error), str(error)
    return type(result), result


def test_the_light_header_means_what_tvm_ffis_own_headers_mean(tmp_path: Path) -> None:
    nvcc = cuda._nvcc()
    assert nvcc is not None

    def module(name: str, flags: list[str]) -> Any:
        return tvm_ffi.cpp.load_inline(
            name, cpp_sources=BINDING, functions=FUNCTIONS, extra_cflags=flags, build_directory=str(tmp_path / name),
            extra_include_paths=[str(nvcc.parent.parent / "include")],
        )  # fmt: skip

    for folder in ("light", "own"):
        (tmp_path / folder).mkdir()
    light = module("light", ["-include", str(_light_nvcc.HEADER)])
    own = module("own", [])
    x = torch.arange(24.0).reshape(2, 12)[:, ::3]
    calls: list[tuple[Any, ...]] = [("facts", x, which) for which in range(10)]
    calls += [("facts", x.to(dtype), which) for dtype in (torch.bfloat16, torch.half) for which in (4, 6)] + [
        ("facts", torch.ones(3, 0, 5), 8)
    ]
    calls += [("numbers", -3, 2.5, True, 7, 200), ("numbers", True, 2, 0, 0.5, 1), ("half", 3), ("half", 3.5)]
    calls += [("is_even", x), ("is_even", torch.ones(3)), ("nothing",), ("throw_standard",)]
    calls += [("refuse", x, how) for how in (0, 1, 2, 100)] + [("refuse", torch.ones(1), 2)]
    for name, *arguments in calls:
        expected = answer(getattr(own, name), *arguments)
        assert answer(getattr(light, name), *arguments) == expected, (name, arguments)
    wrong: list[tuple[Any, ...]] = [("facts", 1, x), ("numbers", 1.5, 1, 1, 1, 1), ("half", None), ("half", "1")]
    for name, *arguments in [*wrong, ("nothing", 1), ("half",)]:  # the light one does not say what came
        kind, message = answer(getattr(light, name), *arguments)
        own_kind, own_message = answer(getattr(own, name), *arguments)
        assert kind is own_kind is TypeError
        assert message.partition(" when calling")[0] == own_message.partition(" when calling")[0]


# ------------------------------------------------------------------------------------------------- who gets which

KERNEL = """
#include <tvm/ffi/container/tensor.h>
__global__ void twice(float* x) { x[threadIdx.x] *= 2; }
void launch(tvm::ffi::TensorView x) { twice<<<1, 32>>>(static_cast<float*>(x.data_ptr())); }
"""


class Built:
    """What nvcc makes of a CUDA source in a runner's environment, called as load_inline calls it. ``device_only``: the
    device's half of it.
    """

    def __init__(self, folder: Path, source: str, *, device_only: bool = False) -> None:
        (folder / "cuda.cu").write_text(_decorate_with_tvm_ffi(source, {"launch": ""}))
        environment = {**os.environ, **BACKEND.environment(str(folder))}
        command = [f"{environment['CUDA_HOME']}/bin/nvcc", "-gencode=arch=compute_90a,code=sm_90a"]
        command += "-Xcompiler -fPIC -std=c++17 -O2 --generate-dependencies-with-compile --dependency-output".split()
        command += ["cuda.d", f"-I{find_include_path()}", f"-I{find_dlpack_include_path()}"]
        command += ["-cubin" if device_only else "-c", "cuda.cu", "-o", "cuda.o"]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        self.status, self.said = done.returncode, done.stderr
        self.light = not self.status and _light_nvcc.HEADER.name in (folder / "cuda.d").read_text()
        self.kernels = {} if self.status else cuda.resources(b"\0" + (folder / "cuda.o").read_bytes())


def test_a_source_that_the_light_header_carries_reads_no_other(tmp_path: Path) -> None:
    built = Built(tmp_path, KERNEL)
    assert (built.status, built.said, built.light) == (0, "", True)
    assert len(built.kernels) == 1


def test_a_warning_is_passed_on(tmp_path: Path) -> None:
    built = Built(tmp_path, KERNEL.replace("x[threadIdx", "int idle; x[threadIdx"))
    assert built.light and "idle" in built.said


@pytest.mark.parametrize(
    "more",
    [
        "tvm::ffi::String name() { return tvm::ffi::String(std::string(3, 'x')); }",
        "void odd(std::string why) { TVM_FFI_CHECK(why.empty(), ValueError) << why << std::vector<int>{1}.size(); }",
    ],
    ids=["a type of tvm-ffi", "headers that its own include"],
)
def test_a_source_that_wants_more_gets_tvm_ffis_own_headers(more: str, tmp_path: Path) -> None:
    built = Built(tmp_path, KERNEL + more, device_only=True)
    assert (built.status, built.light) == (0, False), built.said
    assert len(built.kernels) == 1


def test_a_source_beside_cpp_sources_gets_tvm_ffis_own_headers(tmp_path: Path) -> None:
    """Both speak of the same types, and are linked."""
    for source in ("cuda_0.o: compile_cuda /somewhere/cuda.cu", "cpp_0.o: compile /somewhere/main.cpp"):
        (tmp_path / "build.ninja").write_text(f"build {source}\n")
        built = Built(tmp_path, KERNEL, device_only=True)
        assert built.status == 0 and built.light == ("cuda_0" in source)


def test_an_error_is_told_as_tvm_ffis_own_headers_tell_it(tmp_path: Path) -> None:
    built = Built(tmp_path, KERNEL.replace("x[threadIdx.x]", "y[threadIdx.x]"))
    assert built.status != 0 and 'identifier "y" is undefined' in built.said
    assert built.said.count('identifier "y" is undefined') == 1 and "_light" not in built.said


def test_what_the_assembler_refuses_is_not_built_twice(tmp_path: Path) -> None:
    built = Built(
        tmp_path, KERNEL.replace("x[threadIdx.x] *= 2", 'asm volatile("no_such.instruction;")'), device_only=True
    )
    assert built.status != 0 and built.said.count("ptxas fatal") == 1


def test_the_toolkit_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything of the real one is there, the libraries and headers that a link and a build look for among them."""
    monkeypatch.setenv("AUTOKERNEL_CACHE", str(tmp_path))
    _light_nvcc.toolkit.cache_clear()
    nvcc = cuda._nvcc()
    assert nvcc is not None
    try:
        made = _light_nvcc.toolkit(nvcc)
    finally:
        _light_nvcc.toolkit.cache_clear()
    real = nvcc.parent.parent
    assert tmp_path in made.parents and [entry.name for entry in made.parent.iterdir()] == [made.name]
    assert {e.name for e in made.iterdir()} == {e.name for e in real.iterdir()} | {_light_nvcc.HEADER.name}
    assert {e.name for e in (made / "bin").iterdir()} == {e.name for e in (real / "bin").iterdir()}
    assert (made / "include" / "cuda_runtime.h").is_file()
    said = subprocess.run([made / "bin" / "nvcc", "--version"], capture_output=True, text=True, check=True)
    assert "release" in said.stdout + said.stderr
