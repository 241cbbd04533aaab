"""Who may call: keys, allowed deployments, rates and quotas."""

from __future__ import annotations

import gc
import hashlib
import statistics
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.core.errors import PermissionDenied, QuotaExceeded, Unauthenticated
from penstock.core.http_status import error_headers, http_status
from penstock.fleet.router.tenants import PUBLIC_PATHS, Tenants
from penstock.fleet.routes import Reply, Tenant


def tenant(name: str = "acme", key: str = "key", **limits: object) -> Tenant:
    return Tenant(name, hashlib.sha256(key.encode()).hexdigest(), **limits)  # type: ignore[arg-type]


def test_without_tenants_everybody_is_let_in() -> None:
    tenants = Tenants()
    assert not tenants.required
    assert tenants.authenticate(None) is None
    tenants.admit(None, "fraud", 0.0)


def test_a_key_is_found_in_either_header_as_text_or_bytes() -> None:
    acme, other = tenant(), tenant("other", "key2")
    tenants = Tenants([acme, other])
    assert tenants.authenticate(b"Bearer key") == acme
    assert tenants.authenticate("bearer  key2 ") == other
    assert tenants.authenticate(None, b"key2") == other
    assert tenants.authenticate("Bearer key", "key2") == acme  # both: Authorization counts


@pytest.mark.parametrize(
    ("authorization", "api_key"),
    [
        (None, None), ("", None), ("Bearer", None), ("Bearer ", None), ("Basic key", None), ("Bearer nope", None),
        (None, "nope"), (None, ""), ("Bearer " + "x" * 100_000, None), ("Basic x", "key"), ("Bearer k\u00e9y\ud800", None),
        (None, hashlib.sha256(b"key").hexdigest()),  # the digest is no key
    ],
)  # fmt: skip
def test_anything_else_is_401(authorization: str | None, api_key: str | None) -> None:
    with pytest.raises(Unauthenticated) as refused:
        Tenants([tenant()]).authenticate(authorization, api_key)
    assert http_status(refused.value) == 401
    assert ("WWW-Authenticate", "Bearer") in error_headers(refused.value)


def test_a_digest_that_is_none_lets_nobody_in() -> None:
    tenants = Tenants([Tenant("empty", ""), Tenant("odd", "zz"), Tenant("short", "00")])
    for key in ("", "zz", "00", "\x00"):
        with pytest.raises(Unauthenticated):
            tenants.authenticate(None, key)


def test_a_deployment_that_is_not_the_tenants_is_403() -> None:
    tenants = Tenants([tenant(deployments=("fraud",))])
    tenants.admit(tenants.authenticate("Bearer key"), "fraud", 0.0)
    with pytest.raises(PermissionDenied) as refused:
        tenants.admit(tenants.authenticate("Bearer key"), "iris", 0.0)
    assert http_status(refused.value) == 403


def test_above_the_rate_is_429_with_the_time_until_the_next_token() -> None:
    acme = tenant(rate=2.0, burst=3)
    tenants = Tenants([acme], now=100.0)
    for _ in range(3):
        tenants.admit(acme, "fraud", 100.0)
    with pytest.raises(QuotaExceeded) as refused:
        tenants.admit(acme, "fraud", 100.1)
    assert http_status(refused.value) == 429
    assert refused.value.retry_after_s == pytest.approx(0.4)
    tenants.admit(acme, "fraud", 100.5)
    with pytest.raises(QuotaExceeded):
        tenants.admit(acme, "fraud", 100.5)


@given(st.lists(st.floats(0, 3), min_size=1, max_size=200), st.floats(0.1, 20), st.integers(1, 10))
@settings(deadline=None)
def test_in_any_time_a_tenant_gets_at_most_its_burst_and_rate(gaps: list[float], rate: float, burst: int) -> None:
    acme = tenant(rate=rate, burst=burst)
    tenants, now, admitted = Tenants([acme], now=0.0), 0.0, []
    for gap in gaps:
        now += gap
        try:
            tenants.admit(acme, "m", now)
            admitted.append(now)
        except QuotaExceeded as refused:
            assert refused.retry_after_s is not None
            assert 0 < refused.retry_after_s <= 1 / rate + 1e-9
    for first in range(len(admitted)):
        for last in range(first, len(admitted)):
            assert last - first + 1 <= burst + rate * (admitted[last] - admitted[first]) + 1e-6


def test_a_clock_that_jumps_grants_one_burst_and_takes_nothing() -> None:
    acme = tenant(rate=1.0, burst=2)
    tenants = Tenants([acme], now=10_000.0)
    tenants.admit(acme, "m", 10_000.0)
    tenants.admit(acme, "m", 6_400.0)  # an hour back: the second token is still there
    tenants.admit(acme, "m", 6_401.0)  # and a second later there is the next
    for _ in range(2):
        tenants.admit(acme, "m", 20_000.0)
    with pytest.raises(QuotaExceeded):
        tenants.admit(acme, "m", 20_000.0)


