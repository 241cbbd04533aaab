"""Server-sent events, without I/O. Source: HTML Living Standard, 9.2."""

from __future__ import annotations

from collections.abc import Generator

import orjson

from penstock.client.calls import Call, Json
from penstock.client.http1 import Need, Piece, read_head, read_pieces, read_rest
from penstock.core.errors import Internal, ServableError, TooLarge, rebuild


class EventParser:
    """Cuts bytes, however they are split, into the data of events. An event has at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes | bytearray) -> list[bytes]:
        """The data of the events that `data` completes. Raises: TooLarge."""
        whole = self._rest + data
        # A CR at the very end may be half of a CRLF: it waits for what follows.
        end = len(whole) - 1 if whole.endswith(b"\r") else len(whole)
        *lines, rest = whole[:end].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = rest + whole[end:]
        events = []
        for line in lines:
            if line:
                self._take(line)
            elif self._data:
                events.append(b"\n".join(self._data))
                self._data, self._size = [], 0
        if self._size + len(self._rest) > self._limit:
            raise TooLarge(f"an event has more than the {self._limit} bytes that this client takes")
        return events

    def _take(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        if field == b"data":
            self._data.append(value.removeprefix(b" "))
            self._size += len(value) + 1  # empty lines count too: each one is kept


def read_stream(call: Call[Json], limit: int) -> Generator[Need | Json, bytes | bytearray, bool]:
    """Reads the answers of a stream: yields needs (see `http1`), and answers, to which nothing is sent. At the end
    gives back whether the connection can be kept.

    Raises:
        PenstockError: what the server answered instead, or sent in the stream.
    """
    head = yield from read_head(call.method)
    if head.status != 200 or "text/event-stream" not in head.headers.get("content-type", ""):
        reply = yield from read_rest(head, limit)
        yield call.read(reply)
        return reply.keep_alive
    parser = EventParser(limit)
    pieces = read_pieces(head)
    try:
        need = next(pieces)
        while True:
            if isinstance(need, Piece):
                for event in parser.feed(need.data):
                    if event.strip() != b"[DONE]":
                        yield _answer(event)
                need = next(pieces)
            else:
                need = pieces.send((yield need))
    except StopIteration:
        return head.keep_alive


def _answer(event: bytes) -> Json:
    try:
        answer = orjson.loads(event)
    except orjson.JSONDecodeError as error:
        raise Internal(f"the server sent an event that cannot be read: {error}") from None
    if not isinstance(answer, dict):
        raise Internal("the server sent an event that is no object")
    if "error" in answer and answer.keys() <= {"error", "type"}:
        kind = str(answer.get("type", ServableError.__name__))  # other servers name none
        raise rebuild(kind, str(answer["error"]))
    return answer
