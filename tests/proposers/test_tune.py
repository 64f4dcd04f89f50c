"""Reading and writing ``# tune:`` constants."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from autokernel.assets import root
from autokernel.proposers._tune import constants, with_values

SOURCE = '''"""Größen."""
A = 64  # tune: 256, 64, 128 | größe of a block
B = "x,y"  # tune: "x,y", "z" | holds a comma
C = (
    "-O3"  # tune: "-O2", "-O3", "-O3 \\"q\\""
)
D = 1.5  # tune: 0.5, 1.5
E = True  # tune: True, False | a switch
F = 3  # a constant like any other
G = 4  # tune: 5, 6 | its value is not among them
H = 7  # tune: several of them
I = A * 2  # tune: 1, 2


def f():
    J = 1  # tune: 1, 2
    return J
'''


def test_constants_are_read():
    found = {c.name: c for c in constants(SOURCE)}
    assert list(found) == ["A", "B", "C", "D", "E"]
    assert found["A"].choices == (64, 128, 256) and found["A"].note == "größe of a block"
    assert found["B"].choices == ("x,y", "z") and found["C"].choices == ("-O2", "-O3", '-O3 "q"')
    assert found["A"].ordered and found["D"].ordered and not found["B"].ordered and not found["E"].ordered


def test_other_values_are_written_where_the_old_ones_were():
    edited = with_values(SOURCE, {"A": 256, "B": "z", "C": '-O3 "q"', "D": 0.5, "E": False, "nobody": 1})
    scope: dict = {}
    exec(edited, scope)
    assert (scope["A"], scope["B"], scope["C"], scope["D"], scope["E"]) == (256, "z", '-O3 "q"', 0.5, False)
    old, new = SOURCE.split("\n"), edited.split("\n")
    assert len(old) == len(new) and sum(a != b for a, b in zip(old, new, strict=True)) == 5
    assert with_values(edited, {c.name: c.value for c in constants(SOURCE)}) == SOURCE


@pytest.mark.parametrize("broken", ["def f(:\n", "A = 1  # tune: 1, 2\n'''", "\x00", "if True:\nA = 1"])
def test_what_is_no_python_has_no_constants(broken):
    assert constants(broken) == ()


@pytest.mark.parametrize("path", sorted((root() / "kernels").glob("*/*.py")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_starter_can_be_tuned_and_stays_python(path: Path):
    source = path.read_text()
    found = constants(source)
    assert sum("# tune:" in line for line in source.split("\n")) == len(found), "a tune comment that does not read"
    for constant in found:
        for choice in constant.choices:
            edited = with_values(source, {constant.name: choice})
            assert {c.name: c.value for c in constants(edited)}[constant.name] == choice
            ast.parse(edited)
