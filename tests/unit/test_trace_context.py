from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.core import caller, trace
from penstock.core.trace import RequestTrace, TraceContext, leading, read

ID, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{ID}-{SPAN}-01"


def test_a_context_is_read_and_written_as_it_came() -> None:
    found = read(PARENT, "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7", "user=7,tier=gold;ttl=3")
    assert found is not None and found.sampled and (found.trace_id, found.span_id) == (ID, SPAN)
    assert found.headers() == {
        "traceparent": PARENT,
        "tracestate": "congo=t61rcWkgMzE,rojo=00f067aa0ba902b7",
        "baggage": "user=7,tier=gold;ttl=3",
    }
    assert read(f" {PARENT}\t") == TraceContext(ID, SPAN, 1)


@pytest.mark.parametrize(
    "header",
    [
        "", "00", PARENT.upper(), PARENT[:-1], f"ff-{ID}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01",
        f"00-{ID}-{'0' * 16}-01", f"{PARENT}-extra", f"{PARENT}, {PARENT}", f"00-{ID[:-1]}g-{SPAN}-01",
        PARENT.replace("-", "_"), f"0{PARENT}", "é" * 55,
    ],
)  # fmt: skip
def test_an_invalid_traceparent_begins_a_new_trace(header: str) -> None:
    assert read(header, "a=b", "c=d") is None


def test_a_later_version_is_read_as_far_as_it_is_known() -> None:
    assert read(f"42-{ID}-{SPAN}-01-what-the-future-brings") == TraceContext(ID, SPAN, 1)
    assert read(f"42-{ID}-{SPAN}-01what") is None
    assert read(f"00-{ID}-{SPAN}-ff") == TraceContext(ID, SPAN, 3), "flags that nobody has defined are not passed on"


@pytest.mark.parametrize(
    "state", ["no members", "a=1,a=2", "A=1", ",".join(f"k{n}=1" for n in range(33)), "a=é", "a=b=c", "=x", "a="]
)
def test_an_invalid_tracestate_is_dropped_alone(state: str) -> None:
    assert read(PARENT, state) == TraceContext(ID, SPAN, 1)


def test_what_is_too_long_loses_whole_members() -> None:
    long = "vendor=" + "x" * 200
    found = read(PARENT, f"{long},short=1," + ",".join(f"k{n}={'y' * 60}" for n in range(9)), "b=" + "z" * 9000)
    assert found is not None
    assert found.state.startswith("short=1,k0=") and len(found.state) <= 512 and found.state.endswith("y" * 60)
    assert found.baggage == ""
    many = read(PARENT, "", ",".join(f"k{n}=v" for n in range(100)))
    assert many is not None and many.baggage.count(",") == 63


@given(st.text(max_size=600), st.text(max_size=600), st.text(max_size=600))
def test_nothing_that_is_sent_raises_and_all_that_is_read_can_be_sent_again(
    parent: str, state: str, baggage: str
) -> None:
    for header in (parent, PARENT):
        found = read(header, state, baggage)
        if found is not None:
            assert read(*found.headers().get("traceparent", "").split("\0"), found.state, found.baggage) == found
            assert all(text.isascii() and text.isprintable() for text in found.headers().values())


def test_the_first_recorded_request_stands_for_its_batch() -> None:
    plain, recorded = TraceContext("1" * 32, SPAN, 0), TraceContext("2" * 32, SPAN, 1)
    assert leading([]) is None
    assert leading([RequestTrace(0, 1, plain)]) == plain
    assert leading([RequestTrace(0, 1, plain), RequestTrace(1, 2, recorded)]) == recorded


def test_user_code_sees_who_waits_and_may_choose_a_trace() -> None:
    one, two = TraceContext("1" * 32, SPAN, 1), TraceContext("2" * 32, SPAN, 1)
    traces = (RequestTrace(0, 2, one), RequestTrace(2, 3, two))
    assert (caller.current_trace(), caller.request_traces(), caller.deadline()) == (None, (), float("inf"))
    token = caller.enter(17.0, traces)
    assert (caller.current_trace(), caller.request_traces(), caller.deadline()) == (one, traces, 17.0)
    with caller.use_trace(two):
        assert (caller.current_trace(), caller.deadline(), caller.chosen()) == (two, 17.0, True)
    assert caller.current_trace() == one and not caller.chosen()
    caller.leave(token)
    assert caller.current_trace() is None
    assert trace.TRACEPARENT == "traceparent"
