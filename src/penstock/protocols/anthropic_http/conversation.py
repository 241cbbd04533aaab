"""Messages of Anthropic's API, as `core.language` has them.

A turn of a user may hold results of tools, which are messages of their own for chat templates; turns of the same role
that follow each other are one, as Anthropic's API makes them.
"""

from __future__ import annotations

from typing import Final

import orjson

from penstock.core.errors import InvalidInput
from penstock.core.fields import Fields
from penstock.core.language import Message, ToolCall

_MOST_MESSAGES: Final = 1 << 14
_MOST_BLOCKS: Final = 1 << 12
_LONGEST_ID: Final = 1024
_ROLES: Final = ("user", "assistant", "system")


def messages(fields: Fields) -> list[Message]:
    """The conversation, its system prompt first. Raises: InvalidInput."""
    values = fields.array("messages", _MOST_MESSAGES, least=1)
    if values is None:
        raise fields.missing("messages")
    found: list[Message] = []
    system = _texts(fields, "system")
    if system:
        found.append(Message("system", system))
    called: set[str] = set()  # ids of the calls so far: a result of none of them is a mistake
    for at, value in enumerate(values):
        inner = Fields(_object(fields, f"messages[{at}]", value), f"messages[{at}]")
        role = inner.one_of("role", _ROLES)
        if role is None:
            raise inner.missing("role")
        if inner.take("content") is None:
            raise inner.missing("content")
        if role == "assistant":
            _add(found, _answered(inner, called))
        elif role == "system":
            _add(found, Message("system", _texts(inner, "content") or ""))
        else:
            for message in _asked(inner, called):
                _add(found, message)
    if all(message.role == "system" for message in found):
        raise fields.refused("messages", "at least one message of a user", "invalid_value")
    _check_last(fields, found)
    return found


def _check_last(fields: Fields, found: list[Message]) -> None:
    """An answer's beginning, which the model goes on with, is text without spaces at its end."""
    last = found[-1]
    if last.role != "assistant":
        return
    if last.tool_calls:
        raise fields.refused("messages", "the results of the last message's tool_use blocks after it", "invalid_value")
    if last.content and last.content != last.content.rstrip():
        raise InvalidInput(
            "messages: final assistant content cannot end with trailing whitespace", parameter="messages",
            problem="invalid_value",
        )  # fmt: skip


def _add(found: list[Message], message: Message) -> None:
    last = found[-1] if found else None
    if last is None or last.role != message.role or message.role not in ("user", "assistant"):
        found.append(message)
        return
    if last.tool_calls and message.content:  # a template writes an answer's text before its calls
        found.append(message)
        return
    texts = [text for text in (last.content, message.content) if text]
    thoughts = [text for text in (last.reasoning, message.reasoning) if text]
    found[-1] = Message(
        last.role, "\n\n".join(texts) if texts else None, reasoning="\n\n".join(thoughts),
        tool_calls=last.tool_calls + message.tool_calls,
    )  # fmt: skip


def _answered(fields: Fields, called: set[str]) -> Message:
    """A turn of the assistant."""
    texts, thoughts, calls = [], [], []
    for block, kind in _blocks(fields, "content"):
        if kind == "text":
            texts.append(_text(block, "text"))
        elif kind == "thinking":
            thoughts.append(_text(block, "thinking"))
        elif kind == "redacted_thinking":
            continue  # nobody but Anthropic can read it
        elif kind == "tool_use":
            calls.append(_call(block))
            called.add(calls[-1].id)
        else:
            raise _no_such(block, kind, "text, thinking and tool_use")
    content = "".join(texts)
    return Message("assistant", content if content or not calls else None, reasoning="\n\n".join(thoughts),
                   tool_calls=tuple(calls))  # fmt: skip


def _call(block: Fields) -> ToolCall:
    identity, name, given = block.text("id", _LONGEST_ID), block.text("name", _LONGEST_ID), block.members("input")
    for member, value in (("id", identity), ("name", name), ("input", given)):
        if value is None:
            raise block.missing(member)
    try:
        arguments = orjson.dumps(given).decode()
    except TypeError as error:  # nested too deeply, or a number beyond 64 bits
        raise block.refused("input", f"JSON that can be written again ({error})", "invalid_value") from None
    return ToolCall(str(identity), str(name), arguments)


def _asked(fields: Fields, called: set[str]) -> list[Message]:
    """A turn of the user: results of tools first, then what was said."""
    texts: list[str] = []
    found: list[Message] = []
    for block, kind in _blocks(fields, "content"):
        if kind == "text":
            texts.append(_text(block, "text"))
        elif kind == "tool_result":
            found.append(_result(block, called))
        else:
            raise _no_such(block, kind, "text and tool_result")
    if texts or not found:
        found.append(Message("user", "\n\n".join(texts)))
    return found


def _result(block: Fields, called: set[str]) -> Message:
    identity = block.text("tool_use_id", _LONGEST_ID)
    if identity is None:
        raise block.missing("tool_use_id")
    if identity not in called:
        raise block.refused("tool_use_id", f"the id of an earlier tool_use, but got {identity!r:.80}", "invalid_value")
    content = _texts(block, "content") or ""
    if block.flag("is_error"):  # templates have no place for it
        content = f"Error: {content}"
    return Message("tool", content, tool_call_id=identity)


def _texts(fields: Fields, name: str) -> str | None:
    """A member that is a string or blocks of text."""
    texts = []
    for block, kind in _blocks(fields, name):
        if kind != "text":
            raise _no_such(block, kind, "text")
        texts.append(_text(block, "text"))
    return "\n\n".join(texts) if texts else None


def _blocks(fields: Fields, name: str) -> list[tuple[Fields, str]]:
    """The blocks of a member with their types; a string is one block of text."""
    value = fields.take(name)
    if value is None:
        return []
    if isinstance(value, str):
        return [(Fields({"text": value}, fields.path(name)), "text")]
    if not isinstance(value, list):
        raise fields.mistyped(name, value, "a string or an array")
    found = []
    for at, one in enumerate(fields.array(name, _MOST_BLOCKS) or ()):
        block = Fields(_object(fields, f"{name}[{at}]", one), fields.path(f"{name}[{at}]"))
        kind = block.text("type", _LONGEST_ID)
        if kind is None:
            raise block.missing("type")
        found.append((block, kind))
    return found


def _text(block: Fields, name: str) -> str:
    text = block.text(name)
    if text is None:
        raise block.missing(name)
    return text


def _no_such(block: Fields, kind: str, allowed: str) -> InvalidInput:
    return block.unsupported(
        "type", f"content of type {kind!r:.80} is not supported by this model, only {allowed}", "unsupported_value"
    )


def _object(fields: Fields, name: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise fields.mistyped(name, value, "an object")
    return value
