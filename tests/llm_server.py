"""A model on the loopback: a real HTTP server that speaks the Messages API and the chat-completions API.

A script, any function from ``Request`` to ``Reply`` or ``Fault``, decides what each question gets, so that what a test
runs are the official SDKs, their streams and their errors. A request that the service would refuse is refused with a
400, and what was wrong with it is listed in ``violations``.
"""

from __future__ import annotations

import dataclasses
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from llm_dialects import ChatCompletions, Messages, Reply

__all__ = ["KEY", "Fault", "LlmServer", "Reply", "Request", "edit", "whole"]

KEY = "sk-test-0123456789abcdefKEY"


@dataclasses.dataclass(frozen=True)
class Fault:
    """What goes wrong: an HTTP status with its error body, or a connection that is dropped, stalls, or only pings."""

    status: int = 0
    kind: str = "api_error"
    message: str = "scripted"
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    error_code: str = ""
    drop: str = ""  # "at once", "mid-stream", or "quietly": the answer ends as if it were whole
    stall_s: float = 0.0
    pings: bool = False  # while it stalls
    in_stream: bool = False  # the error comes as an event of a stream that began well
    page: str = ""  # a web page in place of an answer


@dataclasses.dataclass(frozen=True)
class Request:
    """One question as it arrived. ``stable`` is the system text, ``user`` what is said after the model's last turn."""

    api: str
    number: int
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    stable: str
    user: str

    @property
    def turns(self) -> int:
        return sum(message["role"] != "system" for message in self.body["messages"])


Script = Callable[[Request], Reply | Fault]


def edit(path: str, search: str, replace: str, idea: str = "tier 1: a scripted idea") -> Reply:
    arguments = {"path": path, "idea": idea, "edits": [{"search": search, "replace": replace}]}
    return Reply(calls=(("edit_kernel", arguments),))


def whole(path: str, content: str, idea: str = "tier 1: a scripted idea") -> Reply:
    return Reply(calls=(("edit_kernel", {"path": path, "idea": idea, "content": content}),))


class LlmServer:
    """Serves from a thread of its own while the context is open; ``url`` is its root."""

    def __init__(self, script: Script, key: str = KEY) -> None:
        self.script, self.key = script, key
        self.requests: list[Request] = []
        self.violations: list[str] = []
        self.lock, self.ended = threading.Lock(), threading.Event()
        self.dialects = {"anthropic": Messages(), "openai": ChatCompletions()}
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: Any) -> None: ...

            def do_POST(self) -> None:
                _Exchange(server, self).serve()

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that went away is what some tests are about."""

        self._http = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> LlmServer:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.ended.set()
        self._http.shutdown()
        self._http.server_close()


class _Exchange:
    """One request and what is sent back for it."""

    def __init__(self, server: LlmServer, handler: BaseHTTPRequestHandler) -> None:
        self._server, self._handler = server, handler
        self._headers = {name.lower(): value for name, value in handler.headers.items()}
        self._api = "anthropic" if handler.path.endswith("/v1/messages") else "openai"
        self._dialect = server.dialects[self._api]

    def serve(self) -> None:
        body = json.loads(self._handler.rfile.read(int(self._headers["content-length"])))
        stable, user = self._dialect.stable(body), self._dialect.user(body)
        with self._server.lock:
            request = Request(self._api, len(self._server.requests), body, self._headers, stable, user)
            self._server.requests.append(request)
        wrong = list(self._wrong(body))
        self._server.violations += wrong
        what = Fault(400, "invalid_request_error", "; ".join(wrong)) if wrong else self._server.script(request)
        if isinstance(what, Fault):
            self._fail(what, body)
            return
        self._server.ended.wait(what.delay_s)
        if body.get("stream"):
            self._begin("text/event-stream")
            for event in self._dialect.events(what, body):
                self._chunk(event)
            self._chunk(b"")
        else:
            self._json(200, self._dialect.whole(what, body))

    def _wrong(self, body: Mapping[str, Any]) -> Iterator[str]:
        if not (isinstance(body.get("model"), str) and body.get("messages") and body.get("tools")):
            yield "model, messages and tools are required"
            return
        yield from self._dialect.wrong(body, self._headers)
        if self._dialect.key(self._headers) != self._server.key:
            yield "the key is not the one that was set"

    def _fail(self, fault: Fault, body: Mapping[str, Any]) -> None:
        if fault.page:
            self._begin("text/html", length=len(fault.page.encode()))
            self._handler.wfile.write(fault.page.encode())
        elif fault.drop == "at once":
            self._hang_up()
        elif fault.status and not fault.in_stream:
            error = self._dialect.error(fault.kind, fault.message, fault.error_code)
            self._json(fault.status, error, fault.headers)
        else:
            self._break_off(fault, body)

    def _break_off(self, fault: Fault, body: Mapping[str, Any]) -> None:
        """Begins a good answer, and does not end it."""
        events = list(self._dialect.events(Reply(text="half an answer, and then"), body))
        self._begin("text/event-stream" if body.get("stream") else "application/json")
        if body.get("stream"):
            for event in events[: len(events) // 2]:
                self._chunk(event)
        if fault.in_stream:
            self._chunk(self._dialect.error_event(fault.kind, fault.message, fault.error_code))
            self._chunk(b"")
        elif fault.drop == "quietly":
            self._chunk(b"")
        elif fault.stall_s:
            self._stall(fault)
        else:
            self._hang_up()

    def _stall(self, fault: Fault) -> None:
        end_s = time.monotonic() + fault.stall_s
        while time.monotonic() < end_s and not self._server.ended.wait(0.05):
            if fault.pings:
                self._chunk(self._dialect.ping)
        self._hang_up()

    def _hang_up(self) -> None:
        """Ends the connection with a reset, as a machine that goes away does."""
        self._handler.close_connection = True
        self._handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _begin(self, content: str, length: int | None = None) -> None:
        self._handler.send_response(200)
        self._handler.send_header("content-type", content)
        if length is None:
            self._handler.send_header("transfer-encoding", "chunked")
        else:
            self._handler.send_header("content-length", str(length))
        self._handler.end_headers()

    def _chunk(self, data: bytes) -> None:
        self._handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self._handler.wfile.flush()

    def _json(self, status: int, content: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
        data = json.dumps(content).encode()
        self._handler.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self._handler.send_header(name, value)
        self._handler.send_header("content-length", str(len(data)))
        self._handler.end_headers()
        self._handler.wfile.write(data)
