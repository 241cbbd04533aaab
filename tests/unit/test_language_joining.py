"""Deltas on their way out of a worker: what may be joined is, nothing is lost, and the end comes last."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from penstock.core.errors import ServableError
from penstock.core.language import Delta, EngineLoad, Generation, TokenLogprob
from penstock.runtime.adapters.language import LanguageServable
from penstock.runtime.engines import EngineContext
from penstock.runtime.engines.echo import EchoEngine
from penstock.runtime.language import wire
from penstock.runtime.language.joining import Joiner
from penstock.runtime.workers import frame
from penstock.runtime.workers.outlet import Outlet, Sluice
from penstock.runtime.workers.stream import Inbox, Stream


class Reader:
    """An outlet that keeps what was put, with room for so many pieces."""

    def __init__(self, room: int) -> None:
        self.on_room: Callable[[], None] = lambda: None
        self.left = room
        self.deltas: list[Delta] = []
        self.counts: list[int] = []

    def room(self) -> bool:
        return self.left > 0

    def put(self, piece: bytes, count: int) -> None:
        self.left -= 1
        self.deltas.append(msgspec.msgpack.decode(piece, type=Delta))
        self.counts.append(count)

    def take(self, count: int) -> None:
        self.left += count
        self.on_room()


def test_a_reader_that_keeps_up_gets_each_delta() -> None:
    reader = Reader(10)
    joiner = Joiner(reader)
    sent = [Delta((token,)) for token in range(3)] + [Delta((3,), finish_reason="stop")]
    for delta in sent:
        joiner.put(delta)
    assert reader.deltas == sent
    assert reader.counts == [1, 1, 1, 1]


async def test_what_a_slow_reader_has_no_room_for_becomes_one_delta() -> None:
    reader = Reader(1)
    joiner = Joiner(reader)
    joiner.put(Delta((0,), cached_tokens=7))
    load = EngineLoad(3)
    for token in range(1, 5):
        joiner.put(Delta((token,), (TokenLogprob(token, -1.0),), load=load if token == 2 else None))
    joiner.put(Delta((5,), (TokenLogprob(5, -1.0),), finish_reason="length"))
    ending = asyncio.create_task(joiner.sent())
    await asyncio.sleep(0)
    assert len(reader.deltas) == 1 and not ending.done()
    reader.take(1)
    await asyncio.wait_for(ending, 5)
    joined = reader.deltas[1]
    assert joined.token_ids == (1, 2, 3, 4, 5)
    assert [found.token_id for found in joined.logprobs] == [1, 2, 3, 4, 5]
    assert (joined.finish_reason, joined.load, reader.counts) == ("length", load, [1, 5])


@pytest.mark.parametrize("size", [1, 300])
async def test_no_piece_has_more_tokens_than_the_front_may_read_in_one_go(size: int) -> None:
    reader = Reader(0 if size == 1 else 100)
    joiner = Joiner(reader)
    logprobs = [TokenLogprob(token, -1.0) for token in range(300)]
    for at in range(0, 300, size):
        joiner.put(
            Delta(
                tuple(range(at, at + size)), tuple(logprobs[at : at + size]),
                prompt_logprobs=(None,) if at == 0 else (), cached_tokens=7 if at == 0 else -1,
                finish_reason="length" if at + size == 300 else "", load=EngineLoad(at) if at + size == 300 else None,
            )
        )  # fmt: skip
    if size == 1:
        reader.take(2)
        assert reader.counts == [64, 64]
        reader.take(100)
    assert reader.counts == [64, 64, 64, 64, 44]
    assert [token for delta in reader.deltas for token in delta.token_ids] == list(range(300))
    assert [found for delta in reader.deltas for found in delta.logprobs] == logprobs
    assert [delta.prompt_logprobs for delta in reader.deltas] == [(None,), (), (), (), ()]
    assert [delta.cached_tokens for delta in reader.deltas] == [7, -1, -1, -1, -1]
    assert [delta.finish_reason for delta in reader.deltas] == ["", "", "", "", "length"]
    assert [delta.load is not None for delta in reader.deltas] == [False] * 4 + [True]
    await asyncio.wait_for(joiner.sent(), 5)


async def test_gathered_tokens_go_out_at_once_first_then_by_number_or_time_and_at_the_end() -> None:
    reader = Reader(100)
    joiner = Joiner(reader, gather_s=60.0)
    for token in range(20):
        joiner.put(Delta((token,)))
    joiner.put(Delta((20,), finish_reason="stop"))
    await asyncio.wait_for(joiner.sent(), 5)
    assert [delta.token_ids for delta in reader.deltas] == [(0,), tuple(range(1, 17)), tuple(range(17, 21))]
    assert [delta.finish_reason for delta in reader.deltas] == ["", "", "stop"]


async def test_events_are_never_joined_and_their_engine_waits() -> None:
    reader = Reader(1)
    joiner = Joiner(reader)
    for event in (b"a", b"b", b"c"):
        joiner.put(Delta(event=event))
    waiting = asyncio.create_task(joiner.sent())
    await asyncio.sleep(0)
    assert not waiting.done()
    reader.take(1)
    await asyncio.sleep(0)
    assert not waiting.done()
    reader.take(2)
    await asyncio.wait_for(waiting, 5)
    assert [delta.event for delta in reader.deltas] == [b"a", b"b", b"c"]


class Failing(EchoEngine):
    """Says two tokens, then breaks."""

    async def generate(self, generation: Generation) -> AsyncIterator[Delta]:
        yield Delta((1,))
        yield Delta((2,))
        raise ServableError("it broke")


@pytest.mark.parametrize(("gather_s", "room"), [(0.0, 1), (60.0, 9)])
async def test_what_waits_when_its_engine_fails_comes_before_the_error(gather_s: float, room: int) -> None:
    reader = Reader(room)
    inputs, parameters = wire.ask(Generation("a", (1, 2), 9, gather_s=gather_s))
    with pytest.raises(ServableError, match="it broke"):
        await LanguageServable(Failing(EngineContext("m"))).pour(inputs, parameters, reader)
    assert [delta.token_ids for delta in reader.deltas] == [(1,), (2,)]
    assert reader.counts == [1, 1]


async def test_what_waits_when_its_reader_leaves_is_forgotten() -> None:
    reader = Reader(1)
    inputs, parameters = wire.ask(Generation("a", tuple(b"say:hello"), 9))
    pouring = asyncio.create_task(LanguageServable(EchoEngine(EngineContext("m"))).pour(inputs, parameters, reader))
    for _ in range(30):  # it goes on, and then waits for its reader
        await asyncio.sleep(0)
    pouring.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pouring
    assert reader.counts == [1]


class Wire:
    """Stands where a channel would: what was sent, as it would be read."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    def send(self, message: frame.Message) -> None:
        self.messages.append(frame.encode(message))

    def read(self, inboxes: dict[int, Inbox]) -> None:
        for message in map(frame.decode, self.messages):
            assert isinstance(message, frame.Pieces)
            for number, count, piece in message.entries:
                inboxes[number].pour(count, piece)


