"""Proposals by any model behind an OpenAI-compatible chat-completions endpoint, through OpenAI's own SDK.

``--base-url`` (or OPENAI_BASE_URL) names the endpoint, such as a local server's http://localhost:8000/v1; the key is
read from OPENAI_API_KEY, and an endpoint of your own needs none. ``--model`` has no default: which models take tools
over chat completions differs from server to server. The SDK's own retries are off: the run waits by its own rules.

Other servers than OpenAI's are asked in the plainest way that all of them know: not streamed, and with the length of
an answer as ``max_tokens``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from autokernel.extension import ProposerOptions
from autokernel.proposers._edits import TOOL_DESCRIPTION, TOOL_NAME, TOOL_SCHEMA
from autokernel.proposers._faults import Fault, Service, broken_off, public, status_fault
from autokernel.proposers._llm import LanguageModel
from autokernel.proposers._prices import Usage
from autokernel.proposers._turns import Answer, Question, Results, Said, Stop, ToolCall, Turn
from autokernel.types import AutokernelError

OFFICIAL = "https://api.openai.com/v1"
_STOPS: dict[str | None, Stop] = {"length": "truncated", "content_filter": "refused"}
_TOOL = {"name": TOOL_NAME, "description": TOOL_DESCRIPTION, "parameters": TOOL_SCHEMA}


def create(options: ProposerOptions) -> LanguageModel:
    """Raises AutokernelError without the SDK, a model or a key, and where a limit on cost has no price."""
    url = options.base_url or os.environ.get("OPENAI_BASE_URL") or OFFICIAL
    official = url.rstrip("/") == OFFICIAL
    key = os.environ.get("OPENAI_API_KEY") or ("" if official else "no key")
    if not options.model:
        raise AutokernelError("expected --model NAME for --proposer openai (one that takes tools), got none")
    if not key:
        raise AutokernelError(
            "expected an API key for --proposer openai in OPENAI_API_KEY, found none; export one, or name an endpoint "
            "of your own with --base-url URL, which may need none"
        )
    return LanguageModel(ChatCompletions(options, options.model, url, key, official=official), options)


class ChatCompletions:
    """The chat-completions API as an endpoint. ``official`` asks as OpenAI's own server wants to be asked: streamed,
    with the newer name of the limit on output. Its representation holds no key.
    """

    provider = "openai"

    def __init__(self, options: ProposerOptions, model: str, url: str, key: str, *, official: bool) -> None:
        try:
            import openai
        except ModuleNotFoundError as error:
            raise AutokernelError(
                "expected the openai package for --proposer openai, found none; pip install 'autokernel[openai]'"
            ) from error
        from autokernel.proposers import _http

        self.model, self._options, self._official = model, options, official
        self._sdk, self._broken = openai, _http.BROKEN
        self._service = Service("OpenAI" if official else "the server", public(url), model, "OPENAI_API_KEY")
        self._client = openai.OpenAI(
            api_key=key,
            base_url=url,
            max_retries=0,
            timeout=_http.timeout(options.time_limit_s),
            http_client=_http.client(openai, options.time_limit_s),
        )

    def ask(self, question: Question) -> Answer:
        try:
            reply = self._client.chat.completions.create(**self._request(question))
            if self._official:
                return self._streamed(reply)
            if not isinstance(reply, self._sdk.types.chat.ChatCompletion) or not isinstance(reply.choices, list):
                raise Fault("failed", f"{self._service.url} gave no chat completion: expected --base-url to end in /v1")
            if not reply.choices:
                raise broken_off(self._service, None, _usage(reply.usage))
            choice = reply.choices[0]
            made = choice.message.tool_calls or ()
            calls = [(c.id, f.name, f.arguments) for c in made if (f := getattr(c, "function", None))]
            refusal, text = getattr(choice.message, "refusal", None), choice.message.content
            return _answer(text or "", calls, choice.finish_reason, refusal or "", _usage(reply.usage))
        except self._sdk.APIStatusError as error:
            raise status_fault(self._service, error.status_code, error.body, error.response.headers) from None
        except self._sdk.APIConnectionError as error:
            raise broken_off(self._service, error) from None
        except self._sdk.APIError as error:  # told inside a stream
            raise status_fault(self._service, None, error.body, {}) from None
        except self._broken as error:
            raise broken_off(self._service, error) from None
        except json.JSONDecodeError as error:
            raise broken_off(self._service, error) from None

    def _streamed(self, chunks: Iterable[Any]) -> Answer:
        text, refusal, finish, usage = "", "", None, Usage()
        calls: dict[int, list[str]] = {}
        for chunk in chunks:
            usage = _usage(chunk.usage) if chunk.usage else usage
            for choice in chunk.choices[:1]:
                text += choice.delta.content or ""
                refusal += choice.delta.refusal or ""
                finish = choice.finish_reason or finish
                for part in choice.delta.tool_calls or ():
                    call = calls.setdefault(part.index, ["", "", ""])
                    call[0] += part.id or ""
                    if part.function:
                        call[1] += part.function.name or ""
                        call[2] += part.function.arguments or ""
        if finish is None:
            raise broken_off(self._service, None, usage)
        return _answer(text, [(c[0], c[1], c[2]) for _, c in sorted(calls.items())], finish, refusal, usage)

    def _request(self, question: Question) -> dict[str, Any]:
        options = self._options
        stable = "\n\n".join(text for text in question.stable if text)
        request: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "system", "content": stable}, *(m for t in question.turns for m in _messages(t))],
            "tools": [{"type": "function", "function": _TOOL}],
        }
        if self._official:
            request |= {"stream": True, "stream_options": {"include_usage": True}}
        if options.max_output_tokens is not None:
            request["max_completion_tokens" if self._official else "max_tokens"] = options.max_output_tokens
        if options.effort is not None:
            request["reasoning_effort"] = options.effort
        if options.temperature is not None:
            request["temperature"] = options.temperature
        return request


def _messages(turn: Turn) -> list[dict[str, Any]]:
    if isinstance(turn, Said):
        return [{"role": "user", "content": "\n\n".join(turn.parts)}]
    if isinstance(turn, Results):
        return [{"role": "tool", "tool_call_id": call_id, "content": turn.text} for call_id in turn.call_ids]
    return [turn.turn]


def _answer(text: str, calls: list[tuple[str, str, str]], finish: str | None, refusal: str, usage: Usage) -> Answer:
    turn: dict[str, Any] = {"role": "assistant", "content": text or None}
    if calls:
        turn["tool_calls"] = [
            {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}
            for id_, name, arguments in calls
        ]
    stop: Stop = "refused" if refusal else _STOPS.get(finish, "done")
    parsed = tuple(ToolCall(id_, name, _object(arguments)) for id_, name, arguments in calls)
    return Answer(text, parsed, stop, usage, turn, " ".join(refusal.split())[:200])


def _object(arguments: str) -> Mapping[str, Any] | None:
    try:
        found = json.loads(arguments)
    except ValueError:
        return None
    return found if isinstance(found, Mapping) else None


def _usage(usage: Any) -> Usage:
    """OpenAI counts what was cached among the prompt's tokens; servers of others may count nothing at all."""
    if usage is None:
        return Usage()
    details = getattr(usage, "prompt_tokens_details", None)
    read = getattr(details, "cached_tokens", None) or 0
    written = getattr(details, "cache_write_tokens", None) or 0
    fresh = max(0, (usage.prompt_tokens or 0) - read - written)
    return Usage(input=fresh, output=usage.completion_tokens or 0, cache_read=read, cache_write=written)
