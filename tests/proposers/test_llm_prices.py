"""What tokens cost: whose table counts, which names it covers, and what is no table."""

from __future__ import annotations

import json

import pytest

from autokernel.proposers._prices import SHIPPED, Price, Usage, price_of
from autokernel.types import AutokernelError


def test_a_price_is_usd_per_million_tokens():
    usage = Usage(input=1_000_000, output=100_000, cache_read=2_000_000, cache_write=400_000)
    assert Price(input=4, output=20, cache_read=0.2, cache_write=5).cost_usd(usage) == pytest.approx(4 + 2 + 0.4 + 2)
    assert usage.tokens_in == 3_400_000


@pytest.mark.parametrize(
    ("model", "same_as"),
    [
        ("claude-haiku-4-5-20251001", "claude-haiku-4-5"),
        ("gpt-5-2025-08-07", "gpt-5"),
        ("claude-opus-5-5", "claude-opus-5-5"),
        ("claude-opus-5-7", None),  # another model than claude-opus-5
        ("gpt-5-mini", None),
        ("gpt-5-2025-08-07-tuned", None),
        ("claude", None),
        ("", None),
    ],
)
def test_a_model_is_named_in_full_or_is_a_dated_snapshot(model, same_as):
    assert price_of(model, None) == (price_of(same_as, None) if same_as else None)


def test_the_shipped_table_states_its_date_and_is_sound():
    listed = json.loads(SHIPPED.read_text())
    assert "2026-11-20" in listed.pop("about")
    for model in listed:
        price = price_of(model, None)
        assert 0 < price.cache_read <= price.input <= price.cache_write <= price.output


def test_the_owners_table_comes_first_and_adds_to_the_shipped_one(tmp_path):
    own = tmp_path / "prices.json"
    own.write_text(
        '{"about": "mine", "claude-opus-5-5": {"input": 1, "output": 2}, "my-model": {"input": 3, "output": 4}}'
    )
    assert price_of("claude-opus-5-5", own) == Price(1, 2, 1, 1)
    assert price_of("my-model", own) == Price(3, 4, 3, 3)
    assert price_of("claude-haiku-4-5", own) == price_of("claude-haiku-4-5", None)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "JSON file that can be read"),
        ("[]", "expected an object from model to prices, got list"),
        ('{"m": 3}', 'expected "m" to be like'),
        ('{"m": {"input": 1}}', 'expected "m" to be like'),
        ('{"m": {"input": 1, "output": "2"}}', 'expected "m" to be like'),
        ('{"m": {"input": 1, "output": -2}}', 'expected "m" to be like'),
        ('{"m": {"input": true, "output": 2}}', 'expected "m" to be like'),
        ('{"m": {"input": 1, "output": 2, "cached": 3}}', 'expected "m" to be like'),
    ],
)
def test_what_is_no_table_is_told_in_one_line(tmp_path, text, told):
    own = tmp_path / "prices.json"
    own.write_text(text)
    with pytest.raises(AutokernelError, match=told) as error:
        price_of("m", own)
    assert len(str(error.value).splitlines()) == 1


def test_a_table_that_is_not_there_is_told(tmp_path):
    with pytest.raises(AutokernelError, match="expected --prices to be a JSON file"):
        price_of("m", tmp_path / "no.json")
