"""The playbook against a made-up kernel whose best constants are known."""

from __future__ import annotations

import functools
import itertools
import math
import re

import pytest

from autokernel.extension import Brief, ProposerOptions
from autokernel.proposers import _tune
from autokernel.proposers.playbook import Playbook, create
from autokernel.registry import load
from autokernel.types import (
    Candidate,
    Comparison,
    Experiment,
    Measurements,
    Status,
    Target,
    Verdict,
    Workload,
    source_id,
)

KERNEL = '''"""A kernel that no compiler sees."""

import torch

KERNEL_TYPE = "softmax"
BACKEND = "none"

MR = 6  # tune: 4, 6, 8, 12, 14 | rows of the register tile
VEC = 8  # tune: 4, 8, 16 | floats in a vector
KC = 256  # tune: 64, 128, 256, 512, 1024 | depth of a block
MODE = "static"  # tune: "static", "dynamic", "guided" | how work goes to threads
'''
TARGET = Target("softmax", "softmax", "none", (Workload({"R": 1, "C": 1}, "fp32"),), 0.5, 5000.0, 10.0)


def knobs(source: str) -> dict:
    return {constant.name: constant.value for constant in _tune.constants(source)}


def latency_us(source: str) -> float | None:
    """Best at MR=12, VEC=16, KC=512, dynamic; a wide tile of small vectors does not work at all."""
    k = knobs(source)
    if k["MR"] == 14 and k["VEC"] == 16:
        return None
    tile = abs(math.log2(k["MR"] * k["VEC"] / 192))
    return 100 * (1 + 0.3 * tile) * (1 + 0.1 * abs(math.log2(k["KC"] / 512))) * (0.95 if k["MODE"] == "dynamic" else 1)


def experiment(number: int, candidate: Candidate, incumbent: str | None, model=latency_us) -> Experiment:
    now = model(candidate.source)
    if now is None:
        verdict, comparison = Verdict(Status.BUILD, "build", "too many registers"), None
    else:
        verdict = Verdict(Status.PASS, "done", "", measurements=Measurements(now, {"eager": 200.0}, 50.0, {}, 0.1))
        comparison = None
        if incumbent is not None:
            before = model(incumbent)
            ratio = math.log(before / now)
            comparison = Comparison(ratio, ratio - 1e-3, ratio + 1e-3, 8, ratio > 0.005, "", before, now)
    decision = "baseline" if incumbent is None else "keep" if comparison and comparison.keep else "revert"
    return Experiment(number, "", TARGET, candidate, verdict, comparison, decision, 1.0, "")


def tune(kernel: str = KERNEL, most: int = 60, model=latency_us, target: Target = TARGET) -> list[Experiment]:
    """What a greedy run does, with a new playbook each time: it can remember nothing."""
    history = [experiment(1, Candidate("softmax", kernel, "", "baseline", "starter"), None, model)]
    strategy = load("strategies", "greedy")()
    while len(history) <= most:
        source = strategy.ask(history)
        brief = Brief(target, source, history[-1].verdict.measurements, tuple(history), {}, seed=3)
        proposal = create(ProposerOptions()).propose(brief)
        assert create(ProposerOptions()).propose(brief) == proposal, "the same brief was answered in two ways"
        if proposal is None:
            break
        candidate = Candidate("softmax", proposal.source, source_id(source), proposal.idea, "playbook")
        history.append(experiment(len(history) + 1, candidate, source, model))
        strategy.tell(history[-1])
    return history


@functools.cache
def usual() -> list[Experiment]:
    return tune()


def test_it_finds_the_best_constants_and_never_repeats_itself():
    history = usual()
    sources = [e.candidate.source for e in history]
    assert len(set(sources)) == len(sources)
    best = min(
        latency_us(_tune.with_values(KERNEL, dict(zip(knobs(KERNEL), values, strict=True)))) or math.inf
        for values in itertools.product(*(constant.choices for constant in _tune.constants(KERNEL)))
    )
    kept = [e for e in history if e.decision == "keep"]
    assert latency_us(kept[-1].candidate.source) <= best * 1.03
    assert latency_us(KERNEL) > best * 1.5
    assert kept[-1].number <= 30


