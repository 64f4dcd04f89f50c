"""What the two APIs say and expect: the Messages API and the chat-completions API, as the server of the tests has them.

A dialect turns a ``Reply`` into the body or the events of an answer, and says what is wrong with a request as the
service itself would: an unanswered tool call, thinking that did not come back untouched, a parameter that the model
refuses.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any

_numbers = itertools.count()


@dataclasses.dataclass(frozen=True)
class Reply:
    """An answer: text, calls of tools (name -> arguments; a str is sent as it is, JSON or not), and how it stopped."""

    text: str = ""
    calls: tuple[tuple[str, Mapping[str, Any] | str], ...] = ()
    stop: str = ""  # "truncated", "refused", "context"; by default what the answer's content implies
    delay_s: float = 0.0
    output_tokens: int = 50
    counted: bool = True  # False: a chat-completions server that reports no usage


class Dialect:
    """What both have in common: a cache of stable prefixes, counted at four characters a token."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cached: set[str] = set()

    def stable(self, body: Mapping[str, Any]) -> str:
        raise NotImplementedError

    def user(self, body: Mapping[str, Any]) -> str:
        """What is said after the model's last turn: text, or the result of a tool."""
        after = itertools.takewhile(lambda m: m["role"] != "assistant", reversed(body.get("messages", ())))
        parts = [message["content"] for message in after]
        texts = [[p] if isinstance(p, str) else [b.get("text") or b.get("content") or "" for b in p] for p in parts]
        return "\n\n".join(text for listed in texts for text in listed)

    def tokens(self, body: Mapping[str, Any]) -> tuple[int, int, int]:
        """(fresh, read from the cache, written to it) of a request."""
        stable, asked = self.stable(body), json.dumps([m for m in body["messages"] if m["role"] != "system"])
        with self._lock:
            known = stable in self._cached
            self._cached.add(stable)
        size = len(stable) // 4
        return len(asked) // 4, size if known else 0, 0 if known else size


