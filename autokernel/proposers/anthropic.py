"""Proposals by a Claude model, through Anthropic's own SDK.

The key is read from ANTHROPIC_API_KEY, or a token from ANTHROPIC_AUTH_TOKEN; it goes into requests and nowhere else.
``--base-url`` (or ANTHROPIC_BASE_URL) names another server that speaks the Messages API. Answers are streamed, as the
SDK asks for long ones; the SDK's own retries are off, because the run waits by its own rules.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, get_args

from autokernel.extension import ProposerOptions
from autokernel.proposers._edits import TOOL_DESCRIPTION, TOOL_NAME, TOOL_SCHEMA
from autokernel.proposers._faults import Fault, Service, broken_off, public, status_fault
from autokernel.proposers._llm import LanguageModel
from autokernel.proposers._prices import Usage
from autokernel.proposers._turns import Answer, Question, Results, Said, Stop, ToolCall, Turn
from autokernel.types import AutokernelError

DEFAULT_MODEL = "claude-opus-5-5"  # what Anthropic's overview of models says to start with (2026-11)
DEFAULT_OUTPUT_TOKENS = 32_000  # thinking counts; a whole kernel file is 2,000 to 6,000
EFFORTS = ("low", "medium", "high", "xhigh", "max")
SILENCE_S = 120.0  # the API sends pings while a model thinks: a longer silence is a stall
_KEYS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")
_STOPS: dict[str | None, Stop] = {"max_tokens": "truncated", "refusal": "refused"}
_CACHED = {"type": "ephemeral"}


def create(options: ProposerOptions) -> LanguageModel:
    """Raises AutokernelError without a key, for an unknown effort, and where a limit on cost has no price."""
    if not any(os.environ.get(name) for name in _KEYS):
        raise AutokernelError(
            "expected an API key for --proposer anthropic in ANTHROPIC_API_KEY, found none; "
            "export one, or take --proposer playbook, which needs none"
        )
    if options.effort is not None and options.effort not in EFFORTS:
        raise AutokernelError(f"expected --effort to be one of {', '.join(EFFORTS)}, got '{options.effort}'")
    return LanguageModel(Messages(options), options)


class Messages:
    """The Messages API as an endpoint. Its representation holds no key."""

    provider = "anthropic"

    def __init__(self, options: ProposerOptions) -> None:
        import anthropic

        from autokernel.proposers import _http

        key, token = (os.environ.get(name) or None for name in _KEYS)
        self.model = options.model or DEFAULT_MODEL
        self._sdk, self._broken, self._options = anthropic, _http.BROKEN, options
        self._client = anthropic.Anthropic(
            api_key=key,
            auth_token=None if key else token,
            base_url=options.base_url,
            max_retries=0,
            timeout=_http.timeout(min(SILENCE_S, options.time_limit_s)),
            http_client=_http.client(anthropic, options.time_limit_s),
        )
        listed = tuple(name for part in get_args(anthropic.types.Model) for name in get_args(part))
        self._service = Service("Anthropic", public(str(self._client.base_url)), self.model, " or ".join(_KEYS), listed)

    def ask(self, question: Question) -> Answer:
        usage, whole = Usage(), False
        try:
            with self._client.messages.stream(**self._request(question)) as stream:
                for event in stream:
                    if event.type == "message_start":
                        usage = _usage(event.message.usage)
                    whole = whole or event.type == "message_stop"
                if whole:
                    return _answer(stream.get_final_message())
        except self._sdk.APIStatusError as error:
            raise status_fault(self._service, error.status_code, error.body, error.response.headers, usage) from None
        except self._sdk.APIError as error:
            raise broken_off(self._service, error, usage) from None
        except self._broken as error:
            raise broken_off(self._service, error, usage) from None
        except ValueError as error:  # the SDK could not read the JSON of a tool call
            raise Fault("unusable", f"Anthropic's answer cannot be read: {str(error)[:200]}", usage=usage) from None
        raise broken_off(self._service, None, usage)

    def _request(self, question: Question) -> dict[str, Any]:
        options = self._options
        system = [{"type": "text", "text": text} for text in question.stable if text]
        messages: list[dict[str, Any]] = []
        for message in map(_message, question.turns):
            if messages and messages[-1]["role"] == message["role"]:  # a tool's result, and more to say
                messages[-1]["content"] += message["content"]
            else:
                messages.append(message)
        request: dict[str, Any] = {
            "model": self.model,
            "max_tokens": options.max_output_tokens or DEFAULT_OUTPUT_TOKENS,
            "system": [*system[:-1], {**system[-1], "cache_control": _CACHED}],
            "messages": messages,
            # The choice stays the model's: models that always think refuse a request that forces a tool.
            "tools": [{"name": TOOL_NAME, "description": TOOL_DESCRIPTION, "input_schema": TOOL_SCHEMA}],
        }
        if question.goes_on or len(messages) > 1:
            last = messages[-1]["content"]
            last[-1] = {**last[-1], "cache_control": _CACHED}
        if options.effort is not None:
            request["output_config"] = {"effort": options.effort}
        if options.temperature is not None:
            # The SDK knows it no more, and neither do current models; earlier ones still take it.
            request["extra_body"] = {"temperature": options.temperature}
        return request


def _message(turn: Turn) -> dict[str, Any]:
    if isinstance(turn, Said):
        return {"role": "user", "content": [{"type": "text", "text": part} for part in turn.parts]}
    if isinstance(turn, Results):
        results = [
            {"type": "tool_result", "tool_use_id": call_id, "content": turn.text, "is_error": True}
            for call_id in turn.call_ids
        ]
        return {"role": "user", "content": results}
    return {"role": "assistant", "content": list(turn.turn)}


def _answer(message: Any) -> Answer:
    blocks = [_returned(block) for block in message.content]
    calls = tuple(
        ToolCall(block.id, block.name, block.input if isinstance(block.input, Mapping) else None)
        for block in message.content
        if block.type == "tool_use"
    )
    text = "".join(block.text for block in message.content if block.type == "text")
    stop: Stop = _STOPS.get(message.stop_reason, "done")
    if message.stop_reason == "model_context_window_exceeded":
        raise Fault("too long", "the answer did not fit into the model's context", usage=_usage(message.usage))
    details = getattr(message, "stop_details", None)
    remark = str(getattr(details, "category", None) or "") if stop == "refused" else ""
    return Answer(text, calls, stop, _usage(message.usage), [block for block in blocks if block], remark)


def _returned(block: Any) -> dict[str, Any] | None:
    """A block of the model's turn as it must be sent back; None for an empty text, which the API refuses."""
    if block.type == "text":
        return {"type": "text", "text": block.text} if block.text else None
    if block.type == "tool_use":
        return {"type": "tool_use", "id": block.id, "name": block.name, "input": block.input}
    returned: dict[str, Any] = block.model_dump(mode="json", exclude_unset=True)
    return returned


def _usage(usage: Any) -> Usage:
    return Usage(
        input=usage.input_tokens or 0,
        output=usage.output_tokens or 0,
        cache_read=usage.cache_read_input_tokens or 0,
        cache_write=usage.cache_creation_input_tokens or 0,
    )
