"""BERT base, 110M, written out: an encoder of 12 layers, hidden 768, 12 heads, attention spelled as products around a
softmax, LayerNorm after each residual.

Settings (``--set NAME=VALUE``): size=110m|340m, batch, seq (tokens, at most 512).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

SIZES = {  # hidden, layers, heads
    "110m": (768, 12, 12),
    "340m": (1024, 24, 16),
}
VOCABULARY = 30522
POSITIONS = 512
EPS = 1e-12
SIZE, BATCH, SEQ = "110m", 1, 512


def configure(size: str = SIZE, batch: int = BATCH, seq: int = SEQ) -> None:
    global SIZE, BATCH, SEQ
    if size not in SIZES:
        raise ValueError(f"size was expected to be one of {', '.join(SIZES)}; got {size}")
    if not 1 <= seq <= POSITIONS:
        raise ValueError(f"seq was expected to be 1 to {POSITIONS} tokens; got {seq}")
    SIZE, BATCH, SEQ = size, batch, seq


class Embeddings(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, hidden)
        self.positions = nn.Embedding(POSITIONS, hidden)
        self.segments = nn.Embedding(2, hidden)
        self.norm = nn.LayerNorm(hidden, eps=EPS)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return self.norm(self.words(tokens) + self.positions(positions) + self.segments(torch.zeros_like(tokens)))


class Attention(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, seq, hidden = x.shape
        q, k, v = (
            project(x).view(batch, seq, self.heads, hidden // self.heads).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(hidden // self.heads)
        out = torch.matmul(F.softmax(scores, dim=-1), v)
        return self.output(out.transpose(1, 2).reshape(batch, seq, hidden))


class Layer(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(hidden, heads)
        self.attention_norm = nn.LayerNorm(hidden, eps=EPS)
        self.intermediate = nn.Linear(hidden, 4 * hidden)
        self.output = nn.Linear(4 * hidden, hidden)
        self.output_norm = nn.LayerNorm(hidden, eps=EPS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.attention_norm(x + self.attention(x))
        return self.output_norm(x + self.output(F.gelu(self.intermediate(x))))


class Model(nn.Module):
    def __init__(self, hidden: int, layers: int, heads: int) -> None:
        super().__init__()
        self.embeddings = Embeddings(hidden)
        self.layers = nn.ModuleList(Layer(hidden, heads) for _ in range(layers))
        self.pooler = nn.Linear(hidden, hidden)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """tokens [B, S] int64 -> hidden states [B, S, C] and the pooled first token [B, C]."""
        x = self.embeddings(tokens)
        for layer in self.layers:
            x = layer(x)
        return x, torch.tanh(self.pooler(x[:, 0]))


def get_inputs() -> list[torch.Tensor]:
    return [torch.randint(0, VOCABULARY, (BATCH, SEQ))]


def get_init_inputs() -> list[int]:
    return list(SIZES[SIZE])
