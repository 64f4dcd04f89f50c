"""What a person reads of a verification: figures with their interval, what they come to, and why they differ."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from autokernel import present, proof, report
from autokernel.run import history
from autokernel.run.history import Row
from autokernel.types import AutokernelError

COMMIT = "1" * 40


def ratio(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.02, "high": mean + 0.02}


def verification(ours: float, compiled: float, **changes: Any) -> dict[str, Any]:
    """Of a model whose eager forward takes 100 ms; ``ours`` and ``compiled`` are speedups over it."""
    step = {"target": "rmsnorm", "commit": COMMIT, "applied": True, "reason": "pays end to end", "gain": ratio(ours),
            "regions": 4, "calls_a_forward": 4.0, "refused": {}}  # fmt: skip
    return {
        "forward_us": {"eager": 1e5, "compile": 1e5 / compiled, "ours": 1e5 / ours},
        "speedup": {
            "compile": {"eager": ratio(compiled)},
            "ours": {"eager": ratio(ours), "compile": ratio(ours / compiled)},
        },
        "steps": {"ours": [step]},
        "outputs": {"ours": {"passed": True, "error": 3e-7, "original_error": 2e-7, "worst": "output 0"}},
        "best": "ours",
        "projection": {"all": 1.8, "applied": 1.6, "walls": 1.5},
        "train": False,
        "kernels": {"rmsnorm": {"commit": COMMIT, "applied": True}},
        **changes,
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    row = Row(
        experiment=1, time="2026-01-01T00:00:00Z", target="rmsnorm", problem="rmsnorm", backend="cpp",
        proposer="starter", idea="baseline", status="PASS", stage="done", decision="baseline", latency_us=2.5e4,
        incumbent_us=None, speedup=None, ci_low=None, ci_high=None, speedup_vs_eager=2.0, speedup_vs_best=1.5,
        pct_peak=50.0, seconds=1.0, tokens_in=0, tokens_out=0, cost_usd=0.0, commit=COMMIT, parent="0" * 40,
    )  # fmt: skip
    target = {"name": "rmsnorm", "problem": "rmsnorm", "backend": "cpp", "workloads": [], "share": 0.5,
              "eager_us": 5e4, "floor_us": 1e3}  # fmt: skip
    profile = {"model": "tiny.py", "graph_breaks": 0, "fingerprint": "abc", "targets": [target]}
    (tmp_path / "profile.json").write_text(json.dumps(profile))
    (tmp_path / "results.tsv").write_text(history.render([row]))
    return tmp_path


def write(run: Path, data: dict[str, Any]) -> proof.Proof:
    (run / proof.FILE).write_text(json.dumps(data))
    found = proof.read(run)
    assert found is not None
    return found


def test_a_gain_is_told_against_the_best_without_kernels(run: Path) -> None:
    found = write(run, verification(1.5, 1.2))
    told = found.headline()
    assert found.advised == "ours"
    assert told.startswith("measured end to end: ours is 1.25x [1.23, 1.27] over torch.compile")
    assert "1.50x [1.48, 1.52] over eager" in told


def test_a_loss_is_an_honest_no(run: Path) -> None:
    found = write(run, verification(1.5, 1.9))
    told = found.headline()
    assert (found.fastest, found.advised) == ("ours", "compile")
    assert told.startswith("not faster end to end") and told.endswith("stay with torch.compile")


def test_no_gain_over_eager_is_told_without_what_beats_it(run: Path) -> None:
    write(run, verification(1.25, 1.34))
    assert present.headline(report.build(run)).endswith("; torch.compile alone 1.34x")
    write(run, verification(1.5, 1.2))
    assert "alone" not in present.headline(report.build(run))


def test_within_the_interval_nothing_is_claimed(run: Path) -> None:
    assert write(run, verification(1.5, 1.5)).headline().startswith("no difference shown end to end")
    write(run, verification(1.01, 0.9))
    told = present.headline(report.build(run))
    assert "forward pass not shown to be faster than eager, 1.01x [0.99, 1.03]" in told and "as fast as" not in told


def test_wrong_outputs_come_first(run: Path) -> None:
    wrong = {"ours": {"passed": False, "error": 0.1, "original_error": 2e-7, "worst": "output 0"}}
    found = write(run, verification(9.0, 1.2, outputs=wrong))
    assert "outputs of ours are wrong: apply nothing" in found.headline()
    assert proof.tables(found)[0][-1][-1] == "WRONG: output 0"


def graphed(**changes: Any) -> dict[str, Any]:
    """Of the same model on a GPU: CUDA graphs are the best without kernels, and ours beside them are no better."""
    told = verification(1.5, 1.2)
    times = {**told["forward_us"], "compile+graphs": 5e4, "ours+graphs": 4.9e4}
    beside = {"eager": ratio(2.04), "compile": ratio(1.7), "compile+graphs": ratio(1.01)}
    speedup = {
        **told["speedup"],
        "compile+graphs": {"eager": ratio(2.0), "compile": ratio(1.67)},
        "ours+graphs": beside,
    }
    speedup["ours"] = {**speedup["ours"], "compile+graphs": ratio(0.75)}
    steps = {**told["steps"], "ours+graphs": told["steps"]["ours"]}
    outputs = {**told["outputs"], "ours+graphs": told["outputs"]["ours"]}
    return {**told, "forward_us": times, "speedup": speedup, "steps": steps, "outputs": outputs, **changes}


def test_cuda_graphs_are_a_rival_and_a_mode(run: Path) -> None:
    found = write(run, graphed())
    assert (found.rival, found.fastest, found.advised) == ("compile+graphs", "ours+graphs", "compile+graphs")
    told = found.headline()
    assert told.startswith("no difference shown end to end: ours + CUDA graphs is 1.01x [0.99, 1.03] over CUDA graphs")
    models, trials = proof.tables(found)
    assert models[0][2:5] == ("over eager", "over torch.compile", "over CUDA graphs")
    assert [row[0] for row in models[1:]] == [
        "eager", "torch.compile", "CUDA graphs", "ours", "ours + CUDA graphs"
    ]  # fmt: skip
    assert [row[1] for row in trials[1:]] == ["eager", "CUDA graphs"]


def test_what_could_not_be_had_is_told_with_its_reason(run: Path) -> None:
    why = {"error": "NotRecorded", "reason": "PyTorch cannot record this model"}
    found = write(run, verification(1.5, 1.2, failed={"compile+graphs": why, "ours+graphs": why}))
    rows = proof.tables(found)[0]
    assert rows[-1] == (
        "ours + CUDA graphs",
        "–",
        "",
        "",
        "not to be had: NotRecorded: PyTorch cannot record this model",
    )
    assert found.headline().startswith("measured end to end: ours is 1.25x")
    assert "not to be had: NotRecorded" in present.markdown(report.build(run))


def barren(run: Path, **changes: Any) -> None:
    """The same run, had its kernel been slower than eager."""
    profile = json.loads((run / "profile.json").read_text())
    (run / "profile.json").write_text(json.dumps({**profile, **changes}))
    rows = [dataclasses.replace(row, latency_us=5e4 / 0.9, speedup_vs_eager=0.9) for row in history.read(run)]
    (run / "results.tsv").write_text(history.render(rows))


def test_a_run_that_won_nothing_says_so_and_what_there_is_without(run: Path) -> None:
    none: dict[str, Any] = {"kernels": {}, "steps": {}, "outputs": {}}
    times = {"forward_us": {"eager": 1e5, "compile": 5e4}, "speedup": {"compile": {"eager": ratio(2.0)}}}
    barren(run)
    told = write(run, verification(1.0, 2.0, **none, **times)).headline()
    assert told == (
        "nothing is to be applied: no kernel of this run beats eager; torch.compile is 2.00x [1.98, 2.02] over eager"
    )
    text = present.markdown(report.build(run))
    assert told in text and "| kernel | beside |" not in text


def test_where_no_kernel_pays_nothing_is_applied_whatever_the_times(run: Path) -> None:
    """The modes differ from eager all the same: Dynamo runs the model, and no kernel does."""
    told = verification(1.5, 1.2)
    left_out = {**told["steps"]["ours"][0], "applied": False, "reason": "not shown to pay end to end"}
    found = write(run, {**told, "steps": {"ours": [left_out]}})
    assert (found.fastest, found.applied, found.advised) == (None, (), "compile")
    assert found.headline() == (
        "nothing is to be applied: no kernel was shown to pay end to end; "
        "torch.compile is 1.20x [1.18, 1.22] over eager"
    )
    assert found.why() == ["projected 1.80x over eager by Amdahl's law; beside eager no kernel is applied"]
    assert present.headline(report.build(run)).endswith("; nothing is to be applied")


def test_the_title_names_the_mode_where_it_is_not_the_owners_own(run: Path) -> None:
    told = graphed()
    told["steps"]["ours"] = [{**told["steps"]["ours"][0], "applied": False}]
    write(run, told)
    assert "2.04x as fast as eager (ours + CUDA graphs, measured" in present.headline(report.build(run))


@pytest.mark.parametrize("timed", [True, False])
def test_and_says_so_where_no_forward_was_measured(run: Path, timed: bool) -> None:
    lever = {"name": "torch.compile", "kind": "compile", "speedup": 1.7, "low": 1.6, "high": 1.8, "skipped": ""}
    barren(run, levers=[{**lever, "speedup": None, "low": None, "high": None}, *([lever] if timed else [])])
    text = present.markdown(report.build(run))
    known = "torch.compile alone is 1.70x [1.60, 1.80] over eager" if timed else "autokernel verify times"
    assert "Nothing is to be applied: no kernel of this run beats eager" in text and known in text


def test_projection_and_measurement_stand_side_by_side(run: Path) -> None:
    lines = write(run, verification(1.35, 1.2)).why()
    assert lines[0] == "projected 1.80x over eager by Amdahl's law, measured 1.35x"
    assert "1.60x is projected for the kernels that are applied" in lines[1]
    assert "1.50x once the time between kernels" in lines[2] and "10% less" in lines[3]


def test_the_report_takes_the_proof_of_the_kernels_that_stand(run: Path) -> None:
    write(run, verification(1.5, 1.2))
    built = report.build(run)
    assert built.proof is not None and "1.50x as fast as eager (measured; projected" in present.headline(built)
    text = present.markdown(built)
    assert "## The whole model, measured" in text and "| rmsnorm | eager | 4 | 4 |" in text
    write(run, verification(1.5, 1.2, kernels={"rmsnorm": {"commit": "2" * 40, "applied": True}}))
    assert report.build(run).proof is None, "another kernel was verified"


def test_of_training_whole_steps_are_told_and_nothing_is_projected(run: Path) -> None:
    found = write(run, verification(1.5, 1.2, train=True, projection={}))
    assert proof.tables(found)[0][0][1] == "step" and found.why() == []
    told = present.headline(report.build(run))
    assert "a training step 1.50x as fast as eager (measured)" in told and "projected" not in told


def test_a_torn_file_is_one_clear_line(run: Path) -> None:
    (run / proof.FILE).write_text('{"forward_us": ')
    with pytest.raises(AutokernelError, match=r"verification\.json cannot be read .*autokernel verify"):
        report.build(run)
