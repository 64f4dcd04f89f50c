"""What the tests of LLM proposers share: a brief, an edit that applies to it, and a proposer of each kind."""

from __future__ import annotations

import dataclasses

from llm_server import KEY, Fault, LlmServer, Reply, edit

from autokernel import assets
from autokernel.extension import Brief, ProposerOptions
from autokernel.proposers import anthropic, openai
from autokernel.types import Target, Workload

WORKLOAD = Workload({"R": 512, "C": 768}, "fp32", scalars={"eps": 1e-6})
TARGET = Target("rmsnorm", "rmsnorm", "cpp", (WORKLOAD,), share=0.2, eager_us=100.0, floor_us=20.0)
SOURCE = assets.starter("rmsnorm", "cpp").read_text()
FILE = TARGET.file
TYPE = 'KERNEL_TYPE = "rmsnorm"'
GOOD = edit(FILE, TYPE, f"{TYPE}  # noted", "tier 1: note it")
CHANGED = SOURCE.replace(TYPE, f"{TYPE}  # noted")
MODELS = {"anthropic": "claude-opus-5-5", "openai": "gpt-4.1"}
APIS = ("anthropic", "openai", "openai streamed")  # the last is asked as OpenAI's own server is


def brief(**changes) -> Brief:
    return dataclasses.replace(Brief(TARGET, SOURCE, None, (), {"kind": "cpu"}, seed=0), **changes)


def in_turn(*replies: Reply | Fault):
    """A script that gives these in turn."""
    return lambda request: replies[request.number]


def proposer(api: str, server: LlmServer, **options):
    name, _, streamed = api.partition(" ")
    model = options.pop("model", MODELS[name])
    if name == "anthropic":
        return anthropic.create(ProposerOptions(model=model, base_url=server.url, **options))
    made = ProposerOptions(model=model, base_url=f"{server.url}/v1", **options)
    if not streamed:
        return openai.create(made)
    return openai.LanguageModel(openai.ChatCompletions(made, model, made.base_url, KEY, official=True), made)
