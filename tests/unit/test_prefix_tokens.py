"""What tenants may use of language models, in tokens; and what answers say that they took."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.core.errors import PermissionDenied, QuotaExceeded
from penstock.fleet.controller.tenants_api import Limits
from penstock.fleet.router.tenants import Tenants
from penstock.fleet.router.token_limits import DAY_S, TokenAccount
from penstock.fleet.router.usage import Tail, Usage, read_usage
from penstock.fleet.routes import Reply, Tenant
from penstock.fleet.store.store import Store
from penstock.fleet.store.tenants import delete_tenant, put_tenant, tenants, use_tokens


def tenant(**limits: object) -> Tenant:
    return Tenant("acme", hashlib.sha256(b"key").hexdigest(), **limits)  # type: ignore[arg-type]


def test_a_minutes_tokens_come_back_within_a_minute() -> None:
    account = TokenAccount()
    reserved = account.reserve("acme", 600, None, 1.0, 500, 100.0)
    account.settle(reserved, 500, 600, 101.0)
    with pytest.raises(QuotaExceeded) as refused:
        account.reserve("acme", 600, None, 1.0, 210, 101.0)
    assert refused.value.retry_after_s == pytest.approx((210 - 110) / 10)
    assert account.reserve("acme", 600, None, 1.0, 210, 111.1) == 210


def test_what_was_not_used_goes_back_and_what_was_over_is_owed() -> None:
    account = TokenAccount()
    account.settle(account.reserve("acme", 600, None, 1.0, 500, 0.0), 10, 600, 0.0)
    assert account.left == 590
    account.settle(account.reserve("acme", 600, None, 1.0, 100, 0.0), 900, 600, 0.0)
    with pytest.raises(QuotaExceeded, match="0 are left"):
        account.reserve("acme", 600, None, 1.0, 1, 0.0)


def test_a_request_larger_than_a_minute_comes_through_an_unused_one() -> None:
    account = TokenAccount()
    assert account.reserve("acme", 600, None, 1.0, 10_000, 0.0) == 600


def test_a_days_tokens_end_with_the_day_and_those_on_their_way_count() -> None:
    account, now = TokenAccount(), 10 * DAY_S + 100.0
    reserved = account.reserve("acme", None, 1000, 1.0, 1200, now)
    with pytest.raises(QuotaExceeded) as soon:
        account.reserve("acme", None, 1000, 1.0, 1, now)
    assert soon.value.retry_after_s is not None and soon.value.retry_after_s <= 5
    account.settle(reserved, 1000, None, now)
    with pytest.raises(QuotaExceeded) as refused:
        account.reserve("acme", None, 1000, 1.0, 1, now)
    assert refused.value.retry_after_s == pytest.approx(DAY_S - 100)
    assert account.reserve("acme", None, 1000, 1.0, 1, now + DAY_S) == 1


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 400), st.integers(0, 400), st.booleans()), max_size=60))
@settings(deadline=None)
def test_no_more_passes_than_the_rate_and_one_minutes_room(steps: list[tuple[float, int, int, bool]]) -> None:
    account, now, open_ones, used = TokenAccount(), 1000.0, [], 0.0
    for passed, wanted, took, ends in steps:
        now += passed
        try:
            open_ones.append((account.reserve("acme", 600, None, 1.0, wanted, now), min(took, wanted)))
        except QuotaExceeded as error:
            assert error.retry_after_s is not None and error.retry_after_s >= 0
        if ends and open_ones:
            reserved, really = open_ones.pop(0)
            account.settle(reserved, really, 600, now)
            used += really
        assert used <= 600 + (now - 1000.0) * 10 + 1e-6
    for reserved, really in open_ones:
        account.settle(reserved, really, 600, now)
    assert account.reserved == pytest.approx(0, abs=1e-6)


def test_a_refused_request_gives_back_what_it_reserved() -> None:
    known = Tenants([tenant(tokens_per_minute=600, rate=1.0, burst=1, deployments=("chat",))], now=0.0)
    who = known.authenticate("Bearer key")
    assert who is not None
    settle = known.reserve(who, "chat", 100, 0.0, lambda: 0.0)
    assert settle is not None
    with pytest.raises(QuotaExceeded, match="requests/s"):
        known.reserve(who, "chat", 100, 0.0, lambda: 0.0)
    with pytest.raises(PermissionDenied):
        known.reserve(who, "code", 100, 5.0, lambda: 5.0)
    settle(0.0)
    assert known._accounts["acme"].tokens_of_models.left == 600


def test_all_routers_together_keep_the_days_number(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'fleet.db'}")
    limits = {"burst": 1, "quota_period_s": 86400.0, "weight": 1.0, "rate": None, "quota": None, "deployments": ()}
    assert put_tenant(store, "acme", {**limits, "tokens_per_day": 100})
    assert put_tenant(store, "other", limits)
    found = {one.name: one for one in tenants(store)}
    assert found["acme"].tokens_per_day == 100 and found["acme"].tokens_per_minute is None
    assert found["other"].tokens_per_day is None
    assert use_tokens(store, {"acme": 60}, found, 1000.0) == {}
    assert use_tokens(store, {"acme": 60}, found, 1000.0) == {"acme": DAY_S}
    assert use_tokens(store, {}, found, 1000.0) == {"acme": DAY_S}
    assert use_tokens(store, {"acme": 1}, found, DAY_S + 1) == {}
    router = Tenants([tenant(tokens_per_day=100)], now=0.0)
    who = router.authenticate("Bearer key")
    assert who is not None
    router.replied(Reply(tokens_exhausted={"acme": DAY_S}))
    with pytest.raises(QuotaExceeded):
        router.reserve(who, "chat", 1, 1000.0, lambda: 1000.0)
    assert put_tenant(store, "acme", limits) is None
    assert {one.name: one.tokens_per_day for one in tenants(store)}["acme"] is None
    delete_tenant(store, "acme")
    assert set(Limits.__struct_fields__) >= {"tokens_per_minute", "tokens_per_day"}


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b'{"usage":{"prompt_tokens":3,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":2}}}', Usage(3, 4, 2)),
        (b'{"usage" : {"input_tokens":3,"output_tokens":4,"cache_read_input_tokens":1}}', Usage(3, 4, 1)),
        (b'data: {"usage":null}\n\ndata: {"usage":{"prompt_tokens":1}}\n\ndata: [DONE]\n\n', Usage(1)),
        (b'{"usage":{"prompt_tokens":1}} {"usage":{"prompt_tokens":2}}', Usage(2)),
        (b'{"text":"\\"usage\\":{\\"prompt_tokens\\":9}"}', Usage()),
        (b'{"usage":{"prompt_tokens":-1,"completion_tokens":"x"}}', Usage()), (b'{"usage":{', Usage()), (b"", Usage()),
        (b'{"usage":{"prompt_tokens":true}}', Usage()),
    ],
)  # fmt: skip
def test_an_answers_usage_is_read(data: bytes, wanted: Usage) -> None:
    assert read_usage(data) == wanted


@given(st.integers(1, 50), st.integers(0, 20_000))
@settings(max_examples=30, deadline=None)
def test_usage_is_found_however_the_stream_is_cut(step: int, before: int) -> None:
    data = b"data: {}\n\n" * (before // 10) + b'data: {"usage":{"prompt_tokens":5,"completion_tokens":6}}\n\n'
    tail = Tail()
    tail.add([data[at : at + step] for at in range(0, len(data), step)])
    assert tail.usage() == Usage(5, 6)
    assert tail.size == len(data)


@pytest.mark.parametrize(
    ("event", "size"),
    [
        (b'{"choices":[{"delta":{"content":"four"},"logprobs":{"content":[{"token":"four","bytes":[1]}]}}]}', 4),
        (b'{"choices":[{"delta":{"reasoning_content":"four","reasoning":"four"}}]}', 4),
        (b'{"choices":[{"text":"a\\n\\"b","finish_reason":null}]}', 4), (b'{"text_output" : "\\u4e2d"}', 3),
        (b'{"choices":[{"delta":{"tool_calls":[{"id":"c","function":{"name":"f","arguments":"{\\"a\\":1}"}}]}}]}', 7),
        (b'{"type":"content_block_delta","delta":{"type":"input_json_delta","partial_json":"{}"}}', 2),
        (b'{"type":"response.output_text.delta","delta":"four"}', 4), (b"word", 4), (b"[DONE]", 0), (b'{"choices":[]}', 0),
        (b'{"choices":[{"delta":{"content":"\\\\"},"finish_reason":"length"}]}', 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_the_text_of_a_stream_is_counted_on_every_surface_however_it_is_cut(event: bytes, size: int, step: int) -> None:
    data = b"event: message\ndata: %b\n\n" % event * 100
    tail = Tail(reads=True)
    tail.add([data[:6], *(data[at : at + step] for at in range(6, len(data), step))])
    assert (tail._events, tail._text_bytes) == (100, 100 * size)
    assert tail.written() == max(100, 100 * size / 4)


def test_an_answer_that_is_no_stream_has_no_events_and_a_line_without_end_is_not_kept() -> None:
    whole, endless = Tail(reads=True), Tail(reads=True)
    whole.add([b'{"text":"data: data: data:"}'])
    assert whole.written() is None
    endless.add([b"data: "] + [b"x" * 1000] * 1000)
    assert len(endless._line) < 70_000
