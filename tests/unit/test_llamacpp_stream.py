"""The reader of llama.cpp's streams: however the bytes are cut, refusals, and what is no answer."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from penstock.core.errors import InvalidInput, PenstockError, ServableError, TooLarge
from penstock.runtime.engines.llamacpp.stream import stream
from penstock.runtime.engines.llamacpp.wire import Part, error_of

HEAD = b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nTransfer-Encoding: chunked\r\n\r\n"
MESSAGES = [b'data: {"content":"\xc3\xa9","tokens":[%d],"tokens_predicted":%d}\n\n' % (at, at) for at in range(1, 30)]


def chunked(*bodies: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(body), body) for body in bodies)


def parts_of(
    folder: Path, answer: bytes, size: int, take: int = 1000, found: list[Part] | None = None
) -> tuple[list[Part], bytes]:
    """What is read of an answer that comes in pieces of a size, and what had been asked; at most `take` messages. They
    are put into `found` as they come."""
    messages = [] if found is None else found
    path = str(folder / "s")
    asked = b""
    moved = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked = await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(2)
        for at in range(0, len(answer), size):
            moved.clear()
            writer.write(answer[at : at + size])
            await moved.wait()
        writer.close()

    async def read() -> list[Part]:
        async with (
            await asyncio.start_unix_server(serve, path),
            aclosing(stream(path, "the-key", b"{}", moved.set)) as came,
        ):
            async for parts in came:
                assert parts
                messages.extend(parts)
                if len(messages) >= take:
                    break
                for _ in range(4):  # more may come before the next are taken
                    await asyncio.sleep(0)
        return messages

    return asyncio.run(read()), asked


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 100_000])
def test_messages_are_whole_however_they_were_cut(tmp_path: Path, size: int) -> None:
    split = b"".join(MESSAGES)
    for bodies in (MESSAGES, [split[at : at + 11] for at in range(0, len(split), 11)], [b": ping\n\n" + split]):
        found, asked = parts_of(tmp_path, HEAD + chunked(*bodies) + b"0\r\n\r\n", size)
        assert [part.tokens for part in found] == [[at] for at in range(1, 30)]
        assert {part.content for part in found} == {"é"}
        assert b"Authorization: Bearer the-key\r\n" in asked and asked.endswith(b"{}")


def test_leaving_early_closes_the_connection(tmp_path: Path) -> None:
    found, _ = parts_of(tmp_path, HEAD + chunked(*MESSAGES), 80, take=3)
    assert 3 <= len(found) < 29


def test_an_answer_that_breaks_off_ends(tmp_path: Path) -> None:
    found, _ = parts_of(tmp_path, HEAD + chunked(*MESSAGES)[:-40], 64)
    assert len(found) == 28


@pytest.mark.parametrize("size", [1, 1000])
def test_refusals_say_what_was_refused(tmp_path: Path, size: int) -> None:
    body = b'{"error":{"code":400,"message":"no such grammar","type":"invalid_request_error"}}'
    answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with pytest.raises(InvalidInput, match="no such grammar"):
        parts_of(tmp_path, answer, size)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 503 Busy\r\n\r\nloading", b"nonsense\r\n\r\n", HEAD + b"zz\r\n"])
def test_what_is_no_answer_is_an_error(tmp_path: Path, answer: bytes) -> None:
    with pytest.raises(PenstockError) as caught:
        parts_of(tmp_path, answer, 1000)
    assert isinstance(caught.value, ServableError) or caught.value.code == "UNAVAILABLE"


def test_messages_before_an_unreadable_byte_come_once_and_then_the_error(tmp_path: Path) -> None:
    found: list[Part] = []
    readable = HEAD + chunked(*MESSAGES[:2]) + b"zz\r\n"
    with pytest.raises(ServableError, match="cannot be read"):
        parts_of(tmp_path, readable + b"more\r\n", len(readable), found=found)
    assert [part.tokens for part in found] == [[1], [2]]


@pytest.mark.parametrize("said", [b'data: {"error":%b}', b"error: %b", b'error: {"error":%b}'])
def test_a_fault_in_the_middle_is_read_however_it_is_said(tmp_path: Path, said: bytes) -> None:
    fault = b'{"code":400,"message":"too long","type":"exceed_context_size_error"}'
    found, _ = parts_of(tmp_path, HEAD + chunked(MESSAGES[0], said % fault + b"\n\n") + b"0\r\n\r\n", 7)
    assert found[0].tokens == [1]
    assert found[1].error is not None
    assert isinstance(error_of(found[1].error), TooLarge)
