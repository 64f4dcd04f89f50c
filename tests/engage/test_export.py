"""The exported package: used from another folder, by a Python that cannot see autokernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from autokernel.engage.export import export
from autokernel.types import AutokernelError

BLOCKED = "import sys; sys.modules['autokernel'] = None\n"


def python(code: str, folder: Path, elsewhere: Path) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "AUTOKERNEL"))}
    return subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r})\n{BLOCKED}{code}"],
        capture_output=True, text=True, check=False, cwd=elsewhere, env=clean, timeout=600,
    )  # fmt: skip


def test_it_works_alone_and_its_own_tests_pass(torch_run: Path, tmp_path: Path) -> None:
    to = tmp_path / "package"
    package = export(torch_run, to, "won")
    code = "import won, torch\nx = torch.randn(3, 5); w = torch.randn(5)\nwon.rmsnorm(x, w)\nprint(won.engaged())"
    done = python(code, to, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{'fallback': 1}"
    tests = python(f"import pytest; raise SystemExit(pytest.main(['-q', {str(to / 'tests')!r}]))", to, tmp_path)
    assert tests.returncode == 0, tests.stdout[-3000:]
    told = json.loads((package / "PROVENANCE.json").read_text())
    assert set(told["kernels"]) == {"rmsnorm", "fused_mlp", "flash_attention", "matmul"}
    assert all(len(each["commit"]) == 40 and each["speedup_over_eager"] == 2.0 for each in told["kernels"].values())


def test_kernels_that_are_built_are_right_where_autokernel_is_not(
    run_of: Callable[[str], Path], tmp_path: Path
) -> None:
    to = tmp_path / "package"
    export(run_of("cpp"), to, "won")
    refused = python("import autokernel", to, tmp_path)
    assert refused.returncode == 1 and "import of autokernel halted" in refused.stderr
    tests = python(f"import pytest; raise SystemExit(pytest.main(['-q', {str(to / 'tests')!r}]))", to, tmp_path)
    assert tests.returncode == 0, tests.stdout[-3000:]


def test_a_wrong_kernel_fails_the_packages_own_tests(torch_run: Path, tmp_path: Path) -> None:
    to = tmp_path / "package"
    kernel = export(torch_run, to, "won") / "kernels" / "rmsnorm.py"
    kernel.write_text(
        kernel.read_text() + "\n_right = kernel_fn\n\n\ndef kernel_fn(*a, **k):\n    return _right(*a, **k) * 1.1\n"
    )
    tests = python(f"import pytest; raise SystemExit(pytest.main(['-q', {str(to / 'tests')!r}]))", to, tmp_path)
    assert tests.returncode == 1 and "test_a_judged_call_is_engaged_and_right[rmsnorm-0]" in tests.stdout


def test_what_cannot_be_exported_is_refused(torch_run: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep me")
    with pytest.raises(AutokernelError, match="new or empty folder"):
        export(torch_run, tmp_path / "full")
    with pytest.raises(AutokernelError, match="a Python package's name; got 'my-kernels'"):
        export(torch_run, tmp_path / "new", "my-kernels")
    with pytest.raises(AutokernelError, match=r"has no profile\.json"):
        export(tmp_path, tmp_path / "new")
