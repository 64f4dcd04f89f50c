"""What a brief says of a problem is read from its source, and agrees with the problem itself."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from autokernel import registry
from autokernel.guide import modules
from autokernel.guide.problem import describe, guide_of
from autokernel.types import DTYPES, Problem, Workload

NAMES = registry.names("problems")


@pytest.mark.parametrize("name", NAMES)
def test_every_problem_speaks_for_itself(name: str) -> None:
    problem: Problem = registry.load("problems", name)
    told = describe(name)
    assert 8 <= len(told.guide.splitlines()) <= 30 and "Bytes:" in told.guide
    assert told.signature == f"kernel_fn{_bare(problem)}"
    assert dict(told.tolerances) == {d: (t.atol, t.rtol) for d, t in problem.tolerances.items()}
    assert told.tolerance_reason == problem.tolerance_reason
    assert len(told.edges) == len(problem.edge_shapes) and len(told.edge_scalars) == len(problem.edge_scalars)
    made = {adversary.make.__name__.lstrip("_") for adversary in problem.adversarial}
    assert made <= set(told.adversarial)


def _bare(problem: Problem) -> str:
    parameters = inspect.signature(problem.reference).parameters.values()
    empty = inspect.Parameter.empty
    return f"({', '.join(p.name if p.default is empty else f'{p.name}={p.default!r}' for p in parameters)})"


@pytest.mark.parametrize("name", NAMES)
def test_flops_and_bytes_are_those_of_the_problem(name: str) -> None:
    problem: Problem = registry.load("problems", name)
    cost = describe(name).cost
    assert cost is not None
    for dims in (*problem.shapes["cpu"], *problem.shapes["cuda"], *problem.edge_shapes):
        for dtype in DTYPES:
            for scalars in ({}, *problem.edge_scalars):
                work = Workload(dims=dims, dtype=dtype, scalars=scalars)
                assert cost(work) == (problem.flops(work), problem.bytes(work))


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_stands_alone_and_is_the_reference(name: str) -> None:
    problem: Problem = registry.load("problems", name)
    scope: dict[str, Any] = {}
    exec(describe(name).oracle, scope)
    inputs = problem.make_inputs(problem.shapes["cpu"][1], "fp32", torch.Generator().manual_seed(0))
    torch.testing.assert_close(scope["reference"](*inputs), problem.reference(*inputs), rtol=0, atol=0)


@pytest.mark.parametrize("name", registry.names("backends"))
def test_every_backend_speaks_for_itself(name: str) -> None:
    assert 8 <= len(guide_of("backends", name).splitlines()) <= 40


def test_nothing_is_imported(tmp_path: Path) -> None:
    """A third-party problem is found by its dotted path although importing its package would fail."""
    package = tmp_path / "their_kernels"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('nobody may import this here')\n")
    (package / "sizes.py").write_text("import torch\nWIDE = 4\n\ndef area(dims):\n    return dims['N'] * WIDE\n")
    (package / "scale.py").write_text(
        '"""Scales x."""\nimport torch\nfrom autokernel.types import Problem, Tolerance\n'
        "from their_kernels.sizes import area\n"
        'GUIDE = """Mind the scale."""\n'
        "def double(x):\n    return 2 * x\n"
        "def reference(x, by=3.0):\n    return torch.relu(double(x)) * by\n"
        "def flops(work):\n    return 2 * work.dims['N']\n"
        "def nbytes(work):\n    return 2 * area(work.dims)\n"
        "PROBLEM = Problem(name='scale', reference=reference, flops=flops, bytes=nbytes, "
        "tolerances={'fp32': Tolerance(1e-6, 1e-5)})\n"
    )
    code = (
        "import json, sys\n"
        "from autokernel.guide.problem import describe\nfrom autokernel.types import Workload\n"
        "told = describe('their_kernels.scale')\n"
        "cost = told.cost(Workload({'N': 10}, 'fp32'))\n"
        "print(json.dumps([told.guide, told.signature, told.oracle, told.tolerances, cost, 'torch' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    guide, signature, oracle, tolerances, cost, torch_there = json.loads(done.stdout)
    assert (guide, signature, cost) == ("Mind the scale.", "kernel_fn(x, by=3.0)", [20, 80])
    assert tolerances == {"fp32": [1e-6, 1e-5]} and not torch_there
    assert "import torch" in oracle and oracle.index("def double") < oracle.index("def reference")


def test_a_reference_of_the_owners_is_its_own_oracle(tmp_path: Path) -> None:
    path = tmp_path / "swish.py"
    path.write_text(
        '"""x times its sigmoid."""\nimport torch\n\n\n'
        "def reference(x, beta=1.0):\n    return x * torch.sigmoid(beta * x)\n"
        "\n\ndef make_inputs(n=8):\n    return [torch.randn(n)]\n\n\ndef flops(n):\n    return 4 * n\n"
        "\n\ndef bytes_moved(n):\n    return 8 * n\n"
    )
    told = describe(str(path))
    assert told.owned and told.oracle == path.read_text().strip() and told.summary == "x times its sigmoid."
    assert told.signature == "kernel_fn(x, beta=1.0)"
    assert told.cost is not None and told.cost(Workload({"n": 5}, "fp32")) == (20, 40)


def test_what_needs_torch_is_left_unknown(tmp_path: Path) -> None:
    path = tmp_path / "gemm.py"
    path.write_text("import torch\ndef reference(x):\n    return x\ndef flops(n):\n    return torch.tensor(n).item()\n"
                    "def bytes_moved(n):\n    return n\n")  # fmt: skip
    assert describe(str(path)).cost is None
    assert describe(str(tmp_path / "absent.py")).oracle == ""
    assert describe("no.such.problem").oracle == ""


def test_definitions_come_after_what_they_need(tmp_path: Path) -> None:
    path = tmp_path / "chain.py"
    path.write_text(
        "import math\nA = 2\n\ndef even(n):\n    return n == 0 or odd(n - 1)\n"
        "\ndef odd(n):\n    return n != 0 and even(n - 1)\n"
        "\ndef last(n: Unknown) -> Unknown:\n    return even(n) * A + math.floor(0.5)\n"
    )
    module = modules.Module(path)
    code = module.gather(["last"])
    scope: dict[str, Any] = {}
    exec("from __future__ import annotations\n" + code.text, scope)
    assert scope["last"](4) == 2 and list(code.imports) == ["import math"] and code.pure