def test_first_moves_change_one_constant_each_and_say_so():
    history = tune(most=6)
    for past in history[1:]:
        before = knobs(next(e.candidate.source for e in history if e.candidate.id == past.candidate.parent))
        after = knobs(past.candidate.source)
        changed = [name for name in after if after[name] != before[name]]
        assert len(changed) == 1
        (name,) = changed
        assert past.candidate.idea.startswith(f"tier 1: {name} {before[name]} -> {after[name]}")
        note = next(c.note for c in _tune.constants(KERNEL) if c.name == name)
        assert note in past.candidate.idea


def test_a_direction_that_won_is_followed():
    history = tune(most=12)
    kept = [e for e in history if e.decision == "keep"]
    assert any("further the way that won" in e.candidate.idea for e in kept)


def test_constants_that_surely_do_nothing_wait_until_all_else_was_tried():
    """As the row length has it from which another kernel serves, and that one's block, where all rows are short."""
    more = "ROW = 64  # tune: 32, 64, 128 | longest row of these\nBLOCK = 2  # tune: 1, 2, 4 | of longer ones\nMR = 6"
    history = tune(KERNEL.replace("MR = 6", more), most=90)
    moves = [(past.candidate.idea[:6], set(re.findall(r"(\w+) \S+ ->", past.candidate.idea))) for past in history[1:]]
    idle = [number for number, (_, names) in enumerate(moves) if names <= {"ROW", "BLOCK"}]
    joint = [number for number, (tier, _) in enumerate(moves) if tier == "tier 3"]
    assert [moves[number] for number in idle[:2]] == [("tier 1", {"ROW"}), ("tier 1", {"BLOCK"})]
    assert idle[1] < joint[0] < idle[2], moves
    singles = [number for number, (tier, _) in enumerate(moves) if tier == "tier 1"]
    together = [number for number in idle if len(moves[number][1]) == 2]
    assert together and together[0] > singles[-1], "two of them are tried together, and last"
    assert latency_us(best_of(history)) == latency_us(best_of(usual()))


def best_of(history: list[Experiment]) -> str:
    return [past for past in history if past.decision in ("baseline", "keep")][-1].candidate.source


def test_it_ends_when_everything_was_tried_or_patience_is_over():
    history = tune(most=500)
    assert 20 < len(history) < 200
    assert any(e.candidate.idea.startswith("tier 3: ") for e in history)
    tiny = KERNEL.split("VEC = ")[0]
    assert len(tune(tiny, 100, model=lambda source: 100.0)) == 1 + 4
    assert len(tune(KERNEL.split("MR = ")[0], 100, model=lambda source: 100.0)) == 1


def test_failures_teach():
    """Where every larger MR fails to build, the largest is not tried at once after the next larger one."""

    def model(source):
        return None if knobs(source)["MR"] > 6 else 100.0

    history = tune(most=8, model=model)
    tried = [knobs(e.candidate.source)["MR"] for e in history]
    assert tried.count(8) >= 1 and 12 not in tried and 14 not in tried


CPP = '''import torch
import tvm_ffi.cpp

KERNEL_TYPE = "softmax"
BACKEND = "cpp"

GRAIN = 4096  # tune: 1, 4096 | elements under which one thread does all the work

SOURCE = """
#include <tvm/ffi/container/tensor.h>
#include <vector>
using tvm::ffi::TensorView;

void row(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = x[i] * 2;
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += y[i];
  y[0] = sum;
}

void launch(TensorView x, TensorView y) {
  #pragma omp parallel for schedule(static) if (x.size(0) > GRAIN)
  for (int64_t r = 0; r < x.size(0); ++r) {
    std::vector<float> buffer(x.size(1));
    row(static_cast<const float*>(x.data_ptr()), buffer.data(), x.size(1));
  }
}
"""

module = tvm_ffi.cpp.load_inline(
    "softmax", cpp_sources=SOURCE, functions=["launch"], extra_cflags=["-O2", "-fopenmp", f"-DGRAIN={GRAIN}"],
    extra_ldflags=["-fopenmp"],
)


def kernel_fn(x):  # größer ist nicht besser
    y = torch.empty_like(x)
    module.launch(x, y)
    return y
'''