class Messages(Dialect):
    def __init__(self) -> None:
        super().__init__()
        self._thoughts: dict[str, Any] = {}  # id of a tool call -> the thinking that came with it

    def stable(self, body: Mapping[str, Any]) -> str:
        return "\n\n".join(block["text"] for block in body.get("system", ()))

    def key(self, headers: Mapping[str, str]) -> str:
        return headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")

    def wrong(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> Iterator[str]:
        if "anthropic-version" not in headers:
            yield "anthropic-version: header is required"
        if not isinstance(body.get("max_tokens"), int):
            yield "max_tokens: field required"
        if not any("cache_control" in block for block in body.get("system", ())):
            yield "the stable prefix is not marked for the cache"
        if sum("cache_control" in block for message in body["messages"] for block in message["content"]) > 3:
            yield "more than 4 blocks with cache_control"
        if any("input_schema" not in tool or "name" not in tool for tool in body["tools"]):
            yield "tools: input_schema and name are required"
        if body.get("tool_choice", {}).get("type") in ("any", "tool"):
            yield "tool_choice forces tool use: not supported by this model"
        if "temperature" in body and body["model"].startswith("claude-opus-5"):
            yield "temperature: not supported by this model"
        if any(a["role"] == b["role"] for a, b in itertools.pairwise(body["messages"])):
            yield "roles do not alternate"
        yield from self._unanswered(body["messages"])

    def _unanswered(self, messages: list[Mapping[str, Any]]) -> Iterator[str]:
        waiting: set[str] = set()
        for message in messages:
            blocks = message["content"]
            if not blocks or any(block["type"] == "text" and not block["text"] for block in blocks):
                yield "messages: text content blocks must be non-empty"
            if {block["tool_use_id"] for block in blocks if block["type"] == "tool_result"} != waiting:
                yield "messages: each tool_use must be answered by a tool_result in the next turn"
            waiting = {block["id"] for block in blocks if block["type"] == "tool_use"}
            if any(self._thoughts.get(call) not in blocks for call in waiting):
                yield "messages: thinking blocks must be returned as they were"

    def whole(self, reply: Reply, body: Mapping[str, Any]) -> dict[str, Any]:
        content: list[dict[str, Any]] = []
        if reply.calls or reply.text:
            content.append({"type": "thinking", "thinking": "", "signature": f"signed-{next(_numbers)}"})
        if reply.text:
            content.append({"type": "text", "text": reply.text})
        for name, arguments in reply.calls:
            call = f"toolu_{next(_numbers)}"
            with self._lock:
                self._thoughts[call] = copy.deepcopy(content[0])
            content.append({"type": "tool_use", "id": call, "name": name, "input": arguments})
        stop = {"truncated": "max_tokens", "refused": "refusal", "context": "model_context_window_exceeded"}
        fresh, read, written = self.tokens(body)
        message = {
            "id": "msg_1", "type": "message", "role": "assistant", "model": body["model"], "content": content,
            "stop_reason": stop.get(reply.stop) or ("tool_use" if reply.calls else "end_turn"), "stop_sequence": None,
            "usage": {"input_tokens": fresh, "output_tokens": reply.output_tokens,
                      "cache_read_input_tokens": read, "cache_creation_input_tokens": written},
        }  # fmt: skip
        if reply.stop == "refused":
            message["stop_details"] = {"type": "refusal", "category": "frontier_llm", "explanation": None}
        return message

    def events(self, reply: Reply, body: Mapping[str, Any]) -> Iterator[bytes]:
        message = self.whole(reply, body)
        start = {**message, "content": [], "stop_reason": None, "usage": {**message["usage"], "output_tokens": 1}}
        yield _event("message_start", message=start)
        yield self.ping
        for index, block in enumerate(message["content"]):
            empty, deltas = _deltas(block, cut=reply.stop == "truncated")
            yield _event("content_block_start", index=index, content_block=empty)
            yield from (_event("content_block_delta", index=index, delta=delta) for delta in deltas)
            yield _event("content_block_stop", index=index)
        delta = {name: message[name] for name in ("stop_reason", "stop_sequence", "stop_details") if name in message}
        yield _event("message_delta", delta=delta, usage={"output_tokens": reply.output_tokens})
        yield _event("message_stop")

    @property
    def ping(self) -> bytes:
        return _event("ping")

    def error(self, kind: str, message: str, code: str) -> dict[str, Any]:
        details = {"details": {"error_code": code}} if code else {}
        return {"type": "error", "error": {"type": kind, "message": message, **details}, "request_id": "req_1"}

    def error_event(self, kind: str, message: str, code: str) -> bytes:
        return f"event: error\ndata: {json.dumps(self.error(kind, message, code))}\n\n".encode()


class ChatCompletions(Dialect):
    ping = b": ping\n\n"

    def stable(self, body: Mapping[str, Any]) -> str:
        return "".join(m["content"] for m in body.get("messages", ()) if m["role"] == "system")

    def key(self, headers: Mapping[str, str]) -> str:
        return headers.get("authorization", "").removeprefix("Bearer ")

    def wrong(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> Iterator[str]:
        if body["messages"][0]["role"] != "system":
            yield "the stable prefix does not come first"
        if any(tool.get("type") != "function" or "parameters" not in tool["function"] for tool in body["tools"]):
            yield "tools: type function with parameters is required"
        if any(a["role"] == b["role"] == "user" for a, b in itertools.pairwise(body["messages"])):
            yield "roles do not alternate"
        waiting: set[str] = set()
        for message in body["messages"]:
            if message["role"] == "tool":
                if message["tool_call_id"] not in waiting:
                    yield "a tool's result answers no call"
                waiting.discard(message["tool_call_id"])
                continue
            if waiting:
                yield "tool calls must be answered before anything else is said"
            waiting = {call["id"] for call in message.get("tool_calls") or ()}
            if message.get("content") is None and not waiting:
                yield "content: expected a string"

    def whole(self, reply: Reply, body: Mapping[str, Any]) -> dict[str, Any]:
        calls = [_call(name, arguments) for name, arguments in reply.calls]
        finish = {"truncated": "length", "refused": "content_filter"}.get(reply.stop)
        message: dict[str, Any] = {"role": "assistant", "content": reply.text or None}
        message |= {"tool_calls": calls} if calls else {}
        message |= {"refusal": "I cannot help with that."} if reply.stop == "refused" else {}
        fresh, read, written = self.tokens(body)
        prompt = fresh + read + written
        finish = finish or ("tool_calls" if calls else "stop")
        usage = {
            "prompt_tokens": prompt, "completion_tokens": reply.output_tokens,
            "total_tokens": prompt + reply.output_tokens, "prompt_tokens_details": {"cached_tokens": read},
        }  # fmt: skip
        return {
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": body["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": usage if reply.counted else None,
        }  # fmt: skip

    def events(self, reply: Reply, body: Mapping[str, Any]) -> Iterator[bytes]:
        whole = self.whole(reply, body)
        choice = whole["choices"][0]
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}

        def chunk(delta: Mapping[str, Any], finish: str | None = None) -> bytes:
            choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
            return f"data: {json.dumps({**head, 'choices': choices})}\n\n".encode()

        yield chunk({"role": "assistant", "content": ""})
        if choice["message"].get("refusal"):
            yield chunk({"refusal": choice["message"]["refusal"]})
        yield from (chunk({"content": part}) for part in _pieces(reply.text))
        for index, call in enumerate(choice["message"].get("tool_calls") or ()):
            named = {"name": call["function"]["name"], "arguments": ""}
            yield chunk({"tool_calls": [{"index": index, "id": call["id"], "type": "function", "function": named}]})
            for part in _pieces(call["function"]["arguments"]):
                yield chunk({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
        yield chunk({}, choice["finish_reason"])
        if body.get("stream_options", {}).get("include_usage"):
            yield f"data: {json.dumps({**head, 'choices': [], 'usage': whole['usage']})}\n\n".encode()
        yield b"data: [DONE]\n\n"

    def error(self, kind: str, message: str, code: str) -> dict[str, Any]:
        return {"error": {"type": kind, "message": message, "code": code or None, "param": None}}

    def error_event(self, kind: str, message: str, code: str) -> bytes:
        return f"data: {json.dumps(self.error(kind, message, code))}\n\n".encode()


def _event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def _deltas(block: Mapping[str, Any], cut: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How a content block is streamed: its empty beginning, then its parts; cut in the middle of its JSON."""
    if block["type"] == "thinking":
        return {**block, "signature": ""}, [{"type": "signature_delta", "signature": block["signature"]}]
    if block["type"] == "text":
        return {**block, "text": ""}, [{"type": "text_delta", "text": part} for part in _pieces(block["text"])]
    given = block["input"]
    written = given if isinstance(given, str) else json.dumps(given)
    parts = _pieces(written[: len(written) // 2] if cut else written)
    return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": part} for part in parts]


def _pieces(text: str) -> list[str]:
    size = max(1, len(text) // 3 + 1)
    return [text[at : at + size] for at in range(0, len(text), size)]


def _call(name: str, arguments: Mapping[str, Any] | str) -> dict[str, Any]:
    written = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": f"call_{next(_numbers)}", "type": "function", "function": {"name": name, "arguments": written}}
