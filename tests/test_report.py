"""What a report says follows from the rows and the files beside them, and from nothing else."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from autokernel import charts, present, proof, report
from autokernel.advice import advise
from autokernel.cli import main
from autokernel.run import history
from autokernel.run.history import Row
from autokernel.types import AutokernelError, Target, Workload

PNG = b"\x89PNG\r\n\x1a\n"


def make_row(number: int, decision: str = "revert", **changes: Any) -> Row:
    row = Row(
        experiment=number, time=f"2026-01-01T00:00:{number:02d}Z", target="rmsnorm", problem="rmsnorm", backend="cpp",
        proposer="playbook", idea="GRAIN 1 -> 4096", status="PASS", stage="timing", decision=decision, latency_us=100.0,
        incumbent_us=110.0, speedup=1.1, ci_low=1.05, ci_high=1.15, speedup_vs_eager=4.0, speedup_vs_best=2.0,
        pct_peak=50.0, seconds=3.0, tokens_in=0, tokens_out=0, cost_usd=0.0, commit=f"{number:040x}",
        parent=f"{max(number - 1, 0):040x}",
    )  # fmt: skip
    failed = changes.get("status", "PASS") != "PASS"
    unmeasured = (
        "latency_us",
        "incumbent_us",
        "speedup",
        "ci_low",
        "ci_high",
        "speedup_vs_eager",
        "speedup_vs_best",
        "pct_peak",
    )
    return dataclasses.replace(row, **(dict.fromkeys(unmeasured) if failed else {}), **changes)


ROWS = (
    make_row(1, "baseline", speedup_vs_eager=2.0, speedup_vs_best=1.0, speedup=None, ci_low=None, ci_high=None),
    make_row(2, "revert", status="BUILD", stage="smoke"),
    make_row(3, "keep"),
    make_row(4, "aa", speedup=1.0, ci_low=0.99, ci_high=1.01),
    make_row(
        5, "baseline", target="softmax", problem="softmax", latency_us=800.0, speedup_vs_eager=0.5, speedup_vs_best=0.4
    ),
)


def make_target(name: str, share: float) -> Target:
    workload = Workload({"R": 8, "C": 16}, "fp32", count=3)
    return Target(name, name, "cpp", (workload,), share=share, eager_us=400.0, floor_us=40.0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "results" / "tiny-cpu"
    folder.mkdir(parents=True)
    (folder / "results.tsv").write_text(history.render(ROWS))
    targets = [make_target(n, s).to_json() for n, s in (("rmsnorm", 0.5), ("softmax", 0.3), ("matmul", 0.1))]
    (folder / "profile.json").write_text(json.dumps({"model": "tiny.py", "graph_breaks": 1, "targets": targets}))
    verdict = {"status": "BUILD", "stage": "smoke", "reason": "undefined reference | to\nnothing"}
    (folder / "experiments" / "2").mkdir(parents=True)
    (folder / "experiments" / "2" / "verdict.json").write_text(json.dumps(verdict))
    return folder


def write_headline(run: Path, commit: str, **changes: Any) -> None:
    entry = {"commit": commit, "status": "PASS", "latency_us": 80.0, "speedup_vs_eager": 5.0, "speedup_vs_best": 2.5,
             "pct_peak": 62.0} | changes  # fmt: skip
    (run / "headline.json").write_text(json.dumps({"version": 1, "targets": {"rmsnorm": entry}}))


def test_json_has_exactly_the_promised_keys(run: Path) -> None:
    data = report.build(run).to_json()
    assert list(data) == ["run", "experiments", "kept", "targets", "projected_speedup", "measured"]
    assert [list(t) for t in data["targets"]] == [
        [
            "name",
            "problem",
            "backend",
            "share",
            "experiments",
            "kept",
            "speedup_vs_eager",
            "speedup_vs_best",
            "pct_peak",
            "file",
        ]
    ] * 3
    assert (data["run"], data["experiments"], data["kept"]) == ("tiny-cpu", 5, 1)
    first = data["targets"][0]
    assert first == {
        "name": "rmsnorm", "problem": "rmsnorm", "backend": "cpp", "share": 0.5, "experiments": 4, "kept": 1,
        "speedup_vs_eager": 4.0, "speedup_vs_best": 2.0, "pct_peak": 50.0, "file": "kernels/rmsnorm.py",
    }  # fmt: skip


def test_projection_is_amdahls_law_and_ignores_what_is_slower_than_eager(run: Path) -> None:
    # rmsnorm: half of the time, 4 times faster; softmax: slower than eager, so it is not put in; matmul: untried.
    assert report.build(run).projected_speedup == pytest.approx(1 / (1 - 0.5 * 0.75))


def test_what_a_model_spells_out_is_held_against_its_own_code(run: Path) -> None:
    profile = json.loads((run / "profile.json").read_text())
    profile["targets"][1]["eager_us"] = 2000.0  # softmax; PyTorch's operator takes 400, the kernel 800
    (run / "profile.json").write_text(json.dumps(profile))
    built = report.build(run)
    assert built.projected_speedup == pytest.approx(1 / (1 - 0.5 * 0.75 - 0.3 * 0.6))
    advice = "\n".join(advise(built))
    assert "spells out softmax: its own code takes 2000 us a forward, softmax's PyTorch baseline 400 us" in advice
    (run / "profile.json").write_text(json.dumps({**profile, "fingerprint": ""}))
    assert proof.winners(run, history.read(run)) == {"rmsnorm": ROWS[2].commit, "softmax": ROWS[4].commit}


def test_a_headline_counts_only_for_the_commit_that_stands(run: Path) -> None:
    write_headline(run, ROWS[2].commit)
    target = report.build(run).targets[0]
    assert (target.speedup_vs_best, target.source) == (2.5, "headline")
    write_headline(run, ROWS[0].commit)
    target = report.build(run).targets[0]
    assert (target.speedup_vs_best, target.source) == (2.0, "experiment 3")


def test_a_champion_that_failed_the_thorough_judgement_is_worth_nothing_and_named(run: Path) -> None:
    write_headline(
        run,
        ROWS[2].commit,
        status="SHAPES",
        latency_us=None,
        speedup_vs_eager=None,
        speedup_vs_best=None,
        pct_peak=None,
    )
    built = report.build(run)
    assert built.targets[0].speedup_vs_best is None
    assert built.projected_speedup == pytest.approx(1.0)
    assert any("Do not trust" in line and "rmsnorm" in line for line in advise(built))


def test_a_lone_table_gives_a_report_without_shares(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.tsv"
    alone.write_text((run / "results.tsv").read_text())
    built = report.build(alone)
    assert built.projected_speedup is None
    assert [t.share for t in built.targets] == [None, None]
    assert built.targets[0].speedup_vs_best == 2.0


def test_false_keeps_and_failures_are_counted(run: Path) -> None:
    built = report.build(run)
    assert (built.aa_kept, built.aa_total) == (0, 1)
    assert [(f.status, f.count, f.last_experiment) for f in built.failures] == [("BUILD", 1, 2)]
    assert "undefined reference" in built.failures[0].reason
    assert built.judged_s == pytest.approx(15.0)


def test_advice_names_what_to_do_next(run: Path) -> None:
    advice = "\n".join(advise(report.build(run)))
    assert "softmax has the most left to win" in advice  # 30 % of the time, still at eager's pace
    assert "Not tried yet: matmul" in advice
    assert "Do not put into the model yet: softmax" in advice
    assert "1 graph break" in advice


def test_what_was_not_tried_has_left_what_its_roofline_leaves(run: Path) -> None:
    profile = json.loads((run / "profile.json").read_text())
    profile["targets"][2].update(share=0.6, floor_us=396.0)  # matmul, the largest of all, and as fast as it can be
    (run / "profile.json").write_text(json.dumps(profile))
    (run / "results.tsv").write_text(history.render(ROWS[:1]))
    assert "softmax has the most left to win" in "\n".join(advise(report.build(run)))


def test_a_kernel_that_came_without_a_model_is_not_called_a_forward_pass(run: Path) -> None:
    profile = json.loads((run / "profile.json").read_text())
    told = [present.headline(report.build(run)), *advise(report.build(run))]
    assert sum("the whole forward pass" in line for line in told) == 2
    (run / "profile.json").write_text(json.dumps({"targets": profile["targets"][:1]}))
    told = [present.headline(report.build(run)), *advise(report.build(run))]
    assert sum("the kernel" in line for line in told) == 2 and not any("forward" in line for line in told)


def test_a_noisy_judge_is_named(run: Path) -> None:
    rows = [make_row(1, "baseline"), *(make_row(n, "aa", ci_low=1.01) for n in range(2, 30))]
    (run / "results.tsv").write_text(history.render(rows))
    assert any("A/A candidates would have been kept" in line for line in advise(report.build(run)))


def test_markdown_tables_cannot_be_broken_by_an_idea(run: Path) -> None:
    rows = [ROWS[0], make_row(2, "keep", idea="a | b\nc\td | e")]
    (run / "results.tsv").write_text(history.render(rows))
    text = present.markdown(report.build(run))
    kept = text.split("## What was kept")[1].strip().splitlines()
    columns = [line.replace("\\|", "").count("|") for line in kept if line.startswith("|")]
    assert len(columns) == 3
    assert len(set(columns)) == 1


def test_files_are_written_and_the_picture_is_one(run: Path) -> None:
    text, picture = present.write(report.build(run))
    assert "rmsnorm" in text.read_text()
    assert picture.read_bytes().startswith(PNG)
    assert picture.stat().st_size > 10_000


def test_running_best_follows_the_branch() -> None:
    points = [
        {"experiment": n, "target": target, "decision": decision, "speedup": speedup}
        for n, target, decision, speedup in [
            (1, "a", "baseline", 0.5), (2, "a", "revert", 0.9), (3, "b", "baseline", 1.0), (4, "a", "keep", 0.8),
            (5, "a", "revert", None), (6, "b", "revert", 3.0),
        ]
    ]  # fmt: skip
    assert list(charts.running_best(points)["champion"]) == [0.5, 0.5, 1.0, 0.8, 0.8, 1.0]


@pytest.mark.parametrize("rows", [(), ROWS[1:2]], ids=["no rows", "only a failure"])
def test_a_run_with_nothing_to_show_still_reports(run: Path, rows: tuple[Row, ...]) -> None:
    renumbered = [dataclasses.replace(row, experiment=n) for n, row in enumerate(rows, start=1)]
    (run / "results.tsv").write_text(history.render(renumbered))
    built = report.build(run)
    assert built.projected_speedup == pytest.approx(1.0)
    assert all(path.is_file() for path in present.write(built))


# --------------------------------------------------------------------------------------------- the command


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(main, ["report", *arguments])


def test_the_command_prints_one_object(run: Path) -> None:
    result = invoke(str(run), "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["run"] == "tiny-cpu"
    assert not (run / "report.md").exists()


def test_the_command_shows_a_table_and_takes_the_newest_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = run.parent / "older-cpu"
    older.mkdir()
    (older / "results.tsv").write_text(history.HEADER + "\n")
    os.utime(older / "results.tsv", (1, 1))
    monkeypatch.chdir(run.parent.parent)
    result = invoke()
    assert result.exit_code == 0, result.output
    assert "tiny-cpu: 5 experiments, 1 kept" in result.output
    assert "2.00×" in result.output
    assert (run / "progress.png").is_file()


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("results.tsv", b"nonsense\n", "line 1"),
        ("results.tsv", history.render(ROWS).encode()[:-30], "line 6"),
        ("results.tsv", history.render(ROWS).replace("PASS", "PAS", 1).encode(), "'status'"),
        ("results.tsv", b"\xff\xfe\x00", "UTF-8"),
        ("profile.json", b"{", "profile.json"),
        ("profile.json", b"[]", "profile.json"),
        ("profile.json", b'{"targets": [{"name": 1}]}', "profile.json"),
        ("headline.json", b"{]", "headline.json"),
    ],
)
def test_a_corrupt_file_is_one_clear_line(run: Path, file: str, content: bytes, expected: str) -> None:
    (run / file).write_bytes(content)
    result = invoke(str(run))
    assert result.exit_code == 2
    assert expected in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert (run / file).read_bytes() == content  # looked at, never mended


@pytest.mark.parametrize("place", ["nowhere", "nowhere.tsv", "."])
def test_a_place_that_is_no_run_is_one_clear_line(run: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    result = invoke(place)
    assert result.exit_code == 2
    assert "expected" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_no_run_at_all_says_how_to_start_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = invoke()
    assert result.exit_code == 2
    assert "autokernel run MODEL.py" in result.stderr


def test_reading_raises_the_houses_error(tmp_path: Path) -> None:
    with pytest.raises(AutokernelError):
        report.build(tmp_path / "none")
