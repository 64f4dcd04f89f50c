"""The adversarial inputs bite: each kernel here is right on ordinary inputs and wrong as a careless one would be."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from autokernel.evaluate.correctness import expected, mismatch
from autokernel.problems import cross_entropy, layernorm, reduce, rotary_embedding, softmax
from autokernel.types import Dims, DType, Problem, Scalar

Kernel = Callable[..., torch.Tensor]


def softmax_without_maximum(x: torch.Tensor) -> torch.Tensor:
    e = x.float().exp()
    return (e / e.sum(-1, keepdim=True)).to(x.dtype)


def softmax_that_masks_nan(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x.float(), -1).nan_to_num(0.0).to(x.dtype)


def softmax_from_a_finite_start(x: torch.Tensor) -> torch.Tensor:
    """A running maximum that starts at zero instead of -inf."""
    e = (x.float() - x.float().amax(-1, keepdim=True).clamp(min=0)).exp()
    return (e / e.sum(-1, keepdim=True)).to(x.dtype)


def layernorm_by_squares(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """E[x²] - E[x]²: one pass, and no digit left where the mean is large."""
    wide = x.float()
    mean = wide.mean(-1, keepdim=True)
    variance = wide.square().mean(-1, keepdim=True) - mean.square()
    return ((wide - mean) * torch.rsqrt(variance + eps) * weight + bias).to(x.dtype)


def layernorm_unbiased(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    wide = x.float()
    variance, mean = torch.var_mean(wide, -1, keepdim=True)
    return ((wide - mean) * torch.rsqrt(variance + eps) * weight + bias).to(x.dtype)


def layernorm_in_half(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """Squares in the input's own dtype: they overflow float16."""
    centred = x - x.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps) * weight + bias


def layernorm_without_eps(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    return layernorm.reference(x, weight, bias, 0.0)


def sum_in_half(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    total = torch.zeros_like(x.select(dim, 0))
    for part in x.unbind(dim):
        total = total + part
    return total


def sum_that_flushes(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    tiny = torch.finfo(x.dtype).smallest_normal
    return reduce.reference(torch.where(x.abs() < tiny, torch.zeros_like(x), x), dim)


def sum_of_finite(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    return reduce.reference(x.nan_to_num(0.0, 0.0, 0.0), dim)


def loss_of_log_softmax(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """log(softmax(x)): the logarithm of zero where the target's probability underflows."""
    p = torch.softmax(logits.float(), -1).gather(1, targets.clamp(min=0).unsqueeze(1))
    return -p.log().squeeze(1)[targets >= 0].mean().to(logits.dtype)


def loss_of_all_rows(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    losses = torch.logsumexp(logits.float(), -1) - logits.float().gather(1, targets.clamp(min=0).unsqueeze(1))[:, 0]
    return torch.where(targets >= 0, losses, torch.zeros_like(losses)).mean().to(logits.dtype)


def loss_without_maximum(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    picked = logits.float().gather(1, targets.clamp(min=0).unsqueeze(1)).squeeze(1)
    return (logits.float().exp().sum(-1).log() - picked)[targets >= 0].mean().to(logits.dtype)


def rotary_always_interleaved(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = True
) -> torch.Tensor:
    return rotary_embedding.reference(x, cos, sin, True)


def rotary_by_the_first_half(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = True
) -> torch.Tensor:
    """Takes for granted that a table of D columns holds each angle twice."""
    pairs = x.shape[-1] // 2
    pick = slice(0, None, 2) if interleaved and cos.shape[-1] > pairs else slice(0, pairs)
    return rotary_embedding.reference(x, cos[:, pick], sin[:, pick], interleaved)


def rotary_that_masks_nan(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = True
) -> torch.Tensor:
    return rotary_embedding.reference(x, cos, sin, interleaved).nan_to_num(0.0)


SMALL: dict[str, Dims] = {
    "softmax": {"R": 4, "C": 64},
    "layernorm": {"R": 4, "C": 512},
    "reduce": {"R": 4, "C": 8},
    "cross_entropy": {"R": 4, "V": 64},
    "rotary_embedding": {"B": 1, "H": 2, "S": 4, "D": 8},
}
CARELESS: Sequence[tuple[Problem, Kernel, DType, str]] = (
    (softmax.PROBLEM, softmax_without_maximum, "fp32", "large_equal_rows"),
    (softmax.PROBLEM, softmax_without_maximum, "bf16", "extremes"),
    (softmax.PROBLEM, softmax_without_maximum, "fp16", "outlier"),
    (softmax.PROBLEM, softmax_that_masks_nan, "fp32", "poisoned"),
    (softmax.PROBLEM, softmax_from_a_finite_start, "fp16", "large_equal_rows"),
    (layernorm.PROBLEM, layernorm_by_squares, "fp32", "large_mean"),
    (layernorm.PROBLEM, layernorm_in_half, "fp16", "scaled_rows"),
    (layernorm.PROBLEM, layernorm_without_eps, "fp32", "no_variance"),
    (reduce.PROBLEM, sum_in_half, "fp16", "same_sign_dim-1"),
    (reduce.PROBLEM, sum_in_half, "bf16", "same_sign_dim0"),
    (reduce.PROBLEM, sum_in_half, "bf16", "cancelling_dim-1"),
    (reduce.PROBLEM, sum_that_flushes, "fp16", "denormal_dim0"),
    (reduce.PROBLEM, sum_of_finite, "fp32", "poisoned_dim-1"),
    (cross_entropy.PROBLEM, loss_of_log_softmax, "fp32", "confident_wrong"),
    (cross_entropy.PROBLEM, loss_of_all_rows, "fp32", "ignored"),
    (cross_entropy.PROBLEM, loss_without_maximum, "fp32", "huge"),
    (rotary_embedding.PROBLEM, rotary_always_interleaved, "fp32", "quarter_turns_half"),
    (rotary_embedding.PROBLEM, rotary_by_the_first_half, "fp32", "poisoned_interleaved"),
    (rotary_embedding.PROBLEM, rotary_that_masks_nan, "fp16", "poisoned_half"),
)


def wrong(
    problem: Problem, kernel: Kernel, tensors: tuple[torch.Tensor, ...], dtype: DType, **scalars: Scalar
) -> str | None:
    used = {**problem.scalars, **scalars}
    want = expected(problem, tensors, used, 0, "cpu")
    return mismatch(kernel(*tensors, **used), want, problem.tolerances[dtype], statistical=False)[1]


@pytest.mark.parametrize(("problem", "kernel", "dtype", "name"), CARELESS)
def test_a_careless_kernel_falls(problem: Problem, kernel: Kernel, dtype: DType, name: str) -> None:
    generator = torch.Generator().manual_seed(7)
    tensors = problem.make_inputs(SMALL[problem.name], dtype, generator)
    assert wrong(problem, kernel, tensors, dtype) is None, "it should be right on ordinary inputs"
    adversary = next(a for a in problem.adversarial if a.name == name)
    tensors = adversary.make(adversary.dims, dtype, generator)
    assert wrong(problem, kernel, tensors, dtype, **adversary.scalars) is not None


def test_the_biased_variance_is_told_from_the_unbiased() -> None:
    problem = layernorm.PROBLEM
    tensors = problem.make_inputs({"R": 4, "C": 768}, "fp32", torch.Generator().manual_seed(7))
    assert wrong(problem, layernorm_unbiased, tensors, "fp32") is not None
