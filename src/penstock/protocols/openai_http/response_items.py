"""Items of conversations: as a caller sends them, as messages for a model, and as they are kept to be gone on from."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Final

from penstock.core.errors import InvalidInput
from penstock.core.fields import Fields
from penstock.core.language import Message, ToolCall
from penstock.protocols.openai_http.conversation import message

MOST_ITEMS: Final = 1 << 14
LONGEST_ID: Final = 1024
_MOST_PARTS: Final = 1 << 12
_PREFIXES: Final = {"message": "msg", "function_call": "fc", "function_call_output": "fc", "reasoning": "rs"}

Item = Mapping[str, object]


def new_id(kind: str) -> str:
    """An id of an item of that type."""
    return f"{_PREFIXES[kind]}_{uuid.uuid4().hex}"


def items_of(fields: Fields) -> list[object]:
    """The items of `input`, of which a text is one. Raises: InvalidInput."""
    value = fields.take("input")
    if value is None:
        raise fields.missing("input")
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if not isinstance(value, list):
        raise fields.mistyped("input", value, "a string or an array")
    return fields.array("input", MOST_ITEMS, least=1) or []


def messages_of(earlier: Sequence[object], new: Sequence[object]) -> list[Message]:
    """What a model is told of a conversation; errors are about the new items. Raises: InvalidInput."""
    if len(earlier) + len(new) > MOST_ITEMS:
        raise InvalidInput(f"Invalid 'input': expected a conversation of at most {MOST_ITEMS} items, with those of "
                           "earlier responses.", parameter="input", problem="array_above_max_length")  # fmt: skip
    found: list[Message] = []
    called: set[str] = set()
    for where, items in (("previous_response_id", earlier), ("input", new)):
        for at, one in enumerate(items):
            if not isinstance(one, dict):
                raise InvalidInput(f"Invalid type for '{where}[{at}]': expected an object.",
                                   parameter=f"{where}[{at}]", problem="invalid_type")  # fmt: skip
            _take(Fields(one, f"{where}[{at}]"), found, called)
    return [one for one in found if one.content is not None or one.tool_calls or one.reasoning]


def _take(item: Fields, found: list[Message], called: set[str]) -> None:
    kind = item.text("type", LONGEST_ID) or "message"
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


def kept_items(items: Sequence[object]) -> list[Item]:
    """Items that `messages_of` has read, in the whole form that clients read: each with an id of its own."""
    found: list[Item] = []
    for one in items:
        assert isinstance(one, dict)
        kind = str(one.get("type") or "message")
        id = one.get("id")
        kept: dict[str, object] = {
            **one, "type": kind, "id": id if isinstance(id, str) and 0 < len(id) <= LONGEST_ID else new_id(kind),
            "status": one.get("status") or "completed",
        }  # fmt: skip
        if kind == "message":
            kept["content"] = _parts(one.get("content"), kept.get("role") == "assistant")
        elif kind == "reasoning":
            kept.setdefault("summary", [])
        found.append(kept)
    return found


def _parts(content: object, said: bool) -> list[object]:
    parts = content if isinstance(content, list) else [{"text": "" if content is None else content}]
    found: list[object] = []
    for part in parts:
        kind = part.get("type")
        if said and kind != "refusal":
            found.append({"annotations": [], "logprobs": [], **part, "type": "output_text"})
        else:
            found.append({**part, "type": kind if said else "input_text"})
    return found


def gone_on_from(items: Sequence[object], output: Sequence[object]) -> list[object]:
    """A conversation with its answer; a call that was cut off is not part of it: nobody could have carried it out."""
    return [*items, *(one for one in output if isinstance(one, dict)
                      and not (one.get("type") == "function_call" and one.get("status") != "completed"))]  # fmt: skip


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
    identity = item.text("call_id", LONGEST_ID)
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
        kind = part.text("type", LONGEST_ID)
        if kind not in kinds:
            raise part.unsupported("type", f"only {', '.join(kinds)}, but got {kind!r:.80}", "unsupported_value")
        text = part.text("text")
        if text is None:
            raise part.missing("text")
        texts.append(text)
    return "\n".join(texts)
