"""GPT-2 124M, written out: a decoder of 12 layers, hidden 768, 12 heads, learned positions, tied output weights.

Settings (``--set NAME=VALUE``): size=124m|355m, batch, seq (tokens, at most 1024).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

SIZES = {  # hidden, layers, heads
    "124m": (768, 12, 12),
    "355m": (1024, 24, 16),
}
VOCABULARY = 50257
POSITIONS = 1024
SIZE, BATCH, SEQ = "124m", 1, 512


def configure(size: str = SIZE, batch: int = BATCH, seq: int = SEQ) -> None:
    global SIZE, BATCH, SEQ
    if size not in SIZES:
        raise ValueError(f"size was expected to be one of {', '.join(SIZES)}; got {size}")
    if not 1 <= seq <= POSITIONS:
        raise ValueError(f"seq was expected to be 1 to {POSITIONS} tokens; got {seq}")
    SIZE, BATCH, SEQ = size, batch, seq


class Attention(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(hidden, 3 * hidden)
        self.c_proj = nn.Linear(hidden, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, seq, hidden = x.shape
        q, k, v = (
            t.view(batch, seq, self.heads, hidden // self.heads).transpose(1, 2)
            for t in self.c_attn(x).split(hidden, dim=2)
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(out.transpose(1, 2).reshape(batch, seq, hidden))


class MLP(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(hidden, 4 * hidden)
        self.c_proj = nn.Linear(4 * hidden, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(hidden)
        self.attn = Attention(hidden, heads)
        self.ln_2 = nn.LayerNorm(hidden)
        self.mlp = MLP(hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Model(nn.Module):
    def __init__(self, hidden: int, layers: int, heads: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(VOCABULARY, hidden)
        self.wpe = nn.Embedding(POSITIONS, hidden)
        self.h = nn.ModuleList(Block(hidden, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(hidden)
        self.lm_head = nn.Linear(hidden, VOCABULARY, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [B, S] int64 -> logits [B, S, V]."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.wte(tokens) + self.wpe(positions)
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


def get_inputs() -> list[torch.Tensor]:
    return [torch.randint(0, VOCABULARY, (BATCH, SEQ))]


def get_init_inputs() -> list[int]:
    return list(SIZES[SIZE])
