"""Whatever the body and however it is cut: what one side sends is what the other side gets, byte by byte, and the
connections stay in step."""

from __future__ import annotations

import asyncio

import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st
from router_harness import Replica, Request, endpoint, post, replicas, rig

SIZES = st.one_of(st.integers(0, 300), st.integers(60_000, 70_000), st.integers(250_000, 600_000))
CUTS = st.lists(st.integers(1, 200_000), max_size=6)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """`data` in pieces of these sizes, and the rest."""
    pieces = []
    for size in places:
        piece, data = data[:size], data[size:]
        if piece:
            pieces.append(piece)
    return [*pieces, data] if data else pieces


def body(size: int, seed: int) -> bytes:
    """Bytes in which every cut shows, and which look like framing now and then."""
    pattern = b"\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n" + bytes((seed + 7 * place) % 256 for place in range(997))
    return (pattern * (size // len(pattern) + 1))[:size]


def in_chunks(pieces: list[bytes]) -> bytes:
    return b"".join(b"%X;x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\nT: 1\r\n\r\n"


MESSAGES = st.lists(st.tuples(SIZES, CUTS, st.booleans(), SIZES, CUTS, st.booleans()), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(MESSAGES, st.lists(st.integers(1, 50_000), max_size=12))
def test_bodies_pass_through_unchanged(
    messages: list[tuple[int, list[int], bool, int, list[int], bool]], writes
) -> None:  # type: ignore[no-untyped-def]
    uvloop.run(_pass(messages, writes))


async def _pass(messages: list[tuple[int, list[int], bool, int, list[int], bool]], writes: list[int]) -> None:
    answers = iter(messages)

    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        _, _, _, size, places, chunked = next(answers)
        data = body(size, 1)
        if chunked:
            whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + in_chunks(cut(data, places))
        else:
            whole = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + data
        for piece in cut(whole, writes):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)

    async with replicas(Replica(script)) as (replica,), rig() as router:
        router.follow(endpoint(replica))
        caller = await router.caller()
        sent = b""
        for size, places, chunked, *_ in messages:
            data = body(size, 2)
            if chunked:
                head = post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
                sent += head + in_chunks(cut(data, places))
            else:
                sent += post(data)

        async def write() -> None:
            for piece in cut(sent, writes):
                caller.send(piece)
                await caller.writer.drain()
                await asyncio.sleep(0)

        writing = asyncio.create_task(write())
        for number, (size, _, _, answer_size, _, _) in enumerate(messages):
            answer = await caller.answer()
            assert answer.status == 200 and answer.complete
            assert answer.body == body(answer_size, 1)
            assert replica.seen[number].body == body(size, 2)  # the next one may be there already
        await writing
        assert len(replica.seen) == len(messages) and replica.connections == 1
