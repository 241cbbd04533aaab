"""Messages and tools of chat completions, as `core.language` has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import orjson

from penstock.core.errors import InvalidInput
from penstock.core.fields import Fields
from penstock.core.language import Message, Tool, ToolCall

MOST_TOOLS: Final = 128  # OpenAI's own limit
_MOST_MESSAGES: Final = 1 << 14
_ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")
_NAME_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
_LONGEST_NAME: Final = 128  # OpenAI allows 64; names of tools of MCP servers are longer


def messages(fields: Fields, name: str = "messages") -> list[Message]:
    """The conversation. Raises: InvalidInput."""
    values = fields.array(name, _MOST_MESSAGES, least=1)
    if values is None:
        raise fields.missing(name)
    return [
        message(Fields(_object(fields, f"{name}[{at}]", value), f"{name}[{at}]")) for at, value in enumerate(values)
    ]


def message(fields: Fields) -> Message:
    """One message. Raises: InvalidInput."""
    role = fields.one_of("role", _ROLES)
    if role is None:
        raise fields.missing("role")
    content = _content(fields)
    name = fields.text("name", _LONGEST_NAME) or ""
    if role == "assistant":
        calls = _calls(fields)
        if content is None and not calls:
            content = fields.text("refusal")
        reasoning = fields.text("reasoning_content") or fields.text("reasoning") or ""
        if content is None and not calls and not reasoning:
            raise fields.missing("content")
        return Message(role, content, name, reasoning, calls)
    if content is None:
        raise fields.missing("content")
    if role == "tool":
        call_id = fields.text("tool_call_id", 1024)
        if call_id is None:
            raise fields.missing("tool_call_id")
        return Message(role, content, name, tool_call_id=call_id)
    if role == "function":  # the form before tools
        return Message("tool", content, name, tool_call_id=_old_id(name))
    return Message(role, content, name)


def _content(fields: Fields) -> str | None:
    """The text of `content`: parts are joined by line ends, as vLLM and llama.cpp do for templates of strings."""
    value = fields.take("content")
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise fields.mistyped("content", value, "a string or an array")
    texts = []
    for at, one in enumerate(value):
        part = Fields(_object(fields, f"content[{at}]", one), fields.path(f"content[{at}]"))
        kind = part.text("type")
        if kind not in ("text", "input_text", "output_text", "refusal"):
            member = kind if kind in one else "type"
            raise part.unsupported(
                str(member),
                f"content of type {kind!r:.80} is not supported by this model, only text",
                "unsupported_value",
            )
        text = part.text("refusal" if kind == "refusal" else "text")
        if text is None:
            raise part.missing("text")
        texts.append(text)
    return "\n".join(texts)


def _calls(fields: Fields) -> tuple[ToolCall, ...]:
    found = []
    for at, value in enumerate(fields.array("tool_calls", MOST_TOOLS) or ()):
        call = Fields(_object(fields, f"tool_calls[{at}]", value), fields.path(f"tool_calls[{at}]"))
        function = call.inner("function")
        if function is None:
            raise call.missing("function")
        found.append(_call(function, call.text("id", 1024) or f"call_{at}"))
    old = fields.inner("function_call")
    if old is not None:
        call_made = _call(old, "")
        found.append(ToolCall(_old_id(call_made.name), call_made.name, call_made.arguments))
    return tuple(found)


def _call(function: Fields, identity: str) -> ToolCall:
    name = function.text("name", _LONGEST_NAME)
    if not name:
        raise function.missing("name")
    arguments = function.take("arguments")
    if isinstance(arguments, dict):
        try:
            arguments = orjson.dumps(arguments).decode()
        except TypeError as error:  # nested too deeply, or a number beyond 64 bits
            raise function.refused("arguments", f"JSON that can be written again ({error})", "invalid_value") from None
    if arguments is not None and not isinstance(arguments, str):
        raise function.mistyped("arguments", arguments, "a string")
    return ToolCall(identity, name, arguments or "{}")


def _old_id(name: str) -> str:
    return f"call_{name}"


def tools(fields: Fields) -> tuple[tuple[Tool, ...], str, bool]:
    """The tools, which of them may or must be called (as `Ask.tool_choice`), and whether they came as `functions`,
    the form before tools. Raises: InvalidInput."""
    listed = fields.array("tools", MOST_TOOLS)
    old = fields.array("functions", MOST_TOOLS)
    if listed is not None and old is not None:
        raise fields.refused("functions", "it without 'tools'", "invalid_value")
    if old is not None:
        found = tuple(
            tool_of(Fields(_object(fields, f"functions[{at}]", value), f"functions[{at}]"))
            for at, value in enumerate(old)
        )
        choice = _old_choice(fields, found)
    else:
        if fields.take("function_call") not in (None, "none", "auto"):
            raise fields.refused("function_call", "it only when 'functions' are specified", "invalid_value")
        found = tuple(_listed(fields, at, value) for at, value in enumerate(listed or ()))
        found, choice = choice_of(fields, found)
    names = [tool.name for tool in found]
    if len(set(names)) < len(names):
        raise fields.refused("functions" if old else "tools", "names that differ", "invalid_value")
    return found, choice, old is not None


def _listed(fields: Fields, at: int, value: object) -> Tool:
    entry = Fields(_object(fields, f"tools[{at}]", value), f"tools[{at}]")
    kind = entry.text("type")
    if kind != "function":
        raise entry.refused("type", f"'function', but got {kind!r:.80}", "invalid_value")
    function = entry.inner("function")
    if function is None:
        raise entry.missing("function")
    return tool_of(function)


def tool_of(function: Fields) -> Tool:
    """One function that may be called. Raises: InvalidInput."""
    name = function.text("name", _LONGEST_NAME)
    if not name:
        raise function.missing("name")
    if not _NAME_CHARACTERS.issuperset(name):
        raise function.refused("name", f"letters, digits, '_', '-' and '.', but got {name!r}", "invalid_value")
    return Tool(
        name,
        function.text("description") or "",
        function.members("parameters") or {},
        function.flag("strict"),
    )


def choice_of(fields: Fields, found: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], str]:
    """The tools that may be called, and whether one must be (as `Ask.tool_choice`). Raises: InvalidInput."""
    value = fields.take("tool_choice")
    if value is None:
        return found, "auto"
    if isinstance(value, str):
        if value not in ("none", "auto", "required"):
            raise fields.refused(
                "tool_choice", f"none, auto, required or a function, but got {value!r:.80}", "invalid_value"
            )
        if value == "required" and not found:
            raise fields.refused("tool_choice", "it only when 'tools' are specified", "invalid_value")
        return found, value
    inner = Fields(_object(fields, "tool_choice", value), "tool_choice")
    if inner.text("type") == "allowed_tools":
        return _allowed(inner.inner("allowed_tools") or inner, found)
    function = inner.inner("function")
    name = (function or inner).text("name", _LONGEST_NAME)
    if name is None:
        raise (function or inner).missing("name")
    _check_named(fields, "tool_choice", name, found)
    return found, f"={name}"


def _allowed(inner: Fields, found: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], str]:
    names = set()
    for at, value in enumerate(inner.array("tools", MOST_TOOLS, least=1) or ()):
        entry = Fields(_object(inner, f"tools[{at}]", value), inner.path(f"tools[{at}]"))
        name = (entry.inner("function") or entry).text("name", _LONGEST_NAME) or ""
        _check_named(inner, f"tools[{at}]", name, found)
        names.add(name)
    return tuple(tool for tool in found if tool.name in names), inner.one_of("mode", ("auto", "required")) or "auto"


def _old_choice(fields: Fields, found: Sequence[Tool]) -> str:
    value = fields.take("function_call")
    if value is None:
        return "auto"
    if isinstance(value, str):
        if value not in ("none", "auto"):
            raise fields.refused("function_call", f"none, auto or a function, but got {value!r:.80}", "invalid_value")
        return value
    name = Fields(_object(fields, "function_call", value), "function_call").text("name", _LONGEST_NAME) or ""
    _check_named(fields, "function_call", name, found)
    return f"={name}"


def _check_named(fields: Fields, parameter: str, name: str, found: Sequence[Tool]) -> None:
    if all(tool.name != name for tool in found):
        raise fields.refused(parameter, f"one of the tools, but got {name!r}", "invalid_value")


def _object(fields: Fields, name: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise fields.mistyped(name, value, "an object")
    return value


def check_continued(found: Sequence[Message]) -> None:
    """Raises: InvalidInput when the last message is none that a model could go on with."""
    if found[-1].role != "assistant" or found[-1].tool_calls:
        raise InvalidInput(
            "Invalid 'continue_final_message': expected the last message to be an assistant's text.",
            parameter="continue_final_message", problem="invalid_value",
        )  # fmt: skip
