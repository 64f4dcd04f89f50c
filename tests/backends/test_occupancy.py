"""Theoretical occupancy against values that NVIDIA's occupancy calculator gives, worked by hand in the comments."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from autokernel.backends import cuda
from autokernel.backends._occupancy import MULTIPROCESSORS, occupancy


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize(
    ("registers", "warps", "shared_bytes", "resident"),
    [
        (32, 8, 0, 64),  # 8 blocks: every warp that the SM takes
        (16, 1, 0, 32),  # 32 blocks of one warp: no more blocks than that
        (40, 8, 0, 48),  # 1280 registers a warp, 51 fit, 48 in fours: 6 blocks
        (64, 8, 0, 32),  # 2048 a warp: 32 fit
        (128, 8, 0, 16),
        (255, 4, 0, 8),  # 8160 are rounded up to 8192
        (168, 12, 0, 12),  # 5376 a warp: 12 fit, one block of three warpgroups
        (96, 1, 0, 20),  # 3072 a warp: 21 would fit, but they come in fours
        (96, 3, 0, 18),  # of those 20, six blocks of 3
        (65, 32, 0, 0),  # 2304 a warp: 28 fit, and the block has 32: it cannot start
        (33, 32, 0, 32),  # 1280 a warp: 48 fit, one block
    ],
)
def test_registers_threads_and_blocks(arch: int, registers: int, warps: int, shared_bytes: int, resident: int) -> None:
    assert occupancy(arch, registers, warps, shared_bytes) == round(resident / 64, 3)


@pytest.mark.parametrize(
    ("arch", "shared_bytes", "blocks"),
    [
        (80, 163 << 10, 1),  # the most of a block, with 1 KiB of the driver's: all 164 KiB
        (80, 81 << 10, 2),
        (80, (81 << 10) + 1, 1),  # given in units of 128 bytes
        (80, 40 << 10, 4),
        (90, 227 << 10, 1),
        (90, 113 << 10, 2),
        (90, (113 << 10) + 1, 1),
        (90, 48 << 10, 4),  # 49 KiB with the driver's part: 4 in 228 KiB
        (100, 227 << 10, 1),
        (100, 75 << 10, 3),
        (100, 56 << 10, 4),
        (86, 49 << 10, 2),
        (89, 99 << 10, 1),
    ],
)
def test_shared_memory(arch: int, shared_bytes: int, blocks: int) -> None:
    assert occupancy(arch, 32, 4, shared_bytes) == round(blocks * 4 / MULTIPROCESSORS[arch].warps, 3)


def test_smaller_multiprocessors_hold_fewer_warps_and_blocks() -> None:
    assert occupancy(86, 16, 1, 0) == round(16 / 48, 3)
    assert occupancy(89, 16, 1, 0) == round(24 / 48, 3)
    assert occupancy(89, 32, 8, 0) == 1.0
    assert occupancy(75, 32, 8, 0) is None


BOUNDED = """
extern "C" __global__ void __launch_bounds__(256, 2) bounded(float* x, int n) {
  __shared__ float kept[100];
  kept[threadIdx.x % 100] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = kept[(threadIdx.x + n) % 100];
}
extern "C" __global__ void unbounded(float* x, int n) { x[threadIdx.x] = n; }
"""


@pytest.mark.skipif(cuda._nvcc() is None, reason="no nvcc")
@pytest.mark.parametrize(("arch", "known"), [("80", 80), ("90a", 90), ("100a", 100)])
def test_launch_bounds_and_architecture_are_read_from_the_machine_code(arch: str, known: int, tmp_path: Path) -> None:
    (tmp_path / "a.cu").write_text(BOUNDED)
    target = f"-gencode=arch=compute_{arch},code=sm_{arch}"
    subprocess.run([str(cuda._nvcc()), target, "-cubin", "a.cu", "-o", "a.cubin"], cwd=tmp_path, check=True)
    kernels = cuda.resources(b"\0" + (tmp_path / "a.cubin").read_bytes())
    bounded = kernels["bounded"]
    assert bounded["threads"] == 256 and bounded["shared_bytes"] == 400
    assert bounded["occupancy_at_bounds"] == occupancy(known, int(bounded["registers"]), 8, 400)
    assert not {"threads", "occupancy_at_bounds"} & set(kernels["unbounded"])


@pytest.mark.parametrize("bounds", [b"", b"\1\0\0\0", struct.pack("<III", 1 << 31, 1 << 31, 4), bytes(12)])
def test_bounds_that_make_no_sense_are_left_out(bounds: bytes) -> None:
    assert cuda._at_bounds(90, {"registers": 32, "shared_bytes": 0}, bounds) == {}
    assert cuda._at_bounds(90, {"registers": 0, "shared_bytes": 0}, struct.pack("<III", 128, 1, 1)) == {}
    assert cuda._at_bounds(61, {"registers": 32, "shared_bytes": 0}, struct.pack("<III", 128, 1, 1)) == {"threads": 128}
