"""No secret is written down, and what is none stays as it was."""

from __future__ import annotations

import json

import pytest

from autokernel.redact import REDACTED, redact, secrets, without_secrets

ENVIRONMENT = {
    "ANTHROPIC_API_KEY": "a-key-of-no-known-shape",
    "HF_TOKEN": "token-of-a-hub",
    "MY_DB_PASSWORD": "correct horse battery",
    "SERVICE_SECRETS": "several-of-them",
    "TOKENIZERS_PARALLELISM": "whatever-it-is",
    "KEYBOARD": "us-international",
    "USE_TOKEN": "true",
    "HOME": "/home/someone",
}


def test_which_variables_hold_a_secret():
    assert set(secrets(ENVIRONMENT)) == {
        "a-key-of-no-known-shape",
        "token-of-a-hub",
        "correct horse battery",
        "several-of-them",
    }


@pytest.mark.parametrize(
    "text",
    [
        "the key is a-key-of-no-known-shape.",
        "password=correct horse battery",
        "sk-ant-api03-AbCdEf_0123-xyz",
        "Authorization: Bearer abcdefgh.ijkl-mnop",
        "(ghp_0123456789abcdef)",
    ],
)
def test_a_secret_is_replaced_wherever_it_stands(text):
    told = {"request": [{"text": text, text: 1}, (text, None)], "usage": {"input_tokens": 12}}
    cleaned = redact(told, ENVIRONMENT)
    written = json.dumps(cleaned)
    for secret in (*secrets(ENVIRONMENT), "AbCdEf_0123", "abcdefgh.ijkl", "0123456789abcdef"):
        assert secret not in written
    assert cleaned["usage"] == {"input_tokens": 12}
    assert written.count(REDACTED) == 3
    assert REDACTED in redact(text, ENVIRONMENT)


def test_headers_lose_their_values_whatever_these_look_like():
    told = {"headers": {"x-api-key": "local", "Authorization": "Basic dXNlcg==", "anthropic-version": "2023-06-01"}}
    assert redact(told, {})["headers"] == {
        "x-api-key": REDACTED,
        "Authorization": REDACTED,
        "anthropic-version": "2023-06-01",
    }


@pytest.mark.parametrize("text", ["", "task-specific_kernels_are_good", "max_tokens=4096", "mask-0123456789", "漢 ✓\n"])
def test_other_text_stays_as_it_is(text):
    assert redact(text, ENVIRONMENT) == text


def test_the_environment_of_this_process_is_read_at_each_call(monkeypatch):
    monkeypatch.delenv("AUTOKERNEL_TEST_TOKEN", raising=False)
    assert redact("zebra-crossing") == "zebra-crossing"
    monkeypatch.setenv("AUTOKERNEL_TEST_TOKEN", "zebra-crossing")
    assert redact("zebra-crossing") == REDACTED


def test_an_environment_without_secrets_keeps_the_rest() -> None:
    kept = {"PATH": "/bin", "KEYBOARD": "us"}
    given = {"ANTHROPIC_API_KEY": "sk-ant-1234567890", "HF_TOKEN": "hf_x", "AWS_SECRET": "", **kept}
    assert without_secrets(given) == kept
