"""What routes that generate have in common: reading a body, opening a model, sending events as they come.

An error before the first token is an ordinary HTTP answer, so that a client may try again elsewhere. Later it is the
last event of the stream, which then ends without `[DONE]`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Final, Protocol, TypeVar, cast

from penstock.core import language_calls, trace
from penstock.core.errors import InvalidInput, PenstockError, TooLarge, Unsupported
from penstock.core.fields import Fields
from penstock.core.language import Ask, Began, Event, LanguageModel
from penstock.protocols import HttpRequest, HttpResponse, HttpStream
from penstock.protocols.openai_http.failures import error_event, refused, request_id
from penstock.protocols.openai_http.shapes import Head, fingerprint

E = TypeVar("E", contravariant=True)

# `created` is part of every answer, and the only thing here that asks what time it is.
CLOCK: Final[Callable[[], float]] = time.time


class Chunks(Protocol[E]):
    """Writes events of a stream."""

    def encode(self, event: E) -> bytes: ...

    def end(self) -> bytes: ...


class Whole(Protocol[E]):
    """Gathers events into one object."""

    def add(self, event: E) -> None: ...

    def body(self) -> bytes: ...


def read_fields(http: HttpRequest) -> Fields:
    """The body's members; the body itself is let go. Raises: InvalidInput, TooLarge, Unsupported."""
    body, http.body = http.body, b""
    limits = http.limits
    return language_calls.read_fields(
        body, http.header(b"content-encoding"), limits.decompressed_bytes, limits.json_depth
    )


def head_of(kind: str, name: str, model: LanguageModel) -> Head:
    """The head of a new answer, its id beginning with `kind`."""
    return Head(f"{kind}-{uuid.uuid4().hex}", int(CLOCK()), name, fingerprint(model.card))


def told(ask: Ask, http: HttpRequest, head: Head) -> Ask:
    """`ask` with what the request's headers and its listener say."""
    ask.id, ask.caller, ask.deadline, ask.notes = head.id, http.caller, http.deadline, http.notes
    if http.priority:
        ask.priority = http.priority
    if b"traceparent" in http.headers:
        ask.trace = trace.read(
            http.header(b"traceparent"), http.header(b"tracestate"), http.header(b"baggage")
        )  # fmt: skip
    return ask


async def asked(model: LanguageModel, ask: Ask) -> AsyncGenerator[Event, None]:
    """Events of an ask. A prompt that does not fit is an error of its own in this API.

    Raises: as `LanguageModel.ask`; InvalidInput `context_length_exceeded`, `unsupported_model`.
    """
    events = cast(AsyncGenerator[Event, None], model.ask(ask))
    async with aclosing(events):
        try:
            async for event in events:
                yield event
        except TooLarge as error:
            parameter = error.parameter or ("messages" if ask.messages is not None else "prompt")
            raise InvalidInput(error.message, parameter=parameter, problem="context_length_exceeded") from error
        except Unsupported as error:
            if model.card.info.generates:
                raise
            raise InvalidInput(error.message, parameter="model", problem="unsupported_model") from error


def streamed(
    events: AsyncGenerator[E, None], chunks: Chunks[E], http: HttpRequest, headers: tuple[tuple[str, str], ...]
) -> HttpStream:
    """The answer as events. Its first piece is there once something was generated."""
    return HttpStream(pieces(events, chunks), error_event, headers=request_id(http) + headers)


def write_early(ask: Ask, stream: HttpStream, encode: Callable[[Event], bytes]) -> HttpStream:
    """`stream`, with events of `ask` written as they come wherever that changes no order."""

    def take(events: Sequence[Event]) -> bool:
        write = stream.writer()
        if write is None:
            return False
        piece = encode(events[0]) if len(events) == 1 else b"".join(map(encode, events))
        if piece:
            write(piece)
        return True

    ask.take = take
    return stream


async def pieces(events: AsyncGenerator[E, None], chunks: Chunks[E]) -> AsyncIterator[bytes]:
    """The bytes of all events that have some, then the end."""
    encode = chunks.encode
    async with aclosing(events):
        async for event in events:
            piece = encode(event)
            if piece:
                yield piece
    yield chunks.end()


async def gathered(
    events: AsyncGenerator[E, None], whole: Whole[E], http: HttpRequest, headers: tuple[tuple[str, str], ...]
) -> HttpResponse:
    """The answer in one piece."""
    begun = False
    try:
        async with aclosing(events):
            async for event in events:
                begun = begun or not isinstance(event, Began)
                whole.add(event)
        return HttpResponse(200, whole.body(), headers=request_id(http) + headers)
    except PenstockError as error:
        return refused(error, http, begun)
