"""How a byte stream is cut into reads changes nothing, and no bytes at all kill the listener."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable

import uvloop
from http_harness import JsonProtocol, NumpyDoor, get, infer, post, serving, stream
from hypothesis import example, given, settings
from hypothesis import strategies as st

from penstock.protocols import HttpRequest, HttpResponse
from penstock.runtime.listeners.http_options import HttpOptions
from penstock.runtime.listeners.reader import CLOSED, Reader
from penstock.runtime.listeners.router import Found, Router
from penstock.runtime.listeners.site import Site

CHUNKED = (
    b"POST /echo/c HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nabc\r\n7;e=1\r\ndefghij\r\n0\r\nT: 1\r\n\r\n"
)
UPGRADE = post("/echo/u", b"body", "Connection: Upgrade", "Upgrade: h2c")
MESSAGES = [
    infer([1, 2], id="a"),
    get("/health"),
    get("/nowhere?x=%20"),
    post("/echo/big", b"x" * 70_000),
    post("/echo/dropped/too/many", b"y" * 500),
    CHUNKED,
    UPGRADE,
    UPGRADE.replace(b"Content-Length: 4", b"Transfer-Encoding: chunked").replace(b"body", b"4\r\nbody\r\n0\r\n\r\n"),
    post("/echo/e", b"", "X-A: 1", "X-A: 2"),
    get("/models", method="HEAD"),
]


class Seen:
    """Everything a reader said."""

    def __init__(self) -> None:
        self.said: list[object] = []
        self.continues = 0

    def request(self, http: HttpRequest, target: Found | HttpResponse, keep_alive: bool, http10: bool) -> None:
        where = target.route.pattern if isinstance(target, Found) else target.status
        self.said.append((http.method, http.path, http.query, dict(http.headers), bytes(http.body), where, keep_alive))

    def refused(self, response: HttpResponse) -> None:
        self.said.append(("refused", response.status))

    def say_continue(self) -> None:
        self.continues += 1


def read(pieces: Iterable[bytes], **options: int) -> Seen:
    seen = Seen()
    site = Site(NumpyDoor(), Router([JsonProtocol()]), HttpOptions(**options))  # type: ignore[arg-type]
    reader = Reader(site, seen)
    for piece in pieces:
        if reader.state != CLOSED:
            reader.feed(piece)
    reader.close()
    assert "internal" not in site.counters.refused
    return seen


def cut(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    points = sorted({0, len(data), *(point % (len(data) + 1) for point in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(points)]


@given(st.lists(st.sampled_from(MESSAGES), min_size=1, max_size=5), st.lists(st.integers(0, 1 << 20), max_size=30))
@settings(max_examples=150, deadline=None)
def test_any_cutting_of_valid_requests_reads_the_same(messages: list[bytes], cuts: list[int]) -> None:
    data = b"".join(messages)
    whole = read([data])
    assert len(whole.said) == len(messages)
    assert not any("refused" in str(said) for said in whole.said)
    assert read(cut(data, cuts)).said == whole.said


def test_one_byte_at_a_time_reads_the_same() -> None:
    data = b"".join(message for message in MESSAGES if len(message) < 10_000)
    assert read(data[i : i + 1] for i in range(len(data))).said == read([data]).said


@given(
    st.sampled_from([message for message in MESSAGES if len(message) < 10_000]),
    st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=4), st.integers(0, 3)), min_size=1, max_size=4),
    st.lists(st.integers(0, 1000), max_size=5),
)
@settings(max_examples=300, deadline=None)
def test_damaged_requests_never_raise_and_end_the_same_however_cut(
    message: bytes, damages: list[tuple[int, bytes, int]], cuts: list[int]
) -> None:
    data = message
    for at, insert, drop in damages:
        at %= len(data) + 1
        data = data[:at] + insert + data[at + drop :]
    assert read(cut(data, cuts)).said == read([data]).said


@given(st.binary(max_size=2000), st.lists(st.integers(0, 2000), max_size=5))
@example(b"\r\n" * 1000, [])
@settings(max_examples=200, deadline=None)
def test_garbage_is_refused_at_most_once(data: bytes, cuts: list[int]) -> None:
    said = read(cut(data, cuts)).said
    assert sum("refused" in str(one) for one in said) <= 1


@given(st.integers(1, 200), st.integers(0, 400), st.integers(1, 50))
@settings(max_examples=100, deadline=None)
def test_a_head_over_its_limit_is_never_read(limit: int, size: int, step: int) -> None:
    data = get("/health", "X: " + "x" * size)
    seen = read((data[i : i + step] for i in range(0, len(data), step)), max_header_bytes=limit)
    fields = len("/health") + len("Hosttest") + 4 + len("X") + size + 4
    if fields > limit:
        assert seen.said == [("refused", 431)]


SOCKET_GARBAGE = st.one_of(
    st.binary(min_size=1, max_size=300),
    st.builds(
        lambda message, at, junk: message[: at % len(message)] + junk + message[at % len(message) :],
        st.sampled_from([*MESSAGES, stream([1, 2])]),
        st.integers(0, 1 << 16),
        st.binary(min_size=1, max_size=20),
    ),
)


@given(st.lists(SOCKET_GARBAGE, min_size=20, max_size=20))
@settings(max_examples=10, deadline=None)
def test_no_bytes_from_a_socket_kill_the_listener(junk: list[bytes]) -> None:
    async def main() -> None:
        async with serving(header_timeout_s=0.02, body_timeout_s=0.02, keep_alive_s=0.02, linger_s=0.02) as it:
            for data in junk:
                client = await it.connect()
                await client.send(data)
                client.writer.write_eof()
                await asyncio.wait_for(client.closed(), 5)
                await client.close()
                good = await it.connect()
                assert (await good.ask(infer([1]))).status == 200
                await good.close()
            assert "internal" not in it.listener.counters.refused

    uvloop.run(main())
