"""Baselines in runners of their own: what their compiler prepared once is there for the next."""

from __future__ import annotations

import torch

from autokernel import hardware, registry
from autokernel.assets import cache_folder
from autokernel.evaluate.contest import Contest
from autokernel.evaluate.workshop import Workshop
from autokernel.types import Target, Workload


def test_headers_that_inductor_precompiles_outlive_the_runner(workshop: Workshop) -> None:
    target = Target("softmax", "softmax", "cpp", (Workload({"R": 64, "C": 32}, "fp32"),), 1.0, 100.0, 1.0)
    contest = Contest(target, registry.load("problems", "softmax"), workshop, hardware.measure("cpu"))
    try:
        with torch.no_grad():
            sides = contest._baselines()
        assert list(sides["compile"].handle.scratch.rglob("*.gch")) == []
        assert list((cache_folder() / "baselines").rglob("*.gch"))
    finally:
        contest.close()
