"""`/v1/responses/{response}`: answers that were kept, and those that are made while nobody waits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import orjson

from penstock.core.door import Door
from penstock.core.errors import InvalidInput, NotFound
from penstock.core.responses import UNFINISHED
from penstock.protocols import HttpRequest, HttpResponse, HttpStream
from penstock.protocols.openai_http.failures import request_id
from penstock.protocols.openai_http.files import looked_up, page, query_values, refused_as
from penstock.protocols.openai_http.following import error_of, following
from penstock.protocols.openai_http.replay import replayed

_MOST_PAGE: Final = 100  # OpenAI's own, as the next one
_PAGE: Final = 20
_INCLUDABLE: Final = ("message.output_text.logprobs", "reasoning.encrypted_content")  # what was kept is there anyway
_FLAGS: Final = {"true": True, "false": False, "": False}


async def one(http: HttpRequest, door: Door) -> HttpResponse | HttpStream:
    """The response; with `stream`, its events."""
    id, query = http.match["response"], _query(http, "stream", "starting_after", "include_obfuscation")
    stream = _FLAGS.get(query.get("stream", "").lower())
    if stream is None:
        raise _wrong("stream", "true or false")
    after = query.get("starting_after")
    if after is not None and (not stream or not _number(after)):
        raise _wrong("starting_after", "the number of an event, with 'stream'")
    try:
        found = await door.responses().find(http.caller, id)
    except NotFound as error:
        return refused_as(404, error.message, http)
    if not stream:
        return HttpResponse(200, found.document, headers=request_id(http))
    if found.streamed:
        return following(http, door, id, 0 if after is None else int(after) + 1)
    if found.status in UNFINISHED:
        raise _wrong("stream", "it only of a response that was begun with 'stream', or that has ended")
    if after is not None:
        raise _wrong("starting_after", "it only of a response that was begun with both 'background' and 'stream'")
    return HttpStream(_replay(found.document), lambda error: error_of(error, 0), headers=request_id(http))


async def remove(http: HttpRequest, door: Door) -> HttpResponse:
    """The response is gone."""
    id = http.match["response"]
    work = door.responses().remove(http.caller, id)
    return await looked_up(http, work, lambda _: {"id": id, "object": "response", "deleted": True})


async def cancel(http: HttpRequest, door: Door) -> HttpResponse:
    """The response, which has ended."""
    try:
        found = await door.responses().cancel(http.caller, http.match["response"])
    except NotFound as error:
        return refused_as(404, error.message, http)
    return HttpResponse(200, found.document, headers=request_id(http))


async def input_items(http: HttpRequest, door: Door) -> HttpResponse:
    """The conversation before the answer, with that of earlier responses; the newest first, unless `order` is asc."""
    query = _query(http, "after", "limit", "order")
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise _wrong("order", "'asc' or 'desc'")
    try:
        items = orjson.loads(await door.responses().items(http.caller, http.match["response"]))
    except NotFound as error:
        return refused_as(404, error.message, http)
    return page(http, query, items if order == "asc" else items[::-1], _MOST_PAGE, _PAGE)


async def _replay(document: bytes) -> AsyncIterator[bytes]:
    yield b"".join(replayed(orjson.loads(document)))


def _query(http: HttpRequest, *known: str) -> dict[str, str]:
    """The parameters of the URL; `include` is checked and left out. Raises: InvalidInput."""
    found: dict[str, str] = {}
    for name, value in query_values(http):
        if name in ("include", "include[]"):
            if value not in _INCLUDABLE:
                raise _wrong("include", f"one of {', '.join(_INCLUDABLE)}")
        elif name in known:
            found[name] = value
    return found


def _number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 12


def _wrong(name: str, expected: str) -> InvalidInput:
    return InvalidInput(f"Invalid '{name}': expected {expected}.", parameter=name, problem="invalid_value")
