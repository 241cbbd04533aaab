"""The short way of a delta: only while its reader waits, never past anything, and the last one goes the long way."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from penstock.core.errors import WorkerLost
from penstock.core.language import Delta, Event, Finished, Text
from penstock.language.tokenizer import ByteTokenizer
from penstock.runtime.language import wire
from penstock.runtime.language.choice_text import ChoiceText
from penstock.runtime.language.pushing import Pusher
from penstock.runtime.workers import frame
from penstock.runtime.workers.stream import Inbox, Stream


class Pushed:
    """Takes what it is given, unless it is told not to."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.takes = True

    def __call__(self, count: int, piece: bytes) -> bool:
        if self.takes:
            self.pieces.append(piece)
        return self.takes


@pytest.fixture
def taken() -> list[int]:
    return []


@pytest.fixture
def inbox(taken: list[int]) -> Inbox:
    return Inbox(taken.append, lambda left: None)


async def next_of(stream: Stream) -> bytes:
    return (await anext(stream))["piece"].tobytes()  # type: ignore[no-any-return]


async def test_pieces_are_pushed_only_while_the_reader_waits(inbox: Inbox, taken: list[int]) -> None:
    pushed, stream = Pushed(), Stream(inbox)
    inbox.push_to(pushed)
    inbox.pour(1, b"a")  # nobody waits yet
    assert await next_of(stream) == b"a"
    reading = asyncio.create_task(next_of(stream))
    await asyncio.sleep(0)
    inbox.pour(1, b"b")
    inbox.pour(frame.MORE, b"c")
    inbox.pour(1, b"d")
    assert (pushed.pieces, taken) == ([b"b", b"cd"], [1, 2, 3])
    pushed.takes = False
    inbox.pour(1, b"e")
    pushed.takes = True
    inbox.pour(1, b"f")  # the reader is awake now, and has not come back
    assert await reading == b"e"
    assert await next_of(stream) == b"f"
    assert (pushed.pieces, taken) == ([b"b", b"cd"], [1, 2, 3, 4, 5])


async def test_what_a_piece_counts_for_comes_with_it(inbox: Inbox) -> None:
    stream = Stream(inbox)
    inbox.pour(5, b"a")
    inbox.pour(2, b"b")
    assert (await next_of(stream), stream.count) == (b"a", 5)
    assert (await next_of(stream), stream.count) == (b"b", 2)
    inbox.feed({"piece": np.zeros(1, np.uint8)})
    assert (await next_of(stream), stream.count) == (b"\0", 0)


async def test_the_end_comes_to_the_reader_after_what_was_pushed(inbox: Inbox) -> None:
    pushed, stream = Pushed(), Stream(inbox)
    inbox.push_to(pushed)
    reading = asyncio.create_task(next_of(stream))
    await asyncio.sleep(0)
    inbox.pour(1, b"a")
    inbox.finish(WorkerLost("it died", begun=True, died_at=0.0))
    with pytest.raises(WorkerLost):
        await reading
    assert pushed.pieces == [b"a"]


class Wall:
    """Where events are written; open or not."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.open = True

    def take(self, events: Sequence[Event]) -> bool:
        if self.open:
            self.events += events
        return self.open


def pusher(wall: Wall, **options: object) -> Pusher:
    choice = ChoiceText(0, ByteTokenizer(), ends=frozenset((256,)), **options)  # type: ignore[arg-type]
    made = Pusher(choice, lambda delta, now: None, wall.take)
    made.begun = True
    return made


def sent(text: str, reason: str = "") -> bytes:
    return wire.piece(Delta(tuple(text.encode()), finish_reason=reason))  # type: ignore[arg-type]


def test_text_is_taken_at_once_and_the_last_delta_waits_for_the_iterator() -> None:
    wall = Wall()
    made = pusher(wall)
    assert made.push(2, sent("he")) and made.push(3, sent("llo"))
    assert wall.events == [Text(0, "he", (), False, 2), Text(0, "llo", (), False, 3)]
    assert made.left() is None
    assert not made.push(1, sent("!", "length"))
    assert made.left() == [Text(0, "!", (), False, 1), Finished(0, "length")]
    assert made.left() is None


def test_the_first_delta_goes_the_long_way() -> None:
    wall = Wall()
    made = pusher(wall)
    made.begun = False
    assert not made.push(1, sent("a"))
    assert made.left() is None


def test_what_cannot_be_written_now_is_read_once() -> None:
    wall = Wall()
    made = pusher(wall)
    wall.open = False
    assert not made.push(1, sent("a"))
    assert made.left() == [Text(0, "a", (), False, 1)]
    wall.open = True
    assert made.push(1, sent("b"))
    assert wall.events == [Text(0, "b", (), False, 1)]


def test_half_a_character_is_no_event_and_its_tokens_count_with_the_rest() -> None:
    wall = Wall()
    made = pusher(wall)
    euro = "x€".encode()
    for byte in euro:
        assert made.push(1, wire.piece(Delta((byte,))))
    assert wall.events == [Text(0, "x", (), False, 1), Text(0, "€", (), False, 3)]


def test_a_stop_string_ends_the_answer_through_the_iterator_and_counts_no_token_after_it() -> None:
    wall = Wall()
    made = pusher(wall, stop=("lo",))
    assert made.push(2, sent("he"))
    assert not made.push(5, sent("llo w"))
    found = made.left()
    assert found is not None and found[-1] == Finished(0, "stop", "lo")
    assert "".join(event.text for event in [*wall.events, *found] if isinstance(event, Text)) == "hel"
    assert made._choice.tokens == 5


def test_an_error_while_reading_is_raised_where_the_iterator_is_read() -> None:
    made = pusher(Wall())
    assert not made.push(1, b"no delta")
    with pytest.raises(ValueError, match=r"."):
        made.left()
