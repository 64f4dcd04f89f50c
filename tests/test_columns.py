"""The two columns of the design: no import of the daemon column reaches torch, and no arrow runs up or across.

Imports are read from the source (ast), so that one inside a function counts as much as one at the top.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "autokernel"

# Layers from the ground up. A module may import its own layer and those below it that its column lists.
GROUND = (
    "types",
    "amdahl",
    "modelref",
    "extension",
    "registry",
    "assets",
    "runfile",
    "hardware",
    "redact",
    "isolation",
    "__init__",
)
DAEMON = (
    "cli", "__main__", "commands", "display", "wording", "report", "advice", "present", "charts", "proof", "doctor",
    "kernelfile", "run", "proposers", "guide", "strategies", "agent", "evaluate.client", "evaluate.bench_command",
    "evaluate.bench_metric", "evaluate.protocol", "evaluate.decision", "evaluate.defences", "evaluate.nvml",
    "evaluate.toolrun", "evaluate.nsight", "evaluate.sanitizer",
)  # fmt: skip
# Both columns speak of these; no torch.
SHARED = ("evaluate.protocol", "evaluate.decision", "evaluate.defences", "evaluate.nvml")
USER = ("engage",)  # in the process of whoever owns the model: sees the device column, and what a run wrote
READ_BY_USER = ("run.history", "proof")
FORBIDDEN_IN_DAEMON = ("torch", "triton", "tvm_ffi")
HEIGHT = {  # the daemon's own floors: an arrow never runs to a higher one
    "__main__": 6, "cli": 5, "commands": 4, "present": 3, "report": 2, "advice": 2, "display": 2, "wording": 2,
    "doctor": 2, "charts": 2, "proof": 2, "kernelfile": 2, "run": 1, "proposers": 1, "guide": 1,
    "strategies": 1, "agent": 3,
    "evaluate.client": 1, "evaluate.bench_command": 1, "evaluate.bench_metric": 0, "evaluate.decision": 0,
    "evaluate.protocol": 0, "evaluate.defences": 0, "evaluate.nvml": 0, "evaluate.toolrun": 1, "evaluate.nsight": 1,
    "evaluate.sanitizer": 1,
}  # fmt: skip


def module_of(path: Path) -> str:
    """autokernel/run/loop.py -> run.loop; a package's __init__ -> its own name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def room(module: str, rooms: tuple[str, ...]) -> str | None:
    """The entry of ``rooms`` that this module is or lies in."""
    return next((r for r in rooms if module == r or module.startswith(r + ".")), None)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything the file imports; ``from a import b`` names a.b when that is a module."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: absolute imports only"
            base = node.module or ""
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                as_path = ROOT.joinpath(*inner.split("."))
                yield node.lineno, inner if as_path.with_suffix(".py").is_file() or as_path.is_dir() else base


def offences(path: Path) -> list[str]:
    """What this file imports against the design."""
    module = module_of(path)
    found = []
    if room(module, GROUND) is not None:
        allowed_here: tuple[str, ...] = GROUND
        forbidden = () if module == "hardware" else FORBIDDEN_IN_DAEMON
    elif room(module, DAEMON) is not None:
        allowed_here, forbidden = GROUND + DAEMON, FORBIDDEN_IN_DAEMON
    else:  # a device process sees the ground and its own column, never the daemon's, but for the protocol they share
        allowed_here, forbidden = (), ()
    for line, name in imports(path):
        top, _, rest = name.partition(".")
        if top in forbidden:
            found.append(f"{path.name}:{line}: {module} imports {name}")
        if top != "autokernel" or not rest:
            continue
        if room(module, ("__init__",)) and room(rest, USER):
            continue  # the package's lazy façade: apply, restore, engagement
        if allowed_here and room(rest, allowed_here) is None:
            found.append(f"{path.name}:{line}: {module} imports {name}, across or up")
        shared = (*SHARED, *(READ_BY_USER if room(module, USER) else ()))
        if not allowed_here and room(rest, shared) is None and room(rest, DAEMON) is not None:
            found.append(f"{path.name}:{line}: {module} imports {name} of the daemon column")
        here, there = room(module, DAEMON), room(rest, DAEMON)
        if here and there and HEIGHT[there] > HEIGHT[here]:
            found.append(f"{path.name}:{line}: {module} imports {name}, up")
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_arrow_runs_up_or_across(path: Path) -> None:
    assert offences(path) == []


def test_every_module_has_a_column() -> None:
    device = ("problems", "backends", "regions", "evaluate", "probe")
    strays = [m for p in PACKAGE.rglob("*.py") if room(m := module_of(p), GROUND + DAEMON + device + USER) is None]
    assert strays == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("run/x.py", "import torch"),
        ("run/x.py", "def f():\n    from torch import nn"),
        ("run/x.py", "from autokernel.problems import rmsnorm"),
        ("run/x.py", "from autokernel.commands import bench"),
        ("types.py", "from autokernel.run import loop"),
        ("problems/x.py", "from autokernel.run import loop"),
        ("evaluate/judge.py", "from autokernel import report"),
    ],
)
def test_the_check_itself_finds_offences(
    module: str, source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "autokernel"
    for known in ("run/loop.py", "problems/rmsnorm.py", "commands/bench.py", "report.py", module):
        (package / known).parent.mkdir(parents=True, exist_ok=True)
        (package / known).write_text("")
    (package / module).write_text(source)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", package)
    assert len(offences(package / module)) >= 1


def test_the_whole_daemon_column_loads_without_torch() -> None:
    """Imports every module of the column in a fresh process: what a third-party module drags in counts as well."""
    modules = [
        f"autokernel.{m}"
        for p in sorted(PACKAGE.rglob("*.py"))
        if room(m := module_of(p), DAEMON) and not m.endswith("__main__")
    ]
    code = f"import importlib, sys\nfor m in {modules!r}: importlib.import_module(m)\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"
