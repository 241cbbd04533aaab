"""Hostile requests: smuggling and limits. The listener outlives them and serves the next."""

from __future__ import annotations

import asyncio
import zlib

import pytest
from http_harness import get, serving, until
from uploads import HEAD, still_serves


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400),
        (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
        (HEAD + b"Content-Length: 5, 5\r\n\r\nhello", 400),
        (HEAD + b"Content-Length: +5\r\n\r\nhello", 400),
        (HEAD + b"Content-Length: -5\r\n\r\nhello", 400),
        (HEAD + b"Content-Length: 0x5\r\n\r\nhello", 400),
        (HEAD + b"Content-Length: 5 5\r\n\r\nhello", 400),
        (HEAD + b"Content-Length: 99999999999999999999\r\n\r\n", 400),
        (HEAD + b"Content-Length:\r\n\r\n", 400),
        (HEAD + b"Content-Length : 5\r\n\r\nhello", 400),
        (HEAD + b"Transfer-Encoding: gzip\r\n\r\nhello", 501),
        (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
        (HEAD + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n", 400),
        (b"POST /upload HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"X: a\r\n b\r\n\r\n", 400),
        (HEAD + b"X: a\x00b\r\n\r\n", 400),
        (HEAD + b"X: a\rb\r\n\r\n", 400),
        (HEAD + b"X\r\n\r\n", 400),
        (HEAD + b"Host: b\r\n\r\n", 400),
        (b"POST /upload HTTP/1.1\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\nHost: a\n\n", 400),
        (b"GET /health HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET /health\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"GET health HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /../health HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /models/%2e%2e HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /models/%00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /models/%ff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"FROB / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ],
)
async def test_what_two_parsers_could_read_differently_is_refused_and_the_connection_closed(
    data: bytes, status: int
) -> None:
    async with serving() as it:
        client = await it.connect()
        await client.send(data + b"GET /health HTTP/1.1\r\nHost: smuggled\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert await client.closed() == b""
        assert it.listener.counters.responses[2] == 0
        assert sum(it.listener.counters.refused.values()) == 1
        await still_serves(it)


@pytest.mark.parametrize(
    "data",
    [
        b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X-%d: 1\r\n" % n for n in range(100_000)),
        b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * 100_000,
        b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 2_000_000,
        b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"X" * 2_000_000,
        b"GET /" + b"x" * 2_000_000,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: 1\r\n" * 100_000,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"x" * 2_000_000,
    ],
    ids=["many", "repeated", "long-value", "long-name", "long-target", "many-trailers", "long-trailer"],
)
async def test_a_head_beyond_the_limits_is_refused_while_it_comes(data: bytes) -> None:
    async with serving() as it:
        client = await it.connect()
        sending = asyncio.ensure_future(client.send(data))
        answer = await client.answer()
        assert answer.status in (400, 431)  # 400: a trailer's bytes are first of all framing
        assert await client.closed() == b""
        sending.cancel()
        await still_serves(it)


async def test_repeated_headers_count_one_by_one() -> None:
    async with serving(max_headers=20) as it:
        client = await it.connect()
        assert (await client.ask(get("/health", *["X: 1"] * 19))).status == 200
        assert (await client.ask(get("/health", *["X: 1"] * 20))).status == 431


async def test_a_head_just_within_the_limits_is_read() -> None:
    async with serving(max_headers=20, max_header_bytes=2000) as it:
        client = await it.connect()
        assert (await client.ask(get("/health", *(f"X-{n}: 1" for n in range(19))))).status == 200
        assert (await client.ask(get("/health", f"X: {'x' * 1900}"))).status == 200
        for number in range(60):  # pipelined in one read: heads are counted one by one, not together
            await client.send(get("/health", f"X-{number}: {'x' * 900}"))
        assert [(await client.answer()).status for _ in range(60)] == [200] * 60
        assert (await client.ask(get("/health", *(f"X-{n}: 1" for n in range(20))))).status == 431


async def test_chunks_that_are_mostly_extensions_are_refused() -> None:
    async with serving() as it:
        client = await it.connect()
        await client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        piece = b"1;" + b"x" * 10_000 + b"\r\na\r\n"

        async def send_pieces() -> None:
            for _ in range(1000):
                await client.send(piece)

        sending = asyncio.ensure_future(send_pieces())
        assert (await client.answer()).status == 400
        sending.cancel()


async def test_small_chunks_are_no_offence() -> None:
    async with serving() as it:
        client = await it.connect()
        for _ in range(3):
            sending = asyncio.ensure_future(
                client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 100_000 + b"0\r\n\r\n")
            )
            assert (await client.answer()).json == [100_000, zlib.crc32(b"a" * 100_000)]
            await sending


async def test_an_announced_body_over_the_limit_is_refused_before_it_is_read() -> None:
    async with serving(max_body_bytes=1000) as it:
        client = await it.connect()
        await client.send(HEAD + b"Content-Length: 1001\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        client = await it.connect()
        assert (await client.ask(HEAD + b"Content-Length: 1000\r\n\r\n" + bytes(1000))).json[0] == 1000
        client = await it.connect()
        await client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"3e8\r\n" + bytes(1000) + b"\r\n")
        assert (await client.ask(b"1\r\na\r\n")).status == 413
        assert await client.closed() == b""


async def test_a_client_that_sends_its_refused_body_anyway_can_read_why() -> None:
    """Closing at once would reset the connection under the answer."""
    async with serving(max_body_bytes=1000) as it:
        client = await it.connect()
        await client.send(HEAD + b"Content-Length: 30000000\r\n\r\n")
        await client.send(bytes(30_000_000))
        assert (await client.answer()).status == 413
        await client.close()
        await until(lambda: it.listener.counters.connections_open == 0)


async def test_lingering_ends_even_if_the_client_never_does() -> None:
    async with serving(max_body_bytes=1000, linger_s=0.05) as it:
        client = await it.connect()
        await client.send(HEAD + b"Content-Length: 30000000\r\n\r\n")
        await until(lambda: it.listener.counters.responses[4] == 1)
        await until(lambda: it.listener.counters.connections_open == 0)
