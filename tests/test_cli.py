"""The command line as a person meets it: exit codes, one clear line for every mistake, quick help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from tiny import ROOT, TINY_KERNEL, command

from autokernel import cli, registry
from autokernel.commands._common import Duration
from autokernel.types import AutokernelError


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(cli.main, list(arguments))


def assert_one_clear_line(result: Any, *expected: str) -> None:
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in lines[0]
    for text in expected:
        assert text in lines[0]


# ------------------------------------------------------------------------------------------------- mistakes


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with kernel files that are wrong in one way each."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.py").write_text(TINY_KERNEL)
    (tmp_path / "syntax.py").write_text("KERNEL_TYPE = 'rmsnorm'\ndef kernel_fn(:\n")
    (tmp_path / "no_function.py").write_text(TINY_KERNEL.replace("def kernel_fn", "def kernel_fun"))
    (tmp_path / "no_type.py").write_text(TINY_KERNEL.replace("KERNEL_TYPE", "KIND"))
    (tmp_path / "no_backend.py").write_text(TINY_KERNEL.replace("BACKEND", "LANGUAGE"))
    (tmp_path / "odd_type.py").write_text(TINY_KERNEL.replace('"rmsnorm"', '"rmsnrom"'))
    (tmp_path / "odd_backend.py").write_text(TINY_KERNEL.replace('"torch"', '"trch"'))
    (tmp_path / "computed.py").write_text(TINY_KERNEL.replace("WORKLOADS = ", "WORKLOADS = list() + "))
    (tmp_path / "bad_workloads.py").write_text(TINY_KERNEL.replace('"dims"', '"dim"'))
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\x00\x01")
    (tmp_path / "nul.py").write_bytes(b"x = 1\x00")
    return tmp_path


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("syntax.py", "line 2"),
        ("no_function.py", "kernel_fn"),
        ("no_type.py", "KERNEL_TYPE"),
        ("no_backend.py", "BACKEND"),
        ("odd_type.py", "did you mean 'rmsnorm'?"),
        ("odd_backend.py", "did you mean 'torch'?"),
        ("computed.py", "literal"),
        ("bad_workloads.py", "WORKLOADS"),
        ("binary.py", "UTF-8"),
        ("nul.py", "NUL"),
        ("god.py", "did you mean good.py?"),
        (".", "folder"),
    ],
)
def test_bench_refuses_what_is_no_kernel_file(files: Path, file: str, expected: str) -> None:
    assert_one_clear_line(invoke("bench", file), expected)


def test_bench_json_still_ends_with_an_object_for_a_file_it_cannot_read(files: Path) -> None:
    result = invoke("bench", "syntax.py", "--json")
    assert result.exit_code == 2
    answer = json.loads(result.stdout.strip().splitlines()[-1])
    assert (answer["status"], answer["stage"], answer["latency_us"]) == ("BUILD", "read", None)
    assert "line 2" in answer["reason"]


def test_bench_compares_only_versions_of_one_problem(files: Path) -> None:
    (files / "other.py").write_text(TINY_KERNEL.replace('"rmsnorm"', '"softmax"'))
    assert_one_clear_line(invoke("bench", "good.py", "--against", "other.py"), "rmsnorm", "softmax")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["rnu", "x.py"], "did you mean 'run'?"),
        (["run"], "MODEL.py"),
        (["run", "nothing.py"], "nothing.py"),
        (["run", "god.py"], "did you mean good.py?"),
        (["run", "good.py", "--budget", "5 minutes"], "1h30m"),
        (["run", "good.py", "--budgt", "5m"], "--budget"),
        (["run", "good.py", "--proposer", "playbok"], "did you mean 'playbook'?"),
        (["run", "good.py", "--strategy", "greedi"], "did you mean 'greedy'?"),
        (["run", "good.py", "--backend", "cp"], "did you mean 'cpp'?"),
        (["run", "good.py", "--max-experiments", "0"], "--max-experiments"),
        (["run", "good.py", "--dtype", "fp8"], "fp16"),
        (["run", "good.py", "--set", "size"], "key=value"),
        (["run", "good.py", "--run", "../elsewhere"], "--run"),
        (["profile", "nothing.py"], "nothing.py"),
        (["profile", "good.py", "--device", "tpu"], "cuda:N"),
        (["extract", "nothing.py"], "nothing.py"),
    ],
)
def test_a_mistake_is_one_clear_line(files: Path, arguments: list[str], expected: str) -> None:
    assert_one_clear_line(invoke(*arguments), expected)


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused_before_anything_starts(files: Path) -> None:
    assert_one_clear_line(invoke("run", "good.py", "--device", "cuda"), "--device cpu")


@pytest.mark.parametrize("number", [28, 30, 13])
def test_a_full_or_unwritable_disk_is_one_clear_line(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(kind: str) -> list[str]:
        raise OSError(number, os.strerror(number), "/somewhere/file")

    monkeypatch.setattr(registry, "names", full)
    assert_one_clear_line(invoke("list"), "/somewhere/file", os.strerror(number))


def test_other_errors_are_not_dressed_up_as_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(kind: str) -> list[str]:
        raise ZeroDivisionError

    monkeypatch.setattr(registry, "names", broken)
    assert isinstance(invoke("list").exception, ZeroDivisionError)


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(kind: str) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "names", interrupted)
    assert invoke("list").exit_code == 130


# ------------------------------------------------------------------------------------------------- budgets


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("10h", 36000), ("1h30m", 5400), ("1.5h", 5400), (" 2M ", 120)]
)
def test_a_budget_is_read(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "10", "5x", "m", "-3m", "0s", "1h 30m", "30m30m", "1h-30m", "nan", "1e3s"])
def test_a_malformed_budget_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"1h30m|above zero"):
        Duration().convert(text, None, None)


# ------------------------------------------------------------------------------------------------- looking


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom autokernel.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "print(sorted({'torch', 'numpy', 'pandas', 'matplotlib', 'optuna', 'git', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_list_names_everything_that_is_there() -> None:
    result = invoke("list", "--json")
    tables = json.loads(result.stdout)
    for kind in registry.EXPORTS:
        assert sorted(tables[kind]) == registry.names(kind)
        assert all(summary for summary in tables[kind].values())
    assert {Path(path).stem for path in tables["models"]} >= {"llama", "gpt2", "bert", "template"}
    assert "[cpp, cuda, triton]" in tables["problems"]["rmsnorm"]
    shown = invoke("list")
    assert shown.exit_code == 0
    assert "rmsnorm" in shown.output


def test_doctor_finds_this_machine_fit(tmp_path: Path) -> None:
    done = command("doctor", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    findings = {f["what"]: f for f in json.loads(done.stdout)}
    assert findings["torch"]["state"] == "ok"
    assert findings["compiler"]["state"] == "ok"
    assert {"git", "ninja", "apache-tvm-ffi", "/dev/shm", "sandbox landlock", "backend cpp"} <= set(findings)
    assert all(f["mend"] for f in findings.values() if f["state"] in ("missing", "fatal"))


def test_doctor_names_what_is_missing_with_the_command_that_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autokernel import doctor

    def no_torch(*arguments: str) -> dict[str, Any]:
        raise AutokernelError("No module named 'torch'")

    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    findings = {f.what: f for f in doctor.examine("cpu", no_torch)}
    assert findings["compiler"].state == "missing"
    assert findings["compiler"].mend == "apt-get install g++"
    assert findings["torch"].state == "fatal"
    assert doctor.fatal(list(findings.values()))


def test_doctor_does_not_believe_a_compiler_that_cannot_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autokernel import doctor

    fake = tmp_path / "c++"
    fake.write_text('#!/bin/sh\ntest "$1" = --version && echo "fake 1.0"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    found = doctor._compiler()
    assert found.state == "missing"
    assert "OpenMP" in found.detail
