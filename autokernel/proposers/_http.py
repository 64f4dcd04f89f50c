"""The HTTP client that both SDKs are given: an answer has an end, however it trickles in.

A timeout of the transport bounds the silence between two chunks; an API that keeps a connection alive with pings, or
drips a token a minute, never meets it. So the body of every response is read against a clock as well.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx2

BROKEN: tuple[type[Exception], ...] = (httpx2.HTTPError, httpx2.StreamError)  # what reading a dropped stream raises
CONNECT_S = 10.0


class _Bounded(httpx2.SyncByteStream):
    """A response's body that raises ReadTimeout once its time is over."""

    def __init__(self, stream: httpx2.SyncByteStream, limit_s: float) -> None:
        self._stream, self._limit_s, self._end_s = stream, limit_s, time.monotonic() + limit_s

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._stream:
            if time.monotonic() > self._end_s:
                raise httpx2.ReadTimeout(f"no whole answer within {self._limit_s:.0f} s")
            yield chunk

    def close(self) -> None:
        self._stream.close()


def timeout(silence_s: float) -> httpx2.Timeout:
    return httpx2.Timeout(silence_s, connect=min(CONNECT_S, silence_s))


def client(sdk: Any, limit_s: float) -> Any:
    """The SDK's own default client (its connection limits, proxies and redirects) with a bound on each answer."""

    def bound(response: httpx2.Response) -> None:
        if isinstance(response.stream, httpx2.SyncByteStream):
            response.stream = _Bounded(response.stream, limit_s)

    return sdk.DefaultHttpxClient(event_hooks={"response": [bound]})
