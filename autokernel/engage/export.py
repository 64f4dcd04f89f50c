"""What a run won as a small package of its own: the kernels, a dispatch by call, the fallback, tests, provenance.

    python -m autokernel.engage.export --run results/llama-cpu --to DIR [--name NAME]

The package imports torch and what its kernels import, and nothing of autokernel. Each problem is one function with the
reference's signature; a call that was not judged (another shape, layout, dtype or device), or one that needs a
gradient, runs the reference. Ends with exit status 2 and one line on standard error for a mistake of the user.
"""

from __future__ import annotations

import argparse
import datetime
import json
import keyword
import pprint
import re
import string
import sys
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from autokernel import assets, registry
from autokernel.engage import won
from autokernel.engage.won import Run, Won
from autokernel.evaluate.memory import relaid
from autokernel.regions.extractor import torch_starter
from autokernel.types import AutokernelError, Problem, Workload

NEEDS = {"triton": ["triton"], "cuda": ["apache-tvm-ffi", "ninja"], "cpp": ["apache-tvm-ffi", "ninja"]}


def export(folder: Path, to: Path, name: str | None = None) -> Path:
    """Writes the package into ``to`` (which must not exist, or be empty) and returns its folder.

    Raises AutokernelError where the run won nothing, where ``to`` holds something, and for a name that Python refuses.
    """
    run = won.read(folder)
    if not run.won:
        raise AutokernelError(f"{folder}: no kernel of this run beats eager; there is nothing to export")
    name = name or re.sub(r"\W+", "_", f"{folder.name}_kernels").strip("_").lower()
    if not name.isidentifier() or keyword.iskeyword(name):
        raise AutokernelError(f"--name was expected to be a Python package's name; got '{name}'")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise AutokernelError(f"{to} was expected to be a new or empty folder; it holds something")
    package = to / name
    try:
        for path, text in _files(run, name).items():
            (to / path).parent.mkdir(parents=True, exist_ok=True)
            (to / path).write_text(text)
    except OSError as error:
        raise AutokernelError(f"{error.filename} was expected to be writable: {error.strerror}") from error
    return package


def _files(run: Run, name: str) -> dict[str, str]:
    """Path inside the package's folder -> text."""
    by_problem: dict[str, list[Won]] = defaultdict(list)
    for each in run.won:
        by_problem[each.target.problem].append(each)
    problems: dict[str, Problem] = {known: registry.load("problems", known) for known in by_problem}
    calls = {
        each.target.name: [_call(problems[each.target.problem], work) for work in each.target.workloads]
        for each in run.won
    }
    functions = [_function(problems[p], [w.target.name for w in group]) for p, group in by_problem.items()]
    template = string.Template(assets.PACKAGE.joinpath("engage", "dispatch.py.txt").read_text())
    provenance = _provenance(run)
    files = {
        "pyproject.toml": _pyproject(run, name),
        "README.md": _readme(run, name, problems, by_problem, provenance),
        f"{name}/__init__.py": f'"""Kernels won for {Path(run.model).name}; see PROVENANCE.json."""\n\n'
        f"from {name}._dispatch import engaged, {', '.join(sorted(_public(p) for p in problems.values()))}\n",
        f"{name}/_dispatch.py": template.substitute(
            package=name,
            device=torch.device(run.device).type,
            calls=pprint.pformat(calls, width=110, sort_dicts=False),
            functions="\n\n\n".join(functions),
        ),
        f"{name}/PROVENANCE.json": json.dumps(provenance, indent=1) + "\n",
        "tests/test_kernels.py": _tests(name, problems, by_problem),
    }
    for each in run.won:
        files[f"{name}/kernels/{each.target.name}.py"] = each.source
    for problem in problems.values():
        files[f"{name}/reference/{_public(problem)}.py"] = torch_starter(problem)
    for folder in ("kernels", "reference"):
        files[f"{name}/{folder}/__init__.py"] = ""
    return files


def _public(problem: Problem) -> str:
    return re.sub(r"\W+", "_", Path(problem.name).stem)


