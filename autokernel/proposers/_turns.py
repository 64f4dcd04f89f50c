"""What passes between the conversation and a provider: turns, answers, and who answers. No provider's words."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from autokernel.guide.quoting import tokens_of
from autokernel.proposers._prices import Usage

Stop = Literal["done", "truncated", "refused"]


@dataclasses.dataclass(frozen=True)
class Said:
    """What is said to the model, as one turn of one or more paragraphs."""

    parts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """``arguments`` is None where the model's JSON cannot be read as an object."""

    id: str
    name: str
    arguments: Mapping[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Answer:
    """``turn`` is the model's turn as the provider wants it back: thinking and signatures must return untouched."""

    text: str
    calls: tuple[ToolCall, ...]
    stop: Stop
    usage: Usage
    turn: Any
    remark: str = ""  # why it stopped, where the provider says so


@dataclasses.dataclass(frozen=True)
class Results:
    """What became of the tool calls of the turn before: the same text for each (all were refused)."""

    call_ids: tuple[str, ...]
    text: str


Turn = Said | Answer | Results


@dataclasses.dataclass(frozen=True)
class Question:
    """``stable`` are the paragraphs that do not change over a target; ``goes_on`` says that more turns will follow
    for certain, so that caching this one pays.
    """

    stable: tuple[str, ...]
    turns: tuple[Turn, ...]
    goes_on: bool = False


class Endpoint(Protocol):
    """One model behind one API. ``ask`` raises Fault, and nothing else, for what the network and the API do."""

    provider: str
    model: str

    def ask(self, question: Question) -> Answer: ...


def estimated(question: Question, answer: Answer) -> Usage:
    """Tokens of an exchange that nobody counted."""
    said = "".join(json.dumps(recorded(turn)) for turn in question.turns)
    return Usage(tokens_of("".join(question.stable)) + tokens_of(said), tokens_of(json.dumps(recorded(answer))))


def recorded(turn: Turn) -> dict[str, Any]:
    """A turn as an exchange's record shows it, JSON."""
    if isinstance(turn, Said):
        return {"user": "\n\n".join(turn.parts)}
    if isinstance(turn, Results):
        return {"tool_result": turn.text}
    calls = [{"name": call.name, "arguments": call.arguments} for call in turn.calls]
    return {"text": turn.text, "calls": calls}
