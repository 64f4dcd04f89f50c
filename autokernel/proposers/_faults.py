"""What an API's error means for a night: wait, stop, ask for less, or take it as no answer. Both SDKs, one table."""

from __future__ import annotations

import dataclasses
import difflib
import email.utils
import math
import re
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from autokernel.proposers._prices import Usage
from autokernel.redact import redact

# unavailable: ask again later. failed: never again without the owner. too long: ask for less. unusable: no answer.
Kind = Literal["unavailable", "failed", "too long", "unusable"]

LONGEST_WAIT_S = 3600.0  # a longer retry-after is asked again after this
_BILLING = frozenset(
    ("billing_error", "insufficient_quota", "enforced_spend_limit_reached", "contract_spend_limit_reached",
     "linked_organization_spend_limit_reached", "linked_organization_billing_unavailable")
)  # fmt: skip
# Not "billing" alone: a passing rate limit may advise on a payment method.
_BILLING_TEXT = re.compile(r"credit balance|exceeded your current quota|(spend(ing)?|usage) limit", re.IGNORECASE)
_TOO_LONG = re.compile(
    r"too long|too many tokens|too large for (the )?model|maximum context|context (length|window|size)|"
    r"context_length_exceeded|exceeds? the (available|maximum|model)",
    re.IGNORECASE,
)
_FILTERED = frozenset(("content_filter", "content_policy_violation", "invalid_prompt"))
_PASSING_STATUS = frozenset((408, 409, 425, 429, 499))


class Fault(Exception):
    """One question that got no answer: what kind of failure, in words for the owner, and what it cost all the same."""

    def __init__(self, kind: Kind, reason: str, retry_after_s: float | None = None, usage: Usage | None = None) -> None:
        super().__init__(reason)
        self.kind, self.reason, self.retry_after_s, self.usage = kind, reason, retry_after_s, usage or Usage()


@dataclasses.dataclass(frozen=True)
class Service:
    """Who is asked, as its faults name it: ``key_env`` are the variables a key is read from, ``known`` its models."""

    name: str
    url: str
    model: str
    key_env: str
    known: Sequence[str] = ()


def public(url: str) -> str:
    """The URL as it may be shown: without a user's name and password, and without a query."""
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl().rstrip("/")


def status_fault(
    service: Service, status: int | None, body: Any, headers: Mapping[str, str], usage: Usage | None = None
) -> Fault:
    """The fault of an HTTP status and its JSON body; status None or 200 is an error told inside a stream."""
    codes, message = _told(body)
    said = f": {message}" if message else ""
    wait_s = retry_after_s(headers)
    spent = status in (400, 403, 429) and wait_s is None and _BILLING_TEXT.search(message)
    if codes & _BILLING or status == 402 or spent:
        reason = f"{service.name} will not go on for money{said}; add credit or raise the limit, then run again"
        return Fault("failed", reason, usage=usage)
    if status in (401, 403):  # not the API's own words: some repeat part of the key
        what = "refused the key" if status == 401 else f"does not let this key use {service.model}"
        wanted = "a valid one" if status == 401 else "one that may"
        reason = f"{service.name} {what} (HTTP {status}): expected {wanted} in {service.key_env}; set it and run again"
        return Fault("failed", reason, usage=usage)
    if status == 404:
        near = difflib.get_close_matches(service.model, service.known, n=1)
        hint = f"did you mean '{near[0]}'? " if near and near[0] != service.model else ""
        reason = f"{service.url} knows no model '{service.model}' (HTTP 404): {hint}name another with --model"
        return Fault("failed", reason, usage=usage)
    if status == 413 or (status in (400, 422) and _TOO_LONG.search(f"{message} {' '.join(codes)}")):
        return Fault("too long", f"{service.model} finds the brief too long{said}", usage=usage)
    if codes & _FILTERED:
        return Fault("unusable", f"{service.name} declined the question{said}", usage=usage)
    if status in (None, 200) or status >= 500 or status in _PASSING_STATUS:
        what = "broke off its answer" if status in (None, 200) else f"answered HTTP {status}"
        return Fault("unavailable", f"{service.name} {what}{said}", wait_s, usage)
    return Fault("failed", f"{service.name} refused the request (HTTP {status}){said}", usage=usage)


def broken_off(service: Service, error: Exception | None, usage: Usage | None = None) -> Fault:
    """A connection that could not be made, was dropped, fell silent or took too long."""
    cause = error.__cause__ or error if error else None  # the SDKs wrap what the transport raised
    name = type(cause).__name__
    if cause is None:
        what = "ended its answer before it was whole"
    elif name.startswith("Connect") or name == "APIConnectionError":
        what = f"cannot be reached ({redact(str(cause))[:160] or name})"
    elif "Timeout" in name:
        what = "gave no answer in time"
    else:
        what = f"broke the connection off ({redact(str(cause))[:160] or name})"
    return Fault("unavailable", f"{service.name} at {service.url} {what}", usage=usage)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that the response asks to wait (``retry-after-ms``, or ``retry-after`` as seconds or a date), or None."""
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name, "")
        try:
            seconds = float(value) * scale
        except ValueError:
            date = email.utils.parsedate_tz(value)
            if date is None:
                continue
            seconds = email.utils.mktime_tz(date) - time.time()
        if math.isfinite(seconds):
            return min(max(0.0, seconds), LONGEST_WAIT_S)
    return None


def _told(body: Any) -> tuple[frozenset[str], str]:
    """The codes by which an error body names its cause, and its message on one line, without secrets."""
    error = body.get("error", body) if isinstance(body, Mapping) else body
    if not isinstance(error, Mapping):
        return frozenset(), " ".join(redact(str(error or "")).split())[:200]
    details = error.get("details")
    codes = [error.get("type"), error.get("code"), details.get("error_code") if isinstance(details, Mapping) else None]
    message = " ".join(redact(str(error.get("message") or "")).split())
    return frozenset(c for c in codes if isinstance(c, str)), message[:300]
