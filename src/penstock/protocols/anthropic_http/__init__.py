"""Anthropic's Messages API: `POST /v1/messages` and `/v1/messages/count_tokens`.

`reading` and `conversation` read requests, `writing` writes answers, `failures` the errors. Models are listed where
OpenAI's API lists them, at `/v1/models`.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Final, cast

import orjson

from penstock.core import language_calls, trace
from penstock.core.door import Door
from penstock.core.errors import InvalidInput, PenstockError, TooLarge
from penstock.core.fields import Fields
from penstock.core.language import Ask, Began, Event, LanguageModel
from penstock.protocols import CallRoute, HttpRequest, HttpResponse, HttpStream, Route
from penstock.protocols.anthropic_http import operations
from penstock.protocols.anthropic_http.failures import error_document, refused, request_id_of
from penstock.protocols.anthropic_http.reading import Wish, decode
from penstock.protocols.anthropic_http.writing import MessageAnswer, MessageStream

# Of the API. What 2026-10-21 took away (temperature, top_p, top_k) is answered in both: engines here still have it. The
# version before them streams in another form. Source: https://platform.claude.com/docs/en/api/versioning
_VERSIONS: Final = ("2023-06-01", "2026-10-21")


class AnthropicHttp:
    """The protocol's routes and its errors."""

    name = "anthropic_http"
    title = "Anthropic"

    def routes(self) -> Sequence[Route]:
        return [
            CallRoute("POST", "/v1/messages", create, "Answer a conversation", openapi=operations.MESSAGES),
            CallRoute("POST", "/v1/messages/count_tokens", count, "The tokens of a conversation",
                      openapi=operations.COUNT),
        ]  # fmt: skip

    def encode_error(self, error: PenstockError, request: HttpRequest) -> HttpResponse:
        """`{"type": "error", "error": {"type", "message"}, "request_id"}`."""
        return refused(error, request, request_id_of(request))


async def create(http: HttpRequest, door: Door) -> HttpResponse | HttpStream:
    """An answer to a conversation."""
    request_id = request_id_of(http)
    fields = _read(http)
    name, found = await language_calls.named_model(fields, door)
    ask, wish = decode(fields, found.model.card)
    ask.adapter = found.adapter
    ask.id = f"msg_{uuid.uuid4().hex}"
    ask.caller, ask.deadline, ask.notes = http.caller, http.deadline, http.notes
    if b"traceparent" in http.headers:
        ask.trace = trace.read(http.header(b"traceparent"), http.header(b"tracestate"), http.header(b"baggage"))
    events = _asked(found.model, ask)
    headers = _headers(request_id, wish)
    if wish.stream:
        pieces = _pieces(events, MessageStream(ask.id, name, wish.thoughts))
        return HttpStream(pieces, lambda error: _error_event(error, request_id), headers=headers)
    answer, begun = MessageAnswer(ask.id, name, wish.thoughts), False
    try:
        async with aclosing(events):
            async for event in events:
                begun = begun or not isinstance(event, Began)
                answer.add(event)
        return HttpResponse(200, answer.body(), headers=headers)
    except PenstockError as error:
        return refused(error, http, request_id, begun)


async def count(http: HttpRequest, door: Door) -> HttpResponse:
    """The tokens of what a conversation becomes, without an answer to it."""
    request_id = request_id_of(http)
    fields = _read(http)
    _, found = await language_calls.named_model(fields, door)
    ask, wish = decode(fields, found.model.card, counting=True)
    ids = await found.model.prompt_ids(ask)
    return HttpResponse(200, orjson.dumps({"input_tokens": len(ids)}), headers=_headers(request_id, wish))


def _read(http: HttpRequest) -> Fields:
    version = http.header(b"anthropic-version", _VERSIONS[-1])
    if version not in _VERSIONS:
        raise InvalidInput(f"anthropic-version: expected one of {', '.join(_VERSIONS)}, but got {version[:80]!r}")
    body, http.body = http.body, b""
    limits = http.limits
    return language_calls.read_fields(
        body, http.header(b"content-encoding"), limits.decompressed_bytes, limits.json_depth
    )


def _headers(request_id: str, wish: Wish) -> tuple[tuple[str, str], ...]:
    ignored = (("Penstock-Ignored", ", ".join(wish.ignored)),) if wish.ignored else ()
    return (("Request-Id", request_id), *ignored)


async def _asked(model: LanguageModel, ask: Ask) -> AsyncGenerator[Event, None]:
    """Events of an ask. A prompt that does not fit is 400 in this API; 413 is of a body's bytes."""
    events = cast(AsyncGenerator[Event, None], model.ask(ask))
    async with aclosing(events):
        try:
            async for event in events:
                yield event
        except TooLarge as error:
            raise InvalidInput(error.message, parameter="messages", problem="context_length_exceeded") from error


async def _pieces(events: AsyncGenerator[Event, None], stream: MessageStream) -> AsyncIterator[bytes]:
    encode = stream.encode
    async with aclosing(events):
        async for event in events:
            piece = encode(event)
            if piece:
                yield piece
    yield stream.end()


def _error_event(error: PenstockError, request_id: str) -> bytes:
    return b"event: error\ndata: %b\n\n" % error_document(error, request_id)


plug = AnthropicHttp()