def recipe_of(name: str, source: str, latency: float = 5000.0, backend: str = "cpp", problem: str = "softmax"):
    from autokernel.proposers.recipes import recipes

    target = Target("t", problem, backend, (Workload({"R": 1}, "fp32"),), 0.5, latency, 1.0)
    (recipe,) = [recipe for recipe in recipes(backend) if recipe.name == name]
    return recipe.apply(source, Brief(target, source, None, (), {}, 0))


def gained(before: str, after: str) -> list[str]:
    old = before.split("\n")
    return [line.strip() for line in after.split("\n") if line not in old]


def test_cpp_recipes_edit_what_they_say():
    edited = recipe_of("simd", CPP)
    assert gained(CPP, edited) == ["#pragma omp simd"]
    following = edited.split("#pragma omp simd\n")[1]
    assert following.lstrip().startswith("for (int64_t i = 0; i < n; ++i) y[i]"), "a sum is no element-wise loop"
    assert "const float* __restrict__ x, float* __restrict__ y" in recipe_of("restrict", CPP)
    assert "for schedule(dynamic) if" in recipe_of("dynamic schedule", CPP)
    assert "std::unique_ptr<float[]> buffer(new float[x.size(1)])" in recipe_of("no zero fill", CPP)
    assert '"-funroll-loops"]' in recipe_of("unrolled loops", CPP)
    assert recipe_of("unrolled loops", recipe_of("unrolled loops", CPP)) is None
    assert "ask_for_huge_pages(y)" in recipe_of("huge pages", CPP)
    assert recipe_of("huge pages", CPP, latency=20.0) is None, "no page is worth a thought in a call this short"
    assert "omp parallel" not in recipe_of("one thread", CPP, latency=20.0)
    assert recipe_of("one thread", CPP) is None
    assert "_launch(x, y)" in recipe_of("direct launch", CPP, latency=20.0)


def test_recipes_need_their_pattern():
    from autokernel.proposers.recipes import recipes

    bare = 'KERNEL_TYPE = "softmax"\n\n\ndef kernel_fn(x):\n    return x\n'
    for recipe in recipes("cpp"):
        assert recipe_of(recipe.name, bare, latency=20.0) is None, recipe.name
    found = {r.name: recipe_of(r.name, bare, backend="torch", problem="none") for r in recipes("torch")}
    assert [name for name, edited in found.items() if edited is not None] == ["compiled"]
    assert recipes("no such backend") == ()


TORCH = """import torch

KERNEL_TYPE = "rmsnorm"
BACKEND = "torch"


def kernel_fn(x, weight, eps=1e-6):
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return normed * weight
"""


def test_torch_recipes_keep_the_result():
    torch = pytest.importorskip("torch")

    def run(source):
        scope: dict = {}
        exec(source, scope)
        generator = torch.Generator().manual_seed(1)
        x, weight = torch.randn(5, 8, generator=generator), torch.randn(8, generator=generator)
        return scope["kernel_fn"](x, weight)

    expected = run(TORCH)
    for name in ("library call", "square", "in place"):
        edited = recipe_of(name, TORCH, backend="torch", problem="rmsnorm")
        assert edited is not None and edited != TORCH, name
        assert torch.allclose(run(edited), expected, atol=1e-5), name
    assert recipe_of("in place", TORCH, backend="torch").count("normed.mul_(weight)") == 1


def test_recipes_are_tried_once_each_after_the_constants():
    from dataclasses import replace

    history = tune(CPP, 60, model=lambda source: 5000.0, target=replace(TARGET, backend="cpp"))
    tiers = [e.candidate.idea.split(":")[0] for e in history[1:]]
    assert tiers[0] == "tier 1" and tiers == sorted(tiers) and tiers.count("tier 2") >= 12
    names = [e.candidate.idea.split(": ")[1] for e in history[1:] if e.candidate.idea.startswith("tier 2")]
    assert len(names) == len(set(names))
    for past in history:
        compile(past.candidate.source, "candidate", "exec")


def test_a_playbook_is_a_proposer_by_name():
    assert load("proposers", "playbook")(ProposerOptions()).name == Playbook.name == "playbook"