def _call(problem: Problem, work: Workload) -> dict[str, Any]:
    """What a judged call looks like: each tensor's shape, strides and dtype, and the scalars."""
    tensors = problem.make_inputs(work.dims, work.dtype, torch.Generator().manual_seed(0))
    laid = [
        relaid(t, work.strides[n]) if n in work.strides else t for n, t in zip(problem.inputs, tensors, strict=True)
    ]
    return {
        "tensors": [(tuple(t.shape), tuple(t.stride()), str(t.dtype).removeprefix("torch.")) for t in laid],
        "scalars": {**problem.scalars, **work.scalars},
    }


def _function(problem: Problem, targets: Sequence[str]) -> str:
    name = _public(problem)
    scalars = "".join(f", {each}={value!r}" for each, value in problem.scalars.items())
    named = ", ".join(f'"{each}": {each}' for each in problem.scalars)
    tensors = ", ".join(problem.inputs)
    return "\n".join(
        [
            f"def {name}({tensors}{scalars}):",
            f'    """{textwrap.shorten((problem.summary or name).strip(), 100)}"""',
            f"    return _run({list(targets)!r}, {name!r}, ({tensors},), {{{named}}})",
        ]
    )


def _provenance(run: Run) -> dict[str, Any]:
    profile = json.loads((run.folder / "profile.json").read_text())
    verification = run.folder / "verification.json"
    return {
        "exported": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "model": Path(run.model).name,
        "device": run.device,
        "dtype": run.dtype,
        "settings": dict(run.settings),
        "machine": profile.get("hardware", {}),
        "torch": torch.__version__,
        "kernels": {
            each.target.name: {
                "commit": each.commit,
                "experiment": each.experiment,
                "backend": each.target.backend,
                "speedup_over_eager": each.speedup,
                "workloads": [work.to_json() for work in each.target.workloads],
            }
            for each in run.won
        },
        "verification": json.loads(verification.read_text()) if verification.exists() else None,
    }


def _pyproject(run: Run, name: str) -> str:
    needs = ["torch", *sorted({need for each in run.won for need in NEEDS.get(each.target.backend, [])})]
    return textwrap.dedent(
        f"""\
        [build-system]
        requires = ["hatchling"]
        build-backend = "hatchling.build"

        [project]
        name = "{name.replace("_", "-")}"
        version = "0.1.0"
        description = "Kernels won for {Path(run.model).name} on {run.device}, {run.dtype}"
        requires-python = ">=3.10"
        dependencies = {json.dumps(needs)}

        [tool.hatch.build.targets.wheel]
        packages = ["{name}"]
        """
    )


def _readme(
    run: Run,
    name: str,
    problems: Mapping[str, Problem],
    groups: Mapping[str, Sequence[Won]],
    provenance: Mapping[str, Any],
) -> str:
    machine = provenance["machine"].get("name", run.device)
    lines = [
        f"# {name}",
        "",
        f"Kernels for {Path(run.model).name} on {machine} ({run.device}, {run.dtype}). A call that was not judged runs "
        "the plain PyTorch reference; so does one that needs a gradient.",
        "",
        "| function | backend | over eager | judged calls |",
        "|---|---|---|---|",
    ]
    for problem, group in groups.items():
        for each in group:
            calls = "; ".join(work.key for work in each.target.workloads)
            lines.append(f"| `{_public(problems[problem])}` | {each.target.backend} | {each.speedup:.2f}x | {calls} |")
    lines += ["", f"    import {name}", f"    {name}.engaged()   # which kernel ran how often", ""]
    return "\n".join(lines)


def _tests(name: str, problems: Mapping[str, Problem], groups: Mapping[str, Sequence[Won]]) -> str:
    template = string.Template(assets.PACKAGE.joinpath("engage", "test_kernels.py.txt").read_text())
    tolerances = {
        each.target.name: {
            dtype: (problems[p].tolerances[dtype].atol, problems[p].tolerances[dtype].rtol)
            for dtype in sorted({work.dtype for work in each.target.workloads})
        }
        for p, group in groups.items()
        for each in group
    }
    functions = {each.target.name: _public(problems[p]) for p, group in groups.items() for each in group}
    return template.substitute(package=name, tolerances=pprint.pformat(tolerances), functions=pprint.pformat(functions))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m autokernel.engage.export")
    parser.add_argument("--run", required=True)
    parser.add_argument("--to", required=True)
    parser.add_argument("--name", default=None)
    options = parser.parse_args(arguments)
    try:
        print(export(Path(options.run), Path(options.to), options.name))
    except AutokernelError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
