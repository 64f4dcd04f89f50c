"""A run that won kernels: profiled and extracted for real, its rows written as the ledger writes them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from autokernel.regions import rank, uncovered, worker
from autokernel.regions.model import LoadedModel, load
from autokernel.run import history
from autokernel.run.history import Row

MODEL = Path(__file__).parent.parent / "models" / "small_decoder.py"


def write_rows(folder: Path, *, speedup: float = 2.0) -> None:
    """One passing baseline for each target, as fast as said; with the candidate that each was given for."""
    targets = json.loads((folder / "profile.json").read_text())["targets"]
    (folder / history.FILE).write_text(history.render([]))
    for number, target in enumerate(targets, start=1):
        row = Row(
            experiment=number, time="2026-01-01T00:00:00Z", target=target["name"], problem=target["problem"],
            backend=target["backend"], proposer="starter", idea="baseline", status="PASS", stage="done",
            decision="baseline", latency_us=target["eager_us"] / speedup, incumbent_us=None, speedup=None, ci_low=None,
            ci_high=None, speedup_vs_eager=speedup, speedup_vs_best=speedup, pct_peak=50.0, seconds=1.0, tokens_in=0,
            tokens_out=0, cost_usd=0.0, commit=f"{number:040x}", parent=f"{0:040x}",
        )  # fmt: skip
        history.append(folder / history.FILE, row)
        place = folder / "experiments" / str(number)
        place.mkdir(parents=True)
        shutil.copyfile(folder / "kernels" / f"{target['name']}.py", place / "candidate.py")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from threads, and on a busy machine they wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a run of the small decoder (or of another model) whose starters, in the backend that is named, all won."""

    def make(backend: str, model: Path = MODEL) -> Path:
        folder = tmp_path_factory.mktemp("won") / f"small-{backend}"
        arguments = ["--model", str(model), "--backend", backend, "--out", str(folder), "--warmup", "1", "--iters", "1"]
        with (
            pytest.MonkeyPatch.context() as patch
        ):  # which regions are worth it must not depend on this machine's noise
            patch.setattr(uncovered, "LEAST_SHARE", 2.0 if model == MODEL else 0.0)
            patch.setattr(uncovered, "LEAST_ADDED", 0.0)
            patch.setattr(rank, "LEAST_SHARE", 0.0)
            assert worker.main(arguments) == 0
        write_rows(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def torch_run(run_of: Callable[..., Path]) -> Path:
    """A run whose kernels are plain PyTorch: nothing to build."""
    return run_of("torch")


@pytest.fixture
def own_run(torch_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(torch_run, tmp_path / "run"))


@pytest.fixture
def decoder() -> LoadedModel:
    torch._dynamo.reset()
    return load(MODEL, "cpu", "fp32")


@pytest.fixture
def decoder_of() -> Callable[..., LoadedModel]:
    torch._dynamo.reset()
    return lambda **settings: load(MODEL, "cpu", "fp32", {k: str(v) for k, v in settings.items()})
