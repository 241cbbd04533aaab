"""`POST /v1/responses`. Nothing is kept: each request holds its whole conversation (`store: false`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from penstock.core.door import Door
from penstock.core.errors import InvalidInput
from penstock.core.fields import Fields, shown
from penstock.core.language import Ask, Format, Message, Tool, ToolCall
from penstock.core.language_calls import named_model
from penstock.protocols import HttpRequest, HttpResponse, HttpStream
from penstock.protocols.openai_http import parameters
from penstock.protocols.openai_http.answering import asked, gathered, head_of, pieces, read_fields, told
from penstock.protocols.openai_http.chat import EFFORTS, OUR_EFFORTS
from penstock.protocols.openai_http.conversation import MOST_TOOLS, choice_of, message, tool_of
from penstock.protocols.openai_http.failures import request_id
from penstock.protocols.openai_http.responses_wire import Response

_MOST_ITEMS: Final = 1 << 14
_MOST_PARTS: Final = 1 << 12
_LONGEST_ID: Final = 1024
_MOST_METADATA: Final = 16  # OpenAI's own, as the lengths of names and values
_LONGEST_NAME, _LONGEST_VALUE = 64, 512

KNOWN: Final = frozenset({
    "model", "input", "instructions", "tools", "tool_choice", "parallel_tool_calls", "text", "reasoning", "include",
    "max_output_tokens", "temperature", "top_p", "top_logprobs", "metadata", "stream", "stream_options", "user",
    "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty", "no_repeat_ngram_size",
    "logit_bias", "min_tokens", "ignore_eos", "stop", "stop_token_ids", "priority",
})  # fmt: skip

# What would change the answer, or promise what is not kept; each with the values that ask for nothing.
REFUSED: Final[Mapping[str, tuple[object, ...]]] = {
    "store": (False,), "previous_response_id": (), "conversation": (), "background": (False,),
    "background_options": (), "truncation": ("disabled",), "prompt": (), "context_management": ([],), "image": (),
    "access_programs": (),
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
    wish = decode(fields)
    wish.ask.adapter = found.adapter
    head = head_of("resp", name, found.model)
    head = replace(head, id=head.id.replace("-", "_"))  # as all ids of this API are
    events = asked(found.model, told(wish.ask, http, head))
    response = Response(head, wish.told, wish.ask.logprobs is not None)
    headers = parameters.ignored_header(wish.ignored)
    if wish.stream:
        return HttpStream(pieces(events, response), response.encode_error, headers=request_id(http) + headers)
    return await gathered(events, response, http, headers)


@dataclass(slots=True)
class Wish:
    """What is asked, how it is sent, and what of the request an answer repeats."""

    ask: Ask
    stream: bool
    told: dict[str, object] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)


def decode(fields: Fields) -> Wish:
    """Raises: InvalidInput."""
    fields.take("model")
    ignored: list[str] = []
    for name, neutral in REFUSED.items():
        value = fields.take(name)
        if value is not None and not any(type(value) is type(one) and value == one for one in neutral):
            raise fields.unsupported(name, f"{shown(value)} is not supported here: nothing is kept; leave it out")
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
    found = _input(fields)
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
    repeated: dict[str, object] = {
        "instructions": instructions, "max_output_tokens": ask.max_tokens, "metadata": _metadata(fields),
        "parallel_tool_calls": ask.parallel_tool_calls, "reasoning": {"effort": effort or None, "summary": None},
        "temperature": ask.sampling.temperature, "top_p": ask.sampling.top_p, "top_logprobs": logprobs or 0,
        "text": {"format": _told_format(form)}, "tools": [_told_tool(tool) for tool in tools],
        "tool_choice": {"type": "function", "name": choice[1:]} if choice.startswith("=") else choice,
        "user": fields.text("user"),
    }  # fmt: skip
    return Wish(ask, stream, repeated, ignored + parameters.check_rest(fields, KNOWN))


# --- the conversation ---


def _input(fields: Fields) -> list[Message]:
    value = fields.take("input")
    if value is None:
        raise fields.missing("input")
    if isinstance(value, str):
        return [Message("user", value)]
    if not isinstance(value, list):
        raise fields.mistyped("input", value, "a string or an array")
    found: list[Message] = []
    called: set[str] = set()
    for at, one in enumerate(fields.array("input", _MOST_ITEMS, least=1) or ()):
        if not isinstance(one, dict):
            raise fields.mistyped(f"input[{at}]", one, "an object")
        item = Fields(one, fields.path(f"input[{at}]"))
        kind = item.text("type", _LONGEST_ID) or "message"
        if kind == "message":
            item.one_of("role", ("user", "assistant", "system", "developer"))
            _add(found, message(item))
        elif kind == "function_call":
            call = _call(item)
            called.add(call.id)
            _add(found, Message("assistant", None, tool_calls=(call,)))
        elif kind == "function_call_output":
            found.append(_output(item, called))
        elif kind == "reasoning":
            _add(found, Message("assistant", None, reasoning=_thoughts(item)))
        else:
            raise item.unsupported("type", f"items of type {kind!r:.80} are not supported here", "unsupported_value")
    return [one for one in found if one.content is not None or one.tool_calls or one.reasoning]


def _add(found: list[Message], new: Message) -> None:
    """Thoughts, text and calls that follow each other are one message for chat templates."""
    last = found[-1] if found else None
    if (
        last is None
        or last.role != "assistant"
        or new.role != "assistant"
        or (last.tool_calls and not new.tool_calls)
        or (last.content is not None and new.content is not None)
    ):
        found.append(new)
    else:
        found[-1] = Message(
            "assistant", last.content if last.content is not None else new.content,
            reasoning="\n\n".join(text for text in (last.reasoning, new.reasoning) if text),
            tool_calls=last.tool_calls + new.tool_calls,
        )  # fmt: skip


def _call(item: Fields) -> ToolCall:
    values = []
    for member in ("call_id", "name", "arguments"):
        value = item.text(member)
        if value is None:
            raise item.missing(member)
        values.append(value)
    return ToolCall(*values)


def _output(item: Fields, called: set[str]) -> Message:
    identity = item.text("call_id", _LONGEST_ID)
    if identity is None:
        raise item.missing("call_id")
    if identity not in called:
        raise item.refused("call_id", f"that of an earlier function_call, but got {identity!r:.80}", "invalid_value")
    return Message("tool", _joined(item, "output", ("input_text", "output_text", "text")), tool_call_id=identity)


def _thoughts(item: Fields) -> str:
    """The reasoning itself; its summary where there is only that."""
    return _joined(item, "content", ("reasoning_text",), "") or _joined(item, "summary", ("summary_text",), "")


def _joined(item: Fields, name: str, kinds: tuple[str, ...], default: str | None = None) -> str:
    value = item.take(name)
    if isinstance(value, str):
        return value
    if value is None:
        if default is None:
            raise item.missing(name)
        return default
    texts = []
    for at, one in enumerate(item.array(name, _MOST_PARTS) or ()):
        if not isinstance(one, dict):
            raise item.mistyped(f"{name}[{at}]", one, "an object")
        part = Fields(one, item.path(f"{name}[{at}]"))
        kind = part.text("type", _LONGEST_ID)
        if kind not in kinds:
            raise part.unsupported("type", f"only {', '.join(kinds)}, but got {kind!r:.80}", "unsupported_value")
        text = part.text("text")
        if text is None:
            raise part.missing("text")
        texts.append(text)
    return "\n".join(texts)


# --- tools, reasoning, the output's form ---


def _tools(fields: Fields) -> tuple[tuple[Tool, ...], str]:
    found = []
    for at, value in enumerate(fields.array("tools", MOST_TOOLS) or ()):
        if not isinstance(value, dict):
            raise fields.mistyped(f"tools[{at}]", value, "an object")
        entry = Fields(value, f"tools[{at}]")
        kind = entry.text("type", _LONGEST_ID)
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