def test_a_quota_holds_on_one_router_alone_until_its_period_ends() -> None:
    acme = tenant(quota=3, quota_period_s=60.0)
    tenants = Tenants([acme])
    for now in (600.0, 610.0, 659.0):
        tenants.admit(acme, "m", now)
    with pytest.raises(QuotaExceeded) as refused:
        tenants.admit(acme, "m", 659.5)
    assert refused.value.retry_after_s == pytest.approx(0.5)
    tenants.admit(acme, "m", 660.0)


def test_what_all_routers_used_together_counts_from_the_next_report_on() -> None:
    acme = tenant(quota=10, quota_period_s=60.0)
    one, two = Tenants([acme]), Tenants([acme])
    for _ in range(6):
        one.admit(acme, "m", 600.0)
        two.admit(acme, "m", 600.0)
    assert one.take_used() == {"acme": 6} and one.take_used() == {}
    two.keep_used(two.take_used())  # its report was lost: the next one has all
    two.admit(acme, "m", 601.0)
    assert two.take_used() == {"acme": 7}
    for router in (one, two):
        router.replied(Reply(exhausted={"acme": 660.0, "gone": 1.0}))
        with pytest.raises(QuotaExceeded) as refused:
            router.admit(acme, "m", 630.0)
        assert refused.value.retry_after_s == pytest.approx(30.0)
        router.admit(acme, "m", 661.0)
    one.replied(Reply(exhausted={"acme": 720.0}))
    one.replied(Reply())  # the quota was raised meanwhile
    one.admit(acme, "m", 662.0)


def test_a_rate_is_shared_by_routers_as_the_controller_says() -> None:
    acme = tenant(rate=10.0, burst=1)
    tenants = Tenants([acme], now=0.0)
    tenants.replied(Reply(shares={"acme": 0.25}))
    admitted = 0
    for step in range(1000):
        try:
            tenants.admit(acme, "m", step / 100)
            admitted += 1
        except QuotaExceeded:
            pass
    assert 24 <= admitted <= 27


def test_a_new_table_keeps_what_was_used_and_drops_who_left() -> None:
    acme = tenant(rate=1.0, burst=5, quota=100)
    tenants = Tenants([acme], now=0.0)
    for _ in range(5):
        tenants.admit(acme, "m", 0.0)
    rekeyed = tenant(key="new", rate=1.0, burst=2, quota=100)
    tenants.update([rekeyed, tenant("other", "k")], 0.0)
    with pytest.raises(Unauthenticated):
        tenants.authenticate("Bearer key")
    assert tenants.authenticate("Bearer new") == rekeyed
    with pytest.raises(QuotaExceeded):
        tenants.admit(rekeyed, "m", 0.5)
    tenants.admit(rekeyed, "m", 1.0)
    assert tenants.take_used() == {"acme": 6}
    tenants.update([], 2.0)
    assert not tenants.required
    with pytest.raises(Unauthenticated):
        tenants.admit(rekeyed, "m", 3.0)  # it was on its way when its tenant was deleted


def test_refused_requests_use_nothing() -> None:
    acme = tenant(rate=1.0, burst=1, quota=5, deployments=("m",))
    tenants = Tenants([acme], now=0.0)
    tenants.admit(acme, "m", 0.0)
    for _ in range(50):
        with pytest.raises(QuotaExceeded):
            tenants.admit(acme, "m", 0.0)
        with pytest.raises(PermissionDenied):
            tenants.admit(acme, "other", 0.0)
    assert tenants.take_used() == {"acme": 1}


def test_whatever_keys_clients_send_leaves_no_trace_in_memory() -> None:
    tenants = Tenants([tenant(rate=1e9, burst=10**9)], now=0.0)

    def send(count: int) -> None:
        for number in range(count):
            with pytest.raises(Unauthenticated):
                tenants.authenticate(f"Bearer wrong-{number}", f"also-{number}")

    send(100)
    tracemalloc.start()
    try:
        send(1_000)  # pytest's own record of the errors
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        send(10_000)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 64 << 10


def test_the_time_of_a_look_up_does_not_grow_with_tenants() -> None:
    def cost_s(count: int) -> float:
        tenants = Tenants([tenant(f"t{number}", f"key{number}") for number in range(count)])
        key, timings = f"Bearer key{count - 1}", []
        for _ in range(20):
            began = time.perf_counter()
            for _ in range(100):
                tenants.authenticate(key)
            timings.append(time.perf_counter() - began)
        return statistics.median(timings) / 100

    assert cost_s(5000) < 20 * cost_s(5)  # comparing with each would be 1,000 times


def test_probes_need_no_key() -> None:
    assert PUBLIC_PATHS.issuperset({"/v2/health/live", "/v2/health/ready"})
