"""A problem that its owner wrote: what a file may hold, what is derived from it, what is refused with one line."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from autokernel import registry
from autokernel.evaluate.correctness import expected, mismatch
from autokernel.types import AutokernelError, Problem, Workload

SIZED = '''"""Squared ReLU."""
import torch
def reference(x, bias, scale=2.0):
    return torch.relu(x + bias).square() * scale
def make_inputs(rows=256, columns=512):
    assert columns > 1
    return [torch.randn(rows, columns), torch.randn(columns), 2.0]
'''
MODEL = """
import torch
from torch import nn
class Model(nn.Module):
    def __init__(self, n, m):
        super().__init__()
        self.linear, self.norm = nn.Linear(n, m), nn.BatchNorm1d(m)
        self.register_buffer("mask", torch.tril(torch.ones(m, m)))
    def forward(self, x, k):
        return torch.relu(self.norm(self.linear(x)) @ self.mask) * k
def get_inputs():
    return [torch.randn(16, 32), 3.0]
def get_init_inputs():
    return [32, 8]
"""
LOOKUP = """
import torch
DTYPES = ("fp16", "fp32")
TOLERANCES = {"fp16": (1e-3, 1e-3)}
CONTIGUOUS = True
def reference(table, rows):
    return table[rows]
def get_inputs():
    return [torch.randn(1000, 64), torch.randint(0, 1000, (10,))]
def library(table, rows):
    return torch.nn.functional.embedding(rows, table)
