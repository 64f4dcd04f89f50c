"""One module a spelling: each region here is a problem written as some model writes it, and each decoy is none."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

ROWS, HIDDEN, HEADS, SEQ = 8, 32, 4, 16
SPELLING = "rmsnorm_division"


def configure(spelling: str = SPELLING) -> None:
    global SPELLING
    if spelling not in SPELLINGS:
        raise ValueError(f"spelling was expected to be one of {', '.join(SPELLINGS)}; got {spelling}")
    SPELLING = spelling


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(HIDDEN) + 0.5)
        self.bias = nn.Parameter(torch.randn(HIDDEN))
        self.matrix = nn.Parameter(torch.randn(HIDDEN, HIDDEN))
        self.up = nn.Linear(HIDDEN, 2 * HIDDEN, bias=False)
        self.gate = nn.Linear(HIDDEN, 2 * HIDDEN, bias=False)
        self.down = nn.Linear(2 * HIDDEN, HIDDEN, bias=False)
        self.biased = nn.Linear(HIDDEN, HIDDEN)
        self.register_buffer("mask", torch.ones(SEQ, SEQ, dtype=torch.bool).tril())
        angles = torch.arange(SEQ)[:, None] * 0.1 ** torch.arange(0, 1, 2 / HIDDEN)
        self.register_buffer("angles", angles)

    def inputs(self) -> list[torch.Tensor]:
        return [torch.randn(2, ROWS, HIDDEN)]


class RMSNormDivision(Body):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + 1e-5) * self.weight


class RMSNormFunctional(Body):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (HIDDEN,), self.weight)  # eps by dtype


class RMSNormEpsOutside(Body):
    """A decoy: eps is added to the root, not under it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x / ((x * x).mean(-1, keepdim=True).sqrt() + 1e-3))


class RMSNormShifted(Body):
    """A decoy: the weight is applied as 1 + weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * (1 + 0.5 * self.weight * self.weight)


class LayerNormSpelled(Body):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(-1, keepdim=True)
        return (x - mean) / torch.sqrt(variance + 1e-5) * self.weight + self.bias


class LayerNormUnbiased(Body):
    """A decoy: torch.std divides by n - 1, and eps is added to the deviation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6) + self.bias


class SoftmaxSpelled(Body):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shifted = torch.exp(x - x.amax(-1, keepdim=True))
        return shifted / shifted.sum(-1, keepdim=True)


class LinearBias(Body):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.biased(x)


class Addmm(Body):
    """Hugging Face's Conv1D."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x.view(-1, HIDDEN), self.matrix).view(x.shape)


class Swiglu(Body):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.gate(x)
        return self.down(self.up(x) * (gate * torch.sigmoid(gate)))


class Geglu(Body):
    """A decoy for fused_mlp: three products remain, the gate is a GELU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.gelu(self.gate(x)) * self.up(x))


class Heads(Body):
    def inputs(self) -> list[torch.Tensor]:
        return [torch.randn(2, SEQ, HEADS, HIDDEN) for _ in range(3)]


class AttentionMasked(Heads):
    """Causal attention with its mask in a buffer."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        scores = q @ k.transpose(-2, -1) / math.sqrt(HIDDEN)
        scores = scores.masked_fill(~self.mask[None, None], float("-inf"))
        return torch.softmax(scores, -1) @ v


class AttentionFull(Heads):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return torch.matmul(F.softmax(torch.matmul(q, k.transpose(2, 3)) * 0.2, dim=-1), v)


class AttentionSdpa(Heads):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), is_causal=True)


class AttentionAnyMask(Heads):
    """A decoy: the mask is an argument, and may be anything in the next forward."""

    def inputs(self) -> list[torch.Tensor]:
        return [*super().inputs(), torch.ones(SEQ, SEQ, dtype=torch.bool).tril()]

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        scores = (q @ k.transpose(-2, -1) * 0.2).masked_fill(~mask, float("-inf"))
        return torch.softmax(scores, -1) @ v


class RotaryHalf(Heads):
    def inputs(self) -> list[torch.Tensor]:
        return super().inputs()[:1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.transpose(1, 2)
        angles = torch.cat((self.angles, self.angles), -1)
        first, second = x.chunk(2, dim=-1)
        return x * angles.cos() + torch.cat((-second, first), -1) * angles.sin()


class RotaryInterleaved(RotaryHalf):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.transpose(1, 2)
        cos, sin = self.angles.cos(), self.angles.sin()
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class RotaryComplex(RotaryHalf):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(x.transpose(1, 2).float().reshape(2, HEADS, SEQ, -1, 2))
        turns = torch.polar(torch.ones_like(self.angles), self.angles)
        return torch.view_as_real(pairs * turns).flatten(3).type_as(x)


class CrossEntropy(Body):
    def inputs(self) -> list[torch.Tensor]:
        return [torch.randn(2, ROWS, HIDDEN), torch.randint(0, HIDDEN, (2, ROWS))]

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.view(-1, HIDDEN), targets.view(-1))


class Sum(Body):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(-1)


class Escaping(Body):
    """A decoy: the inner value is also an output, so that no one kernel can replace the whole."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        return x * scale * self.weight, scale


class Mutating(Body):
    """A decoy: the input of the norm is written while it is computed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        scale = torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)
        y.mul_(2)
        return y * scale * self.weight


SPELLINGS = {
    "rmsnorm_division": RMSNormDivision,
    "rmsnorm_functional": RMSNormFunctional,
    "rmsnorm_eps_outside": RMSNormEpsOutside,
    "rmsnorm_shifted": RMSNormShifted,
    "layernorm_spelled": LayerNormSpelled,
    "layernorm_unbiased": LayerNormUnbiased,
    "softmax_spelled": SoftmaxSpelled,
    "linear_bias": LinearBias,
    "addmm": Addmm,
    "swiglu": Swiglu,
    "geglu": Geglu,
    "attention_masked": AttentionMasked,
    "attention_full": AttentionFull,
    "attention_sdpa": AttentionSdpa,
    "attention_any_mask": AttentionAnyMask,
    "rotary_half": RotaryHalf,
    "rotary_interleaved": RotaryInterleaved,
    "rotary_complex": RotaryComplex,
    "cross_entropy": CrossEntropy,
    "sum": Sum,
    "escaping": Escaping,
    "mutating": Mutating,
}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = SPELLINGS[SPELLING]()

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.body(*inputs)


def get_inputs() -> list[torch.Tensor]:
    return SPELLINGS[SPELLING]().inputs()
