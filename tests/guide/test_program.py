"""program.md: its sections parse and cover every backend and problem, and its examples compile."""

from __future__ import annotations

import ast
import itertools
import shutil
import subprocess
from pathlib import Path

import pytest
from recorded_runs import examples

from autokernel import assets, registry, runfile
from autokernel.guide import program, text
from autokernel.types import AutokernelError, Status

SECTIONS = program.sections(assets.program())
NAMES = [section.name for section in SECTIONS]
HARDWARE = {
    "cpp": {"device": "cpu", "name": "AMD EPYC"},
    "torch": {"device": "cpu", "name": "AMD EPYC"},
    "triton": {"device": "cuda", "name": "NVIDIA H200"},
    "cuda": {"device": "cuda:1", "name": "NVIDIA A100-SXM4-80GB"},
}


def test_it_is_a_whole_program() -> None:
    assert len(assets.program().splitlines()) >= 500
    assert len(NAMES) == len(set(NAMES))
    assert "<!--" not in "".join(section.text for section in SECTIONS)


@pytest.mark.parametrize("problem", registry.names("problems"))
@pytest.mark.parametrize("backend", ["cpp", "triton", "cuda"])
def test_a_target_gets_every_tier_and_nothing_of_other_targets(backend: str, problem: str) -> None:
    chosen = program.relevant(SECTIONS, program.place(problem, backend, HARDWARE[backend]))
    assert {section.tier for section in chosen} == {None, 1, 2, 3, 4, 5, 6}
    assert sum(section.tier == 6 for section in chosen) == 1
    told = "\n".join(section.text for section in chosen)
    assert all(f"{section.text}" not in told for section in SECTIONS if section not in chosen)
    assert ("tl.load" in told) == (backend == "triton")
    assert ("#pragma omp" in told) == (backend == "cpp")


def test_every_status_is_explained() -> None:
    verdict = next(section.text for section in SECTIONS if section.name == "verdict")
    assert [s.value for s in Status if f"| {s.value} |" not in verdict] == []


def test_what_may_be_left_out_exists() -> None:
    parts = {"problem-guide", "backend-guide", "cases"} | {f"tier-{tier}" for tier in range(1, 7)}
    assert set(text.PREFIX_DROPS) - parts <= set(NAMES)


@pytest.mark.parametrize(
    ("marker", "told"),
    [
        ("<!-- section: A -->", "expected '<!-- section: some-name"),
        ("<!-- section: a tier=two -->", "got 'tier=two'"),
        ("<!-- section: a gpu=h100 -->", "got 'gpu=h100'"),
        ("<!-- section: first -->", "a section named 'first' is there already"),
    ],
)
def test_a_marker_that_does_not_read_is_named_with_its_line(marker: str, told: str) -> None:
    with pytest.raises(AutokernelError, match="line 4") as error:
        program.sections(f"# top\n<!-- section: first tier=1 -->\ntext\n{marker}\n")
    assert told in str(error.value)


def test_sections_end_where_the_next_begins() -> None:
    first, second = program.sections(
        "for readers\n<!-- section: a tier=2 archs=ada,hopper -->\nA\n<!-- section: b -->\nB\n"
    )
    assert (first.name, first.text, first.tier, first.only["archs"]) == ("a", "A\n", 2, {"ada", "hopper"})
    assert (second.text, second.tier, dict(second.only)) == ("B\n", None, {})
    assert first.matters({"archs": "ada"}) and not first.matters({"archs": "cdna"}) and not first.matters({})


@pytest.mark.parametrize(
    ("name", "arch", "family"),
    [
        ("NVIDIA H200", "", "hopper"),
        ("NVIDIA H100 80GB HBM3", "", "hopper"),
        ("NVIDIA A100-SXM4-80GB", "", "ampere"),
        ("NVIDIA GeForce RTX 4090", "", "ada"),
        ("NVIDIA L4", "", "ada"),
        ("NVIDIA L40S", "", "ada"),
        ("NVIDIA B200", "", "blackwell"),
        ("NVIDIA GeForce RTX 5090", "", "blackwell"),
        ("AMD Instinct MI300X", "", "cdna"),
        ("something new", "sm90", "hopper"),
        ("something new", "sm_100", "blackwell"),
        ("something new", "", ""),
        ("Tesla V100", "sm70", ""),
    ],
)
def test_a_gpu_has_a_family(name: str, arch: str, family: str) -> None:
    assert program.architecture(name, arch) == family


# ---------------------------------------------------------------------------------------------- examples


@pytest.mark.parametrize(("section", "source"), examples("cpp"), ids=lambda value: value[:20])
def test_cpp_examples_compile(section: str, source: str, tmp_path: Path) -> None:
    path = tmp_path / f"{section}.cpp"
    path.write_text(source)
    command = ["c++", "-std=c++17", "-O1", "-fsyntax-only", "-fopenmp", "-Wall", "-Wextra", "-Werror", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")
@pytest.mark.parametrize(("section", "source"), examples("cuda"), ids=lambda value: value[:20])
def test_cuda_examples_compile(section: str, source: str, tmp_path: Path) -> None:
    path = tmp_path / f"{section}.cu"
    path.write_text(source)
    command = [
        "nvcc",
        "-std=c++17",
        "-arch=sm_80",
        "-cubin",
        "-Werror",
        "all-warnings",
        "-o",
        str(tmp_path / "x"),
        str(path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_triton_examples_are_kernels() -> None:
    found = examples("python")
    assert len(found) >= 5
    for section, source in found:
        functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
        assert functions, section
        assert all(ast.unparse(f.decorator_list[0]) == "triton.jit" for f in functions)


def test_triton_examples_compile_for_a_gpu_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through Triton's own front end and ptxas, for compute capability 9.0."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {"BLOCK": 256, "ROWS": 4, "EVEN": False}
    compiled = 0
    for section, source in examples("python"):
        for name, kernel in _loaded(source, tmp_path / f"{section}_{compiled}.py").items():
            if name == "grouped":  # a helper without pointers: see below
                continue
            kinds = {
                a: "constexpr" if a in constants else "*fp32" if a.endswith("_ptr") else "i32" for a in kernel.arg_names
            }
            fixed = {(i,): constants[a] for i, a in enumerate(kernel.arg_names) if a in constants}
            built = triton.compile(ASTSource(kernel, kinds, constexprs=fixed), target=GPUTarget("cuda", 90, 32))
            assert built.asm["cubin"], name
            compiled += 1
    assert compiled >= 4


def test_grouped_order_visits_every_tile_once(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    source = next(source for _, source in examples("python") if "def grouped" in source)
    grouped = _loaded(source, tmp_path / "order.py")["grouped"].fn
    for rows, columns, group in ((8, 4, 4), (7, 5, 3), (1, 9, 8), (10, 1, 4)):
        tiles = [grouped(p, rows, columns, group) for p in range(rows * columns)]
        assert sorted(tiles) == list(itertools.product(range(rows), range(columns)))


def _loaded(source: str, path: Path) -> dict:
    """The jitted functions of an example, imported from a file as Triton needs it."""
    path.write_text(source)
    module = runfile.run(path, path.stem.replace("-", "_"))
    return {name: value for name, value in vars(module).items() if hasattr(value, "arg_names") and hasattr(value, "fn")}
