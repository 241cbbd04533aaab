"""Large bodies, in every way of coming, and the memory that they take."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from http_harness import infer, post, serving, until
from uploads import HEAD, still_serves


async def test_bodies_of_every_way_of_coming_are_whole() -> None:
    async with serving() as it:
        client = await it.connect()
        for size in (0, 1, 65_535, 65_536, 65_537, 300_000, 5_000_000):
            body = os.urandom(size)
            want = [size, zlib.crc32(body)]
            sending = asyncio.ensure_future(client.send(post("/upload", body)))
            assert (await client.answer()).json == want
            await sending
            framed = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (body[:7], body[7:1000], body[1000:]) if p)
            sending = asyncio.ensure_future(
                client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n\r\n")
            )
            assert (await client.answer()).json == want
            await sending
        assert (await client.ask(infer([1]))).status == 200


async def test_a_large_body_followed_by_a_pipelined_request_is_cut_at_the_right_byte() -> None:
    async with serving() as it:
        client = await it.connect()
        body = os.urandom(200_001)
        sending = asyncio.ensure_future(client.send((post("/upload", body) + infer([2], id="x")) * 3))
        for _ in range(3):
            assert (await client.answer()).json == [200_001, zlib.crc32(body)]
            assert (await client.answer()).json == {"id": "x", "y": [4]}
        await sending


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# A process of its own: what earlier tests left behind in this one moves its marks by more than a body.
RECEIVER = r"""
import asyncio, gc, importlib, sys
from pathlib import Path
from http_harness import infer, serving


def peak_bytes():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) << 10


async def main():
    async with serving() as it:
        client = await it.connect()
        assert (await client.ask(infer([1]))).status == 200
        await client.close()
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the mark begins anew
        before = peak_bytes()
        print(it.port, flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        print(peak_bytes() - before, flush=True)


importlib.import_module(sys.argv[1]).run(main())
"""


def send_zeros(port: int, size: int, framed: bool) -> None:
    """Uploads so many zeros, in chunks of 1 MiB if `framed`, and reads the answer, which counts them."""
    framing = b"Transfer-Encoding: chunked" if framed else b"Content-Length: %d" % size
    piece = bytes(1 << 20)
    if framed:
        piece = b"100000\r\n" + piece + b"\r\n"
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(HEAD + framing + b"\r\n\r\n")
        for _ in range(size >> 20):
            client.sendall(piece)
        if framed:
            client.sendall(b"0\r\n\r\n")
        answer = b""
        while b"]" not in answer:
            answer += client.recv(65536)
    assert b" 200 " in answer
    assert b"[%d," % size in answer


@pytest.mark.parametrize("framed", [False, True], ids=["announced", "chunked"])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_body_of_100_mb_costs_little_more_than_its_size(loop: str, framed: bool) -> None:
    size = 100 << 20
    # Nobody knows the length of a chunked body beforehand: it grows by an eighth at a time.
    most = 1.35 if framed else 1.2
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", RECEIVER, loop], env={**os.environ, "PYTHONPATH": paths}, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    ) as receiver:  # fmt: skip
        assert receiver.stdin is not None
        assert receiver.stdout is not None
        try:
            send_zeros(int(receiver.stdout.readline()), size, framed)
            receiver.stdin.write("\n")
            receiver.stdin.flush()
            assert 0.5 * size < int(receiver.stdout.readline()) <= most * size
        finally:
            receiver.kill()


async def test_a_decoded_body_is_not_kept_while_its_request_waits() -> None:
    async with serving() as it:
        client = await it.connect()
        it.door.gate.clear()
        await client.send(infer(range(1000), id="a"))
        await until(lambda: "a" in it.door.waiting)
        assert it.protocol.last is not None
        assert it.protocol.last.body == b""


async def test_an_announcement_alone_costs_no_memory() -> None:
    async with serving() as it:
        await still_serves(it)
        before = resident_bytes()
        clients = [await it.connect() for _ in range(20)]
        for client in clients:
            await client.send(HEAD + b"Content-Length: 200000000\r\n\r\nabc")
        await until(lambda: it.listener.counters.bytes_received > 20 * 60)
        assert resident_bytes() - before < 100_000_000
        for client in clients:
            client.reset()
