"""A tenant's rate over several routers."""

from __future__ import annotations

import pytest

from penstock.fleet.controller.tenant_shares import Shares


def test_one_router_has_all() -> None:
    assert Shares().of("a", {"t": 5}, {"t"}, ["a"], 1.0) == {}


def test_routers_together_have_the_whole_rate_and_most_goes_where_the_tenant_calls() -> None:
    shares, routers = Shares(), ["a", "b", "c"]
    shares.of("a", {"t": 90}, {"t"}, routers, 1.0)
    shares.of("b", {"t": 10}, {"t"}, routers, 1.0)
    parts = [shares.of(router, {}, {"t"}, routers, 1.0)["t"] for router in routers]
    assert sum(parts) == pytest.approx(1)
    assert parts[0] > 0.7 > parts[1] > parts[2] > 0


def test_nobody_knows_where_a_new_tenant_calls() -> None:
    assert Shares().of("a", {}, {"t"}, ["a", "b"], 1.0) == {"t": pytest.approx(0.5)}


def test_what_was_long_ago_counts_little_and_gone_routers_nothing() -> None:
    shares = Shares()
    shares.of("a", {"t": 100}, {"t"}, ["a", "b"], 0.0)
    assert shares.of("b", {"t": 10}, {"t"}, ["a", "b"], 30.0)["t"] > 0.85
    assert shares.of("b", {"t": 10}, {"t"}, ["b", "c"], 31.0)["t"] == pytest.approx(0.9)
