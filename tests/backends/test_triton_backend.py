"""The Triton backend: what it refuses, what it needs, and what it reads of the compiler's work."""

from __future__ import annotations

import ast
import json
import os
import struct
from pathlib import Path

import pytest

from autokernel.backends.triton import BACKEND, resources

HONEST = """
import torch
import triton
import triton.language as tl

KERNEL_TYPE = "softmax"
BACKEND = "triton"


@triton.jit
def kernel(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < n, other=0.0)
    tl.store(y_ptr + at, x - tl.sum(x, axis=0) + tl.exp(x).to(tl.float32), mask=at < n)


def kernel_fn(x):
    y = torch.empty_like(x)
    kernel[(1,)](x, y, x.numel(), BLOCK=128, num_warps=4)
    return y
"""


def test_an_honest_file_passes() -> None:
    assert BACKEND.check(ast.parse(HONEST)) is None


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("    return y\n", "    return torch.softmax(x, -1)\n", "torch.softmax"),
        ("    return y\n", "    return y + x.exp()\n", "method .exp computes"),
        ("    return y\n", "    return y @ x\n", "operator @"),
        ("    return y\n", "    return kernel.fn(x, y, 1, 1)\n", "kernel.fn"),
        ("    at = tl", "    torch.softmax(x_ptr, -1)\n    at = tl", "torch inside a kernel"),
        ("    at = tl", "    open('/etc/passwd')\n    at = tl", "use of open inside a kernel"),
        ("    at = tl", "    import os\n    at = tl", "an import inside a kernel"),
        ("    at = tl", "    x_ptr.__class__\n    at = tl", "__class__"),
        ("import torch\n", "import os, torch\n", "import of 'os'"),
        ("@triton.jit\n", "", "no kernel of its own"),
        ("def kernel_fn", "def kernel_function", "defines no function kernel_fn"),
    ],
)
def test_what_is_refused(before: str, after: str, reason: str) -> None:
    assert before in HONEST
    refused = BACKEND.check(ast.parse(HONEST.replace(before, after)))
    assert refused is not None and reason in refused


def test_it_runs_on_a_cpu_in_the_interpreter_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert BACKEND.devices == ("cuda",)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert BACKEND.devices == ("cuda", "cpu") and not BACKEND.missing()


def test_what_is_missing_comes_with_what_mends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    (need,) = [need for need in BACKEND.missing() if "compiler" in need.what]
    assert "gcc" in need.mend


def test_caches_lie_in_the_given_folder() -> None:
    environment = BACKEND.environment("/some/where")
    assert environment["TRITON_CACHE_DIR"].startswith("/some/where/") and environment["TRITON_HOME"] == "/some/where"


def elf(functions: dict[str, tuple[int, int]]) -> bytes:
    """A CUDA binary as far as ``resources`` reads it: symbols, and per function its registers and its stack frame."""
    strings, symbols, info = b"\0", bytes(24), b""
    for number, (name, (registers, frame)) in enumerate(functions.items(), 1):
        symbols += struct.pack("<IBBHQQ", len(strings), 0, 0, 0, 0, 0)
        strings += name.encode() + b"\0"
        info += struct.pack("<BBHII", 4, 0x2F, 8, number, registers) + struct.pack("<BBHII", 4, 0x11, 8, number, frame)
    names = b"\0.strtab\0.symtab\0.nv.info\0"
    bodies = [(1, strings, 0), (9, symbols, 1), (17, info, 0), (0, names, 0)]
    data, table = b"\x7fELF\x02".ljust(64, b"\0"), b"".ljust(64, b"\0")
    for name_at, body, link in bodies:
        table += struct.pack("<IIQQQQIIQQ", name_at, 1, 0, 0, len(data), len(body), link, 0, 0, 0)
        data += body
    head = bytearray(data)
    struct.pack_into("<Q", head, 0x28, len(data))
    struct.pack_into("<HHH", head, 0x3A, 64, 5, 4)
    return bytes(head) + table


def built(folder: Path, name: str, registers: int, frame: int, **metadata: object) -> None:
    folder.mkdir(parents=True)
    (folder / f"{name}.cubin").write_bytes(elf({name: (registers, frame)}))
    told = {"name": name, "num_warps": 8, "shared": 49152, "target": {"backend": "cuda", "arch": 90, "warp_size": 32}}
    (folder / f"{name}.json").write_text(json.dumps({**told, **metadata}))


def test_resources_are_read_from_the_binary() -> None:
    assert resources(elf({"one": (40, 0), "two": (255, 128)})) == {"one": (40, 0), "two": (255, 128)}
    with pytest.raises(ValueError, match="ELF"):
        resources(b"no such thing")


def test_evidence_is_that_of_the_worst_variant(tmp_path: Path) -> None:
    built(tmp_path / "triton" / "A", "kernel", registers=64, frame=0)
    built(tmp_path / "triton" / "B", "kernel", registers=128, frame=16)
    built(tmp_path / "triton" / "C", "other", registers=32, frame=0, target={"arch": 61})
    evidence = BACKEND.evidence(tmp_path)
    assert evidence["kernel"] == {
        "registers": 128, "spill_bytes": 16, "shared_bytes": 49152, "warps": 8, "occupancy": 0.25, "variants": 2,
    }  # fmt: skip
    assert "occupancy" not in evidence["other"], "nothing is known of that SM"


def test_nothing_that_a_candidate_writes_there_breaks_it(tmp_path: Path) -> None:
    built(tmp_path / "good", "kernel", registers=40, frame=0)
    whole = (tmp_path / "good" / "kernel.cubin").read_bytes()
    lies = {
        "empty": (b"", "{}"),
        "text": (b"not a binary", '{"name": "kernel", "num_warps": 4, "shared": 0, "target": {"arch": 90}}'),
        "cut": (whole[:200], (tmp_path / "good" / "kernel.json").read_text()),
        "list": (whole, "[1, 2]"),
        "deep": (whole, "[" * 100_000),
        "huge": (whole[:40] + struct.pack("<Q", 1 << 60) + whole[48:], (tmp_path / "good" / "kernel.json").read_text()),
        "words": (whole, '{"name": "kernel", "num_warps": "many", "shared": 0, "target": {"arch": 90}}'),
        "endless": (whole, '{"name": "kernel", "num_warps": Infinity, "shared": 0, "target": {"arch": 90}}'),
        "zero": (whole, '{"name": "kernel", "num_warps": 0, "shared": 0, "target": {"arch": 90}}'),
    }
    for name, (binary, metadata) in lies.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "kernel.cubin").write_bytes(binary)
        (tmp_path / name / "kernel.json").write_text(metadata)
    (tmp_path / "folder.cubin").mkdir()
    (tmp_path / "link.cubin").symlink_to("/dev/zero")
    (tmp_path / "link.json").write_text((tmp_path / "good" / "kernel.json").read_text())
    os.mkfifo(tmp_path / "pipe.cubin")
    os.mkfifo(tmp_path / "pipe.json")
    assert BACKEND.evidence(tmp_path)["kernel"]["variants"] == 1
    assert BACKEND.evidence(tmp_path / "absent") == {}