@pytest.mark.parametrize("sizes", [[0, 1, 100], [8192, 8193, 5], [100_000, 3, 40_000], [12_000] * 5])
async def test_pieces_of_any_size_come_whole_and_in_order_in_messages_that_fit_a_socket(sizes: list[int]) -> None:
    wire = Wire()
    sluice = Sluice(wire)  # type: ignore[arg-type]
    pieces = {number: [bytes([number]) * size for size in sizes] for number in (1, 2)}
    for at in range(len(sizes)):
        for number, each in pieces.items():
            Outlet(number, sluice, 4).put(each[at], at)
    sluice.flush()
    assert all(len(message) < 16 << 10 for message in wire.messages)
    inboxes = {number: Inbox(lambda taken: None, lambda left: None) for number in pieces}
    wire.read(inboxes)
    for number, each in pieces.items():
        inboxes[number].finish(None)
        assert [item["piece"].tobytes() async for item in Stream(inboxes[number])] == each


async def test_a_piece_of_many_entries_takes_time_in_proportion_to_its_size() -> None:
    inbox = Inbox(lambda taken: None, lambda left: None)
    entry = bytes(8 << 10)
    began = time.thread_time()
    for _ in range(1200):
        inbox.pour(frame.MORE, entry)
    inbox.pour(1, b"end")
    spent_s = time.thread_time() - began
    assert (await inbox.next())["piece"].size == 1200 * len(entry) + 3
    assert spent_s < 0.2  # copied again for each entry it would be some 6 GB


async def test_pieces_of_one_turn_of_the_loop_are_one_message() -> None:
    wire = Wire()
    sluice = Sluice(wire)  # type: ignore[arg-type]
    outlets = [Outlet(number, sluice, 4) for number in range(16)]
    for outlet in outlets:
        outlet.put(b"x" * 90, 1)
    assert wire.messages == []
    await asyncio.sleep(0)
    assert len(wire.messages) == 1
    for _ in range(3):
        outlets[0].put(b"x", 1)
    assert not outlets[0].room() and outlets[1].room()
    outlets[0].credit(2)
    assert outlets[0].room()
