"""What routes that generate have in common: reading a body, opening a model, sending events as they come.

An error before the first token is an ordinary HTTP answer, so that a client may try again elsewhere. Later it is the
last event of the stream, which then ends without `[DONE]`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Final, Protocol, TypeVar, cast

from penstock.core import trace
from penstock.core.compression import decompress
from penstock.core.door import Door
from penstock.core.errors import InvalidInput, PenstockError, TooLarge, Unsupported
from penstock.core.fields import Fields
from penstock.core.json_body import read_object
from penstock.core.language import Ask, Began, Event, LanguageModel
from penstock.core.model_names import Found, every, find
from penstock.protocols import HttpRequest, HttpResponse, HttpStream
from penstock.protocols.openai_http.failures import error_event, refused, request_id
from penstock.protocols.openai_http.shapes import Head, fingerprint

E = TypeVar("E", contravariant=True)

LONGEST_MODEL: Final = 512  # characters of a model's name

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
    body = decompress(http.body, http.header(b"content-encoding"), http.limits.decompressed_bytes)
    http.body = b""
    members = read_object(body)
    _check_depth(members, http.limits.json_depth)
    return Fields(members)


def _check_depth(members: object, most: int) -> None:
    """Schemas and templates' arguments are walked later by code that calls itself. Raises: InvalidInput."""
    level: list[object] = [members]
    for _ in range(most):
        inner: list[object] = []
        for one in level:
            if isinstance(one, dict):
                inner += [value for value in one.values() if isinstance(value, (dict, list))]
            elif isinstance(one, list):
                inner += [value for value in one if isinstance(value, (dict, list))]
        if not inner:
            return
        level = inner
    raise InvalidInput(f"the body is nested more than {most} deep, the most that this server takes")


async def named_model(fields: Fields, door: Door) -> tuple[str, Found]:
    """The model that `model` names, and that name. Without one, the only language model of the server.

    Raises: InvalidInput, NotFound, NotReady.
    """
    name = fields.text("model", LONGEST_MODEL)
    if name is None:
        models = await every(door)
        if len(models) != 1:
            raise fields.missing("model")
        return models[0].card.name, Found(models[0])
    try:
        return name, await find(door, name)
    except Unsupported as error:
        raise InvalidInput(error.message, parameter="model", problem="unsupported_model") from error


def head_of(kind: str, name: str, model: LanguageModel) -> Head:
    """The head of a new answer, its id beginning with `kind`."""
    return Head(f"{kind}-{uuid.uuid4().hex}", int(CLOCK()), name, fingerprint(model.card))


def told(ask: Ask, http: HttpRequest, head: Head) -> Ask:
    """`ask` with what the request's headers and its listener say."""
    ask.id, ask.caller, ask.deadline = head.id, http.caller, http.deadline
    if b"traceparent" in http.headers:
        ask.trace = trace.read(
            http.header(b"traceparent"), http.header(b"tracestate"), http.header(b"baggage")
        )  # fmt: skip
    return ask


async def asked(model: LanguageModel, ask: Ask) -> AsyncGenerator[Event, None]:
    """Events of an ask. A prompt that does not fit is an error of its own in this API.

    Raises: as `LanguageModel.ask`; InvalidInput `context_length_exceeded`.
    """
    events = cast(AsyncGenerator[Event, None], model.ask(ask))
    async with aclosing(events):
        try:
            async for event in events:
                yield event
        except TooLarge as error:
            parameter = "messages" if ask.messages is not None else "prompt"
            raise InvalidInput(error.message, parameter=parameter, problem="context_length_exceeded") from error


def streamed(
    events: AsyncGenerator[E, None], chunks: Chunks[E], http: HttpRequest, headers: tuple[tuple[str, str], ...]
) -> HttpStream:
    """The answer as events. Its first piece is there once something was generated."""
    return HttpStream(_pieces(events, chunks), error_event, headers=request_id(http) + headers)


async def _pieces(events: AsyncGenerator[E, None], chunks: Chunks[E]) -> AsyncIterator[bytes]:
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