"""


def problem(tmp_path: Path, text: str) -> Problem:
    path = tmp_path / "own.py"
    path.write_text(text)
    loaded = registry.load("problems", str(path))
    assert isinstance(loaded, Problem)
    return loaded


def drawn(made: Problem, seed: int = 0) -> tuple[torch.Tensor, ...]:
    return made.make_inputs(made.shapes["cpu"][-1], made.dtypes[0], torch.Generator().manual_seed(seed))


def test_a_function_of_sizes_gives_shapes_edges_and_held_out_ones(tmp_path: Path) -> None:
    made = problem(tmp_path, SIZED)
    assert made.summary == "Squared ReLU."
    assert made.shapes["cpu"][-1] == {"rows": 256, "columns": 512}
    assert made.scalars == {"scale": 2.0}
    edges = list(made.edge_shapes)
    assert {"rows": 1, "columns": 64} in edges and {"rows": 64, "columns": 37} in edges
    assert all(dims["columns"] > 1 for dims in edges), "the reference refuses one column: no case may ask for it"
    held_out = {tuple(made.held_out(random.Random(n)).values()) for n in range(20)}
    assert len(held_out) > 10
    workload = Workload({"rows": 256, "columns": 512}, "fp32")
    assert made.bytes(workload) == 4 * (2 * 256 * 512 + 512)


def test_values_are_fresh_and_follow_the_generator_alone(tmp_path: Path) -> None:
    made = problem(tmp_path, SIZED)
    before = torch.get_rng_state()
    first, again, other = drawn(made, 7), drawn(made, 7), drawn(made, 8)
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], other[0])
    assert torch.equal(torch.get_rng_state(), before), "the judge's own random numbers are nobody's business"


def test_the_weights_of_a_model_are_inputs_that_hide_nothing(tmp_path: Path) -> None:
    made = problem(tmp_path, MODEL)
    tensors = drawn(made)
    by_name = dict(zip(made.inputs, tensors, strict=True))
    assert made.inputs[:2] == ("x", "linear_weight") and made.scalars == {"k": 3.0}
    for name in ("norm_weight", "norm_bias", "norm_running_mean", "norm_running_var"):
        assert by_name[name].unique().numel() > 1, f"{name} is one value: a kernel may leave it out"
    assert (by_name["norm_running_var"] > 0).all()
    assert torch.equal(by_name["mask"], torch.tril(torch.ones(8, 8))), "a table stays what it is"
    changed = list(tensors)
    changed[made.inputs.index("linear_bias")] = by_name["linear_bias"] + 1
    assert not torch.equal(made.reference(*tensors, k=3.0), made.reference(*changed, k=3.0))
    assert torch.allclose(made.reference(*tensors, k=6.0), 2 * made.reference(*tensors, k=3.0))
    assert made.flops(Workload(made.shapes["cpu"][0], "fp32")) == 2 * 16 * 32 * 8 + 2 * 16 * 8 * 8


def test_what_the_file_says_of_dtypes_tolerances_and_layouts_counts(tmp_path: Path) -> None:
    made = problem(tmp_path, LOOKUP)
    assert made.dtypes == ("fp16", "fp32") and not made.strided
    assert (made.tolerances["fp16"].atol, made.tolerances["fp32"].atol) == (1e-3, 1e-4)
    tensors = drawn(made)
    assert tensors[0].dtype is torch.float16 and tensors[1].dtype is torch.int64
    assert torch.equal(made.baselines["library"](*tensors), made.reference(*tensors))
    # A lookup does not read the whole table: a floor that says so would call an honest kernel implausible.
    assert made.bytes(Workload(made.shapes["cpu"][0], "fp16")) == 2 * 2 * 10 * 64 + 8 * 10


def test_hard_inputs_are_only_those_that_the_reference_itself_survives(tmp_path: Path) -> None:
    text = "import torch\ndef reference(x):\n    return x.exp()\ndef get_inputs():\n    return [torch.randn(8, 64)]\n"
    made = problem(tmp_path, text)
    hard = {a.name: a.make(a.dims, "fp32", torch.Generator().manual_seed(0)) for a in made.adversarial}
    assert (hard["zeros"][0] == 0).all()
    assert hard["large"][0].abs().max() < 100, "exp overflows on large inputs: plain ones take their place"
    for tensors in hard.values():
        want = expected(made, tensors, {}, 0, "cpu")
        assert mismatch(made.reference(*tensors), want, made.tolerances["fp32"], statistical=False)[1] is None


def test_a_whole_problem_is_taken_as_it_is(tmp_path: Path) -> None:
    made = problem(tmp_path, "from autokernel.problems.softmax import PROBLEM\n")
    assert made.inputs == ("x",) and made.name == str(tmp_path / "own.py")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("x = 1\n", "expected to define make_inputs"),
        ("def get_inputs():\n    return [1.0]\n", "PROBLEM, or reference"),
        ("def get_inputs(:\n", "syntax error"),
        ("def reference(x): return x\ndef get_inputs():\n    return [3]\n", "at least one floating-point tensor"),
        ("def reference(x): return x\ndef get_inputs():\n    return ['a']\n", "a tensor or a number; it is a str"),
        ("def reference(x): return x\ndef get_inputs():\n    raise KeyError('no')\n", "raised KeyError"),
        ("def reference(x): return x\ndef make_inputs(n):\n    return []\n", "a size with a default"),
        ("import torch\ndef reference(x): return x, x\ndef get_inputs():\n    return [torch.ones(2)]\n", "a tuple"),
        ("import torch\ndef reference(): return 1\ndef get_inputs():\n    return [torch.ones(2)]\n", "signature"),
        ("import torch\nSHAPES = [{'m': 3}]\ndef reference(x): return x\ndef make_inputs(n=4):\n    "
         "return [torch.ones(n)]\n", "SHAPES was expected"),
        ("import torch\nDTYPES = ['fp8']\ndef reference(x): return x\ndef make_inputs(n=4):\n    "
         "return [torch.ones(n)]\n", "DTYPES was expected"),
    ],
)  # fmt: skip
def test_what_a_file_lacks_is_one_line(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(AutokernelError, match=line) as caught:
        problem(tmp_path, text)
    assert "own.py" in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(AutokernelError, match=r"expected at .*there is none"):
        registry.load("problems", str(tmp_path / "none.py"))
