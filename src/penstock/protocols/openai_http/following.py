"""The kept events of a response in the background as a stream, from any one on until the last."""

from __future__ import annotations

from collections.abc import AsyncIterator

from penstock.core.door import Door
from penstock.core.errors import NotFound, PenstockError
from penstock.protocols import HttpRequest, HttpStream
from penstock.protocols.openai_http.failures import error_object, request_id
from penstock.protocols.openai_http.files import id_error
from penstock.protocols.openai_http.responses_wire import event_of


def following(
    http: HttpRequest, door: Door, id: str, after: int, headers: tuple[tuple[str, str], ...] = ()
) -> HttpStream:
    """The events from number `after` on, as they come."""
    reader = _Reader(door, http.caller, id, after)
    return HttpStream(reader.pieces(), reader.encode_error, headers=request_id(http) + headers)


class _Reader:
    """Knows how many events were read, so that an error has the number after theirs."""

    def __init__(self, door: Door, caller: str, id: str, after: int) -> None:
        self._door = door
        self._caller = caller
        self._id = id
        self._after = after

    async def pieces(self) -> AsyncIterator[bytes]:
        while True:
            part = await self._door.responses().events(self._caller, self._id, self._after)
            self._after += len(part.events)
            if part.events:
                yield b"".join(part.events)
            if part.ended:
                return

    def encode_error(self, error: PenstockError) -> bytes:
        return error_of(error, self._after)


def error_of(error: PenstockError, number: int) -> bytes:
    """The last event of a stream that failed, also because its response was deleted. Older clients look at `error`,
    newer ones at the type."""
    found = id_error(error.message) if isinstance(error, NotFound) else error_object(error)
    return event_of("error", number, {"message": found["message"], "code": found["code"], "param": found["param"],
                                      "error": found})  # fmt: skip
