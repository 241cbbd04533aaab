"""`POST /v1/responses`: answers as items, kept unless `store` is false; `stored_responses` is what can be done then."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Final

import orjson

from penstock.core.door import Door
from penstock.core.errors import InvalidInput, NotFound, PenstockError
from penstock.core.fields import Fields, shown
from penstock.core.language import Ask, Event, Format, Message, Tool
from penstock.core.language_calls import named_model
from penstock.core.responses import Wish
from penstock.protocols import HttpRequest, HttpResponse, HttpStream
from penstock.protocols.openai_http import parameters
from penstock.protocols.openai_http.answering import asked, gathered, head_of, pieces, read_fields, told
from penstock.protocols.openai_http.chat import EFFORTS, OUR_EFFORTS
from penstock.protocols.openai_http.conversation import MOST_TOOLS, choice_of, tool_of
from penstock.protocols.openai_http.failures import request_id
from penstock.protocols.openai_http.following import following
from penstock.protocols.openai_http.response_items import (
    LONGEST_ID,
    gone_on_from,
    items_of,
    kept_items,
    messages_of,
)
from penstock.protocols.openai_http.responses_wire import Response
from penstock.protocols.openai_http.shapes import Head

_MOST_METADATA: Final = 16  # OpenAI's own, as the lengths of names and values
_LONGEST_NAME, _LONGEST_VALUE = 64, 512

KNOWN: Final = frozenset({
    "model", "input", "instructions", "tools", "tool_choice", "parallel_tool_calls", "text", "reasoning", "include",
    "max_output_tokens", "temperature", "top_p", "top_logprobs", "metadata", "stream", "stream_options", "user",
    "store", "background", "previous_response_id",
    "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty", "no_repeat_ngram_size",
    "logit_bias", "min_tokens", "ignore_eos", "stop", "stop_token_ids", "priority",
})  # fmt: skip

# What would change the answer, or promise what is not kept; each with the values that ask for nothing.
REFUSED: Final[Mapping[str, tuple[object, ...]]] = {
    "conversation": (), "background_options": (), "truncation": ("disabled",), "prompt": (),
    "context_management": ([],), "image": (), "access_programs": (),
}  # fmt: skip

HARMLESS: Final = frozenset({"max_tool_calls"})  # of tools that run at OpenAI's, which are refused

_NAMES: Final[Mapping[str, str]] = {
    **parameters.NAMES, "max_tokens": "max_output_tokens", "messages": "input", "format": "text.format",
    "reasoning": "reasoning.effort",
}  # fmt: skip


async def create(http: HttpRequest, door: Door) -> HttpResponse | HttpStream:
    """An answer to a conversation, as items."""
    fields = read_fields(http)
    name, found = await named_model(fields, door)
    wish = decode(fields, await _earlier(fields, http.caller, door), store=not http.priority)
    wish.ask.adapter = found.adapter
    head = response_head(head_of("resp", name, found.model))
    headers = parameters.ignored_header(wish.ignored)
    if wish.background:
        return await _begin(http, door, wish, head, _body(fields), headers)
    events = asked(found.model, told(wish.ask, http, head))
    response = Response(head, wish.told, wish.ask.logprobs is not None)
    keep = _Keep(door, http.caller, head.id, wish.items) if wish.store else None
    if wish.stream:
        sent = pieces(events, response) if keep is None else _kept_pieces(events, response, keep)
        return HttpStream(sent, response.encode_error, headers=request_id(http) + headers)
    answer = await gathered(events, response, http, headers)
    if keep is not None and answer.status == 200 and not await keep(response.status, response.whole()):
        response.tell(store=False)
        answer.body = response.whole()
    return answer


def response_head(head: Head) -> Head:
    """The head with an id as all of this API are."""
    return replace(head, id=head.id.replace("-", "_"))


async def _earlier(fields: Fields, caller: str, door: Door) -> list[object]:
    """The conversation of `previous_response_id`, its answer included. Raises: InvalidInput."""
    id = fields.text("previous_response_id", LONGEST_ID)
    if id is None:
        return []
    try:
        found = await door.responses().find(caller, id)
        items = orjson.loads(await door.responses().items(caller, id))
    except NotFound:
        raise _previous(f"Previous response with id '{id[:128]}' not found: another key's, deleted, too old, made with "
                        "'store' false, or another server's; send the conversation as 'input' instead.",
                        "previous_response_not_found") from None  # fmt: skip
    if found.status not in ("completed", "incomplete"):
        raise _previous(f"Invalid 'previous_response_id': the response is {found.status}; only one that has ended with "
                        "an answer can be gone on from.", "invalid_value")  # fmt: skip
    return gone_on_from(items, orjson.loads(found.document)["output"])


def _previous(message: str, problem: str) -> InvalidInput:
    return InvalidInput(message, parameter="previous_response_id", problem=problem)


@dataclass(slots=True)
class _Keep:
    """Keeps one answer. What cannot be kept is answered all the same, and says so in `store`."""

    door: Door
    caller: str
    id: str
    items: bytes

    async def __call__(self, status: str, document: bytes) -> bool:
        try:
            return await self.door.responses().keep(self.caller, self.id, status, document, self.items)
        except PenstockError:  # whoever keeps has logged it
            return False


async def _kept_pieces(events: AsyncGenerator[Event, None], response: Response, keep: _Keep) -> AsyncIterator[bytes]:
    """The bytes of all events. The answer is kept before its last event goes out; one that is cut, as it is then."""
    ended = False
    try:
        async with aclosing(events):
            async for event in events:
                if piece := response.encode(event):
                    yield piece
        last = response.last_item()
        ended = True
        if not await keep(response.status, response.whole()):
            response.tell(store=False)
        yield last + response.last_event()
    except PenstockError as error:
        ended = True
        if response.begun:
            await keep("failed", response.cut("failed", error))
        raise
    finally:
        if not ended and response.begun:  # its reader left
            await keep("incomplete", response.cut("incomplete"))


def _body(fields: Fields) -> bytes:
    """The request as it is kept, without its conversation. Raises: InvalidInput."""
    try:
        return orjson.dumps({name: value for name, value in fields.everything().items() if name != "input"})
    except TypeError as error:  # nested too deeply, or a number beyond 64 bits
        raise fields.refused("background", f"a body that can be written again ({error})", "invalid_value") from None


async def _begin(
    http: HttpRequest, door: Door, wish: Wished, head: Head, body: bytes, headers: tuple[tuple[str, str], ...]
) -> HttpResponse | HttpStream:
    """What the caller gets of an answer for which nobody waits: where it stands, or its events as they come."""
    response = Response(head, wish.told, wish.ask.logprobs is not None)
    document = response.queued()[1]
    order = Wish(head.id, document, wish.items, body, wish.stream)
    await door.responses().begin(http.caller, order)
    if wish.stream:
        return following(http, door, head.id, 0, headers)
    return HttpResponse(200, document, headers=request_id(http) + headers)


@dataclass(slots=True)
class Wished:
    """What is asked, how it is sent, and what of the request an answer repeats. `items` is the whole conversation,
    a JSON array; empty when it is not stored."""

    ask: Ask
    stream: bool
    store: bool
    background: bool
    items: bytes
    told: dict[str, object] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)


def decode(fields: Fields, earlier: list[object] | None = None, *, store: bool = True) -> Wished:
    """`earlier` is the conversation that the input goes on from; `store` what counts when the request does not say.

    Raises: InvalidInput.
    """
    fields.take("model")
    ignored: list[str] = []
    for name, neutral in REFUSED.items():
        value = fields.take(name)
        if value is not None and not any(type(value) is type(one) and value == one for one in neutral):
            raise fields.unsupported(name, f"{shown(value)} is not supported here; leave it out")
    for name in HARMLESS:
        fields.take(name)
    instructions = fields.text("instructions")
    tools, choice = _tools(fields)
    form = _format(fields)
    effort, summary = _reasoning(fields)
    if summary:
        ignored.append("reasoning.summary")
    logprobs = fields.integer("top_logprobs", 0, parameters.MOST_TOP_LOGPROBS)
    for one in fields.texts("include", 16, 256):
        if one == "message.output_text.logprobs":
            logprobs = logprobs or 0
        elif one == "reasoning.encrypted_content":  # it is there in plain text
            ignored.append(one)
        else:
            raise fields.unsupported("include", f"{one!r}: there is no such thing here")
    stop, stop_ids = parameters.stops(fields)
    earlier, new = earlier or [], items_of(fields)
    found = messages_of(earlier, new)
    ask = Ask(
        [Message("system", instructions), *found] if instructions else found,
        max_tokens=fields.integer("max_output_tokens", 1, parameters.MOST_TOKENS),
        sampling=parameters.sampling(fields),
        stop=stop,
        stop_token_ids=stop_ids,
        format=form,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=fields.flag("parallel_tool_calls", True),
        logprobs=logprobs,
        reasoning=OUR_EFFORTS.get(effort, effort),
        priority=parameters.priority(fields),
        names=_NAMES,
    )
    if ask.logprobs is not None:
        ask.names = {**_NAMES, "logprobs": "top_logprobs" if ask.logprobs else "include"}
    stream = fields.flag("stream")
    options = fields.inner("stream_options")
    if options is not None:
        if not stream:
            raise fields.refused("stream_options", "it only when 'stream' is true", "invalid_value")
        options.flag("include_obfuscation")
    kept, background = fields.flag("store", store), fields.flag("background")
    if background and not kept:
        raise fields.refused("background", "it only when 'store' is true", "invalid_value")
    repeated: dict[str, object] = {
        "store": kept, "background": background,
        "previous_response_id": fields.text("previous_response_id", LONGEST_ID),
        "instructions": instructions, "max_output_tokens": ask.max_tokens, "metadata": _metadata(fields),
        "parallel_tool_calls": ask.parallel_tool_calls, "reasoning": {"effort": effort or None, "summary": None},
        "temperature": ask.sampling.temperature, "top_p": ask.sampling.top_p, "top_logprobs": logprobs or 0,
        "text": {"format": _told_format(form)}, "tools": [_told_tool(tool) for tool in tools],
        "tool_choice": {"type": "function", "name": choice[1:]} if choice.startswith("=") else choice,
        "user": fields.text("user"),
    }  # fmt: skip
    _written("tools", repeated["tools"])
    _written("text.format.schema", repeated["text"])
    items = _written("input", kept_items([*earlier, *new]) if kept else [])
    return Wished(ask, stream, kept, background, items, repeated, ignored + parameters.check_rest(fields, KNOWN))


def _written(name: str, value: object) -> bytes:
    """JSON. Raises: InvalidInput for what cannot be repeated: too deep, or a whole number beyond 64 bits."""
    try:
        return orjson.dumps(value)
    except TypeError as error:
        raise InvalidInput(f"Invalid '{name}': expected JSON that can be written again ({error}).",
                           parameter=name, problem="invalid_value") from None  # fmt: skip


# --- tools, reasoning, the output's form ---


def _tools(fields: Fields) -> tuple[tuple[Tool, ...], str]:
    found = []
    for at, value in enumerate(fields.array("tools", MOST_TOOLS) or ()):
        if not isinstance(value, dict):
            raise fields.mistyped(f"tools[{at}]", value, "an object")
        entry = Fields(value, f"tools[{at}]")
        kind = entry.text("type", LONGEST_ID)
        if kind != "function":
            raise entry.unsupported("type", f"{kind!r:.80} runs at OpenAI's; only functions of the caller's are here")
        found.append(tool_of(entry))
    if len({tool.name for tool in found}) < len(found):
        raise fields.refused("tools", "names that differ", "invalid_value")
    return choice_of(fields, tuple(found))


def _told_tool(tool: Tool) -> dict[str, object]:
    return {
        "type": "function", "name": tool.name, "description": tool.description or None,
        "parameters": tool.parameters, "strict": tool.strict,
    }  # fmt: skip


def _format(fields: Fields) -> Format:
    text = fields.inner("text")
    if text is None:
        return Format()
    if text.one_of("verbosity", ("low", "medium", "high")) not in (None, "medium"):
        raise text.unsupported("verbosity", "models here have no such knob; leave it out")
    inner = text.inner("format")
    if inner is None:
        return Format()
    kind = inner.one_of("type", ("text", "json_object", "json_schema"))
    if kind is None:
        raise inner.missing("type")
    if kind != "json_schema":
        return Format("text" if kind == "text" else "json_object")
    schema = inner.members("schema")
    if schema is None:
        raise inner.missing("schema")
    return Format("json_schema", schema, name=inner.text("name", _LONGEST_NAME) or "")


def _told_format(form: Format) -> dict[str, object]:
    if form.kind != "json_schema":
        return {"type": form.kind}
    return {"type": "json_schema", "name": form.name, "schema": form.schema, "strict": True}


def _reasoning(fields: Fields) -> tuple[str, bool]:
    """The effort, and whether a summary is wanted."""
    inner = fields.inner("reasoning")
    if inner is None:
        return "", False
    summaries = ("auto", "concise", "detailed")
    wanted = [inner.one_of(name, summaries) for name in ("summary", "generate_summary")]
    effort = inner.one_of("effort", EFFORTS) or ""
    if rest := inner.rest():
        raise inner.unsupported(rest[0][:_LONGEST_NAME], "it is not one of effort, summary")
    return effort, any(wanted)


def _metadata(fields: Fields) -> dict[str, object]:
    found = fields.members("metadata") or {}
    right = all(
        isinstance(value, str) and len(name) <= _LONGEST_NAME and len(value) <= _LONGEST_VALUE
        for name, value in found.items()
    )
    if len(found) > _MOST_METADATA or not right:
        raise InvalidInput(
            f"Invalid 'metadata': expected at most {_MOST_METADATA} strings of at most {_LONGEST_VALUE} characters, "
            f"with names of at most {_LONGEST_NAME}.", parameter="metadata", problem="invalid_value",
        )  # fmt: skip
    return found
