"""Clients that are slow, leave, or only finish sending."""

from __future__ import annotations

import asyncio
import socket

import pytest
from http_harness import get, infer, post, serving, stream, until
from uploads import HEAD, still_serves


async def test_slow_heads_and_bodies_are_told_and_closed() -> None:
    async with serving(header_timeout_s=0.1, body_timeout_s=0.1) as it:
        silent, slow_head, slow_body, slow_chunks, slow_direct = [await it.connect() for _ in range(5)]
        await slow_head.send(b"GET /health HTTP/1.1\r\nHost: a\r\nX:")
        await slow_body.send(HEAD + b"Content-Length: 5\r\n\r\nhel")
        await slow_chunks.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel")
        await slow_direct.send(HEAD + b"Content-Length: 100000\r\n\r\nhel")
        assert await silent.closed() == b""
        for client in (slow_head, slow_body, slow_chunks, slow_direct):
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert it.listener.counters.refused == {"timeout": 4}
        await still_serves(it)


async def test_a_client_that_drips_its_head_does_not_gain_time() -> None:
    async with serving(header_timeout_s=0.2) as it:
        client = await it.connect()

        async def drip() -> None:
            for byte in get("/health", "X: " + "y" * 1000):
                await client.send(bytes([byte]))
                await asyncio.sleep(0.01)

        dripping = asyncio.ensure_future(drip())
        assert (await client.answer()).status == 408
        dripping.cancel()


async def test_idle_connections_close_and_waiting_ones_do_not() -> None:
    async with serving(keep_alive_s=0.1, header_timeout_s=0.1, body_timeout_s=0.1) as it:
        idle, busy = await it.connect(), await it.connect()
        await idle.ask(get("/health"))
        it.door.gate.clear()
        await busy.send(infer([1], id="a"))
        assert await idle.closed() == b""
        await until(lambda: it.listener.counters.connections_open == 1)
        it.door.gate.set()
        assert (await busy.answer()).json["id"] == "a"


async def test_a_reader_that_takes_nothing_is_cut_and_what_it_asked_is_bounded() -> None:
    async with serving(write_timeout_s=0.2) as it:
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect(("127.0.0.1", it.port))
            raw.sendall(get("/zeros/3000000") * 50)
            await until(lambda: it.listener.counters.responses[2] >= 1)
            for _ in range(50):
                await asyncio.sleep(0)
            assert it.listener.counters.responses[2] <= 17  # those begun before the first answer filled the buffer
            await until(lambda: it.listener.counters.connections_open == 0)
        await still_serves(it)


async def test_a_slow_stream_reader_stops_the_model_and_is_cut() -> None:
    async with serving(write_timeout_s=0.3) as it:
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect(("127.0.0.1", it.port))
            raw.sendall(stream(range(1000), size=20_000))  # 80 KB of text each
            await until(lambda: it.door.items_made > 0)
            await until(lambda: it.listener.counters.connections_open == 0)
            assert it.door.items_made < 200
            await until(lambda: it.door.streams_open == 0)
        await still_serves(it)


async def test_a_stream_goes_on_when_its_reader_does() -> None:
    async with serving() as it:
        client = await it.connect()
        await client.send(stream(range(300), size=5_000))
        await until(lambda: it.door.items_made > 3)
        answer = await client.answer()
        assert len(answer.chunks) == 301
        assert answer.complete


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_a_request_whose_client_left_is_taken_out_of_the_queue(how: str) -> None:
    """Both ways of leaving: with a reset, and with the plain FIN of a close, which a half-close also sends."""
    async with serving(tick_s=10.0) as it:
        it.door.gate.clear()
        client = await it.connect()
        await client.send(infer([1], id="a"))
        await until(lambda: "a" in it.door.waiting)
        left = asyncio.get_running_loop().time()
        if how == "reset":
            client.reset()
        else:
            client.writer.close()
        await until(lambda: it.door.cancelled == ["a"])
        assert asyncio.get_running_loop().time() - left < 0.05 + 0.05  # 50 ms are allowed; some for a busy machine
        assert it.listener.counters.abandoned == 1
        assert it.listener.counters.connections_open == 0


async def test_a_call_whose_client_left_is_cancelled() -> None:
    async with serving() as it:
        it.protocol.gate.clear()
        client = await it.connect()
        await client.send(get("/slow"))
        await until(lambda: it.listener.counters.bytes_received > 0)
        client.reset()
        await until(lambda: it.protocol.calls_cancelled == 1)


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_a_stream_whose_client_left_is_closed(how: str) -> None:
    async with serving() as it:
        client = await it.connect()
        await client.send(stream(range(200_000), size=10))
        await client.reader.readuntil(b"data: [")
        if how == "reset":
            client.reset()
        else:
            client.writer.close()
        await until(lambda: it.door.streams_open == 0 and it.door.streams_closed == 1)


async def test_a_quiet_stream_whose_client_closed_is_closed_before_its_next_item() -> None:
    async with serving() as it:
        client = await it.connect()
        it.door.gate.set()
        await client.send(stream([1, 2]))
        it.door.gate.clear()  # the first item may or may not be out: both must do
        await until(lambda: it.door.streams_open + it.door.streams_closed == 1)
        client.writer.close()
        await until(lambda: it.door.streams_open == 0)


async def test_a_client_that_only_finished_sending_gets_its_answer() -> None:
    async with serving() as it:
        it.door.gate.clear()
        client = await it.connect()
        await client.send(infer([1], id="a") + infer([2], id="b"))
        client.writer.write_eof()
        await until(lambda: len(it.door.waiting) == 2)
        answer = await client.answer()
        assert answer.status == 100  # how we know that it is still there
        it.door.gate.set()
        assert (await client.answer()).json["id"] == "a"
        assert (await client.answer()).json["id"] == "b"
        assert await client.closed() == b""


async def test_a_half_closed_stream_is_finished() -> None:
    async with serving() as it:
        client = await it.connect()
        await client.send(stream(range(100), size=5_000))
        client.writer.write_eof()
        answer = await client.answer()
        if answer.status == 100:
            answer = await client.answer()
        assert len([chunk for chunk in answer.chunks if chunk != b":\n\n"]) == 101


async def test_leaving_at_every_byte_harms_nobody() -> None:
    data = infer([1, 2, 3], id="a")
    async with serving() as it:
        it.door.gate.clear()
        for cut in range(0, len(data), 5):
            client = await it.connect()
            await client.send(data[:cut])
            if cut % 2:
                client.reset()
            else:
                client.writer.close()
        client = await it.connect()
        await client.send(post("/upload", bytes(300_000))[:200_000])
        client.reset()
        it.door.gate.set()
        await until(lambda: it.listener.counters.connections_open == 0)
        await still_serves(it)
