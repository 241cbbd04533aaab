"""Keys with names and limits, and what each caller may still use."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.core.errors import InvalidInput, QuotaExceeded
from penstock.runtime import keys
from penstock.runtime.keys import KeyLimits
from penstock.runtime.language.quotas import Quotas


def test_tokens_are_reserved_and_settled() -> None:
    quotas = Quotas({"a": KeyLimits(tokens_per_minute=600)}, now=0.0)
    held = quotas.reserve("a", 500, 0.0)
    with pytest.raises(QuotaExceeded, match="600 tokens a minute") as caught:
        quotas.reserve("a", 200, 0.0)
    assert caught.value.retry_after_s == pytest.approx(10.0)  # 100 more tokens at 10 a second
    quotas.settle(held, 50)
    assert quotas.reserve("a", 550, 0.0)


def test_using_more_than_reserved_is_paid_back_later() -> None:
    quotas = Quotas({"a": KeyLimits(tokens_per_minute=60)}, now=0.0)
    quotas.settle(quotas.reserve("a", 10, 0.0), 90)
    with pytest.raises(QuotaExceeded) as caught:
        quotas.reserve("a", 10, 0.0)
    assert caught.value.retry_after_s == pytest.approx(40.0)
    assert quotas.reserve("a", 10, 40.1)


def test_a_request_larger_than_a_minute_needs_a_full_bucket_and_is_not_refused_for_ever() -> None:
    quotas = Quotas({"a": KeyLimits(tokens_per_minute=60)}, now=0.0)
    quotas.settle(quotas.reserve("a", 1000, 0.0), 1000)
    with pytest.raises(QuotaExceeded):
        quotas.reserve("a", 1, 900.0)
    assert quotas.reserve("a", 1, 1000.0)


def test_requests_day_and_running_are_bounded_each() -> None:
    limits = KeyLimits(requests_per_minute=2, tokens_per_day=100, max_running=1)
    quotas = Quotas({"a": limits}, now=1000.0)
    held = quotas.reserve("a", 60, 1000.0)
    with pytest.raises(QuotaExceeded, match="max_running is 1"):
        quotas.reserve("a", 1, 1000.0)
    quotas.settle(held, 60)
    with pytest.raises(QuotaExceeded, match="has used 60") as caught:
        quotas.reserve("a", 50, 1001.0)
    assert caught.value.retry_after_s == pytest.approx(86_399.0)
    quotas.settle(quotas.reserve("a", 10, 1001.0), 10)
    with pytest.raises(QuotaExceeded, match="2 requests a minute"):
        quotas.reserve("a", 1, 1001.5)
    assert quotas.reserve("a", 90, 1000.0 + 86_400.0)


def test_the_other_choices_of_a_request_count_as_none() -> None:
    quotas = Quotas({"a": KeyLimits(requests_per_minute=1)}, now=0.0)
    assert quotas.reserve("a", 1, 0.0)
    assert quotas.reserve("a", 1, 0.0, requests=0)


def test_callers_without_limits_are_let_through() -> None:
    quotas = Quotas({"a": KeyLimits(weight=3.0)}, now=0.0)
    assert quotas.reserve("b", 10**9, 0.0) is None
    quotas.settle(None, 5)
    assert (quotas.weight("a"), quotas.weight("b")) == (3.0, 1.0)


def test_key_files(tmp_path: Path) -> None:
    plain = tmp_path / "keys"
    plain.write_text("# of clients\nfirst\n\n second \n")
    found = keys.read(plain)
    assert [key.key for key in found.keys] == ["first", "second"]
    assert all(key.name.startswith("key-") and key.key not in key.name for key in found.keys)
    tables = tmp_path / "keys.toml"
    tables.write_text('[alice]\nkey = "a"\ntokens_per_minute = 20_000\n[bob]\nkey = "b"\n')
    found = keys.read(tables)
    assert found.keys == (("a", "alice"), ("b", "bob"))
    assert found.limits["alice"] == KeyLimits(tokens_per_minute=20_000)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "holds no key"),
        ("[a]\n", 'must be a table with key = "…"'),
        ('a = "b"\n', 'must be a table with key = "…"'),
        ('[a]\nkey = "k"\ntoken_per_minute = 3\n', "did you mean 'tokens_per_minute'"),
        ('[a]\nkey = "k"\ntokens_per_day = 0\n', "tokens_per_day = 0; write a whole number above 0"),
        ('[a]\nkey = "k"\nmax_running = 1.5\n', "max_running = 1.5; write a whole number above 0"),
        ('[a]\nkey = "k"\n[b]\nkey = "k"\n', "two callers the same key"),
        ("[a\n", "is no TOML"),
    ],
)
def test_key_files_that_say_something_impossible_are_refused(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        keys.read(file)
    assert told in str(caught.value)
