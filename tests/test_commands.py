"""The commands at work, each in a process of its own, with the real profiler, judge and playbook."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tiny import ENVIRONMENT, TINY_KERNEL, TINY_MODEL, command, line

from autokernel.run import history

MODELS = Path(__file__).parent / "models"


def test_bench_says_where_a_wrong_file_fails_and_exits_1(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(TINY_KERNEL.replace(" + eps", " + eps + 0.1"))
    done = command("bench", "wrong.py", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert re.search(r"✗ smoke: SMOKE: ", done.stdout)
    assert "PASS" not in done.stdout


def test_bench_judges_a_file_against_another(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(TINY_KERNEL)
    (tmp_path / "slow.py").write_text(
        TINY_KERNEL.replace("wide = x.float()", "wide = x.float()\n    for _ in range(40): wide = wide + 0.0")
    )
    done = command("bench", "good.py", "--against", "slow.py", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "✓ smoke" in done.stderr
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    keys = ("status", "stage", "reason", "latency_us", "speedup_vs_eager", "speedup_vs_best", "pct_peak", "seconds")
    assert set(keys) <= set(answer)
    assert answer["status"] == "PASS"
    assert answer["latency_us"] > 0
    assert answer["speedup_vs_best"] <= answer["speedup_vs_eager"]
    comparison = answer["comparison"]
    assert comparison["keep"] is True
    assert 1.0 < comparison["ci_low"] <= comparison["speedup"] <= comparison["ci_high"]


def test_extract_writes_files_that_bench_reads_and_never_replaces_them(tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(TINY_MODEL)
    done = command("extract", "tiny.py", "--iters", "2", "--warmup", "1", "--out", "mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    from autokernel import kernelfile

    written = {kernelfile.read(path).problem: path for path in (tmp_path / "mine").glob("*.py")}
    assert {"rmsnorm", "softmax"} <= set(written)
    assert kernelfile.read(written["rmsnorm"]).workloads[0].dims == {"R": 1024, "C": 256}
    written["rmsnorm"].write_text("# my own work")
    again = command("extract", "tiny.py", "--iters", "2", "--warmup", "1", "--out", "mine", cwd=tmp_path)
    assert again.returncode == 2
    assert "--force" in again.stderr
    assert written["rmsnorm"].read_text() == "# my own work"


def test_profile_adds_up_and_names_a_models_own_mistake(tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(TINY_MODEL)
    done = command("profile", "tiny.py", "--iters", "2", "--warmup", "1", "--no-levers", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert sum(row["share"] for row in found["rows"]) == pytest.approx(1.0)
    (tmp_path / "raises.py").write_text(
        TINY_MODEL.replace(
            "        return torch.softmax", "        raise KeyError('mine')\n        return torch.softmax"
        )
    )
    done = command("profile", "raises.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "mine" in done.stderr
    (tmp_path / "no_inputs.py").write_text(TINY_MODEL.replace("get_inputs", "inputs"))
    done = command("profile", "no_inputs.py", cwd=tmp_path)
    assert done.returncode == 2
    assert "get_inputs" in done.stderr


def test_a_run_is_stopped_by_a_signal_and_goes_on_from_there(tmp_path: Path) -> None:
    """The whole job: profile, extract, experiments; SIGTERM ends it with 143, and the same command again resumes."""
    (tmp_path / "tiny.py").write_text((MODELS / "softmax_only.py").read_text())
    run = line(*"run tiny.py --no-verify --aa-rate 0 --budget 5m --max-experiments 2".split())
    folder = tmp_path / "results" / "tiny-cpu"
    process = subprocess.Popen(
        run, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    table = folder / "results.tsv"
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if table.is_file() and len(table.read_text().splitlines()) >= 2:
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.1)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "to go on: autokernel run tiny.py" in errors
    profile, first = (folder / "profile.json").stat().st_mtime_ns, table.read_text().splitlines()
    done = subprocess.run(run, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "profile.json").stat().st_mtime_ns == profile, "the profile is made once"
    assert table.read_text().splitlines()[: len(first)] == first
    rows = history.read(folder)
    assert [row.experiment for row in rows] == [1, 2] and rows[0].decision == "baseline"
    assert {row.problem for row in rows} == {"softmax"} and rows[0].status == "PASS"
    assert rows[0].speedup_vs_eager and rows[0].speedup_vs_best
    if kept := [row for row in rows if row.decision == "keep"]:
        told = json.loads((folder / "headline.json").read_text())["targets"]
        assert told[kept[-1].target]["commit"] == kept[-1].commit
    assert (folder / "progress.png").is_file()
    assert "tiny-cpu: 2 experiments" in done.stdout
    assert (folder.parent / ".gitignore").read_text() == "*\n"
    assert not (folder / "scratch" / "judge").exists()
