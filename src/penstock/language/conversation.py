"""Messages and tools in the form that chat templates read, and what is done for templates that lack a thing.

Many templates know no tools, or no system messages, or want a call's arguments as text where others want an object.
What a template can do is learnt once, by giving it made-up messages; what it lacks is put into the messages in words.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from penstock.core.language import Message, Tool, ToolCall
from penstock.language.guard import Marking

Written = dict[str, object]
Probe = Callable[[list[Written], Mapping[str, object]], str | None]

_NEEDLE = "ZQ7needle"
_SHORT_ID = 9
_LOOKS_AT_NONE = re.compile(r"tools\s*(?:=|is|is not|!=|==)\s*[Nn]one|tools is defined and tools\b")

# Hermes' words, which Qwen 2.5 took over and most small models have seen. Source: the chat template of
# Qwen2.5-Instruct; https://github.com/NousResearch/Hermes-Function-Calling
_TOOLS_BEGIN = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
_TOOLS_END = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within "
    "<tool_call></tool_call> XML tags:\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)


class Conversation:
    """Writes messages for one template. `source` is its text, `probe` renders made-up messages with it."""

    def __init__(self, source: str, takes_tools: bool, probe: Probe) -> None:
        self._takes_tools = takes_tools
        self._probe = probe
        # Templates name the reasoning of earlier turns differently; one that names it not at all is not given it.
        self._reasoning_keys = [name for name in ("reasoning_content", "reasoning", "thinking") if name in source]
        self._developer = "developer" in source
        # What a template is given without tools: `tools` as none, like transformers, or nothing at all where it looks
        # only whether there is such a thing, and would tell of no tools.
        only_defined = "tools is defined" in source and not _LOOKS_AT_NONE.search(source)
        self.none_of_tools: Mapping[str, object] = {} if only_defined else {"tools": None}
        # Mistral's templates refuse ids of calls that are not nine letters and digits.
        self._short_ids = "Tool call IDs should be alphanumeric" in source

    def prepare(
        self, messages: Sequence[Message], tools: Sequence[Tool], marking: Marking
    ) -> tuple[list[Written], list[Written]]:
        """The messages and the tools as the template reads them; no tools when they are told in words."""
        described = [described_tool(tool, marking) for tool in tools]
        if not self._takes_tools:
            messages = _in_words(messages)
        written = [self._message(message, marking) for message in messages]
        if described and not self._takes_tools:
            _prepend_system(written, _tools_in_words(described))
            described = []
        if written[0]["role"] == "system" and not self._knows_system and len(written) > 1:
            _merge_system(written)
        return written, described

    def _message(self, message: Message, marking: Marking) -> Written:
        role = "system" if message.role == "developer" and not self._developer else message.role
        content = None if message.content is None else marking.text(message.content)
        if content is None and not message.tool_calls:
            content = ""
        written: Written = {"role": role, "content": content}
        if message.name:
            written["name"] = marking.text(message.name)
        if message.reasoning:
            written |= dict.fromkeys(self._reasoning_keys, marking.text(message.reasoning))
        if message.tool_calls:
            written["tool_calls"] = [self._call(call, marking) for call in message.tool_calls]
        if message.tool_call_id:
            written["tool_call_id"] = marking.text(self._id(message.tool_call_id))
        return written

    def _call(self, call: ToolCall, marking: Marking) -> Written:
        arguments: object = marking.text(call.arguments)
        if self._wants_objects:
            # What a client sends back as its own history is not ours to mend: if it is no JSON, it stays text.
            with contextlib.suppress(ValueError, RecursionError):
                arguments = marking.value(json.loads(call.arguments or "{}"))
        name = marking.text(call.name)
        return {
            "id": marking.text(self._id(call.id)),
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }

    def _id(self, call_id: str) -> str:
        """The id of a call as the template takes it: the same one for the same one."""
        if not self._short_ids or (len(call_id) == _SHORT_ID and call_id.isascii() and call_id.isalnum()):
            return call_id
        return hashlib.sha256(call_id.encode("utf-8", "replace")).hexdigest()[:_SHORT_ID]

    @cached_property
    def _wants_objects(self) -> bool:
        """Whether the template writes a call's arguments itself; else it puts the text of them in its place."""
        shown = self._probe(_called({_NEEDLE: "x"}), {"tools": _PROBE_TOOLS})
        if shown is not None:
            return f"'{_NEEDLE}'" not in shown  # an object as Python prints it is no template's intention
        return self._probe(_called(json.dumps({_NEEDLE: "x"})), {"tools": _PROBE_TOOLS}) is None

    @cached_property
    def _knows_system(self) -> bool:
        shown = self._probe(
            [{"role": "system", "content": _NEEDLE}, {"role": "user", "content": "x"}], self.none_of_tools
        )
        return shown is not None and _NEEDLE in shown


def described_tool(tool: Tool, marking: Marking) -> Written:
    """A tool in the form of OpenAI's API, which templates read."""
    function: Written = {"name": marking.text(tool.name)}
    if tool.description:
        function["description"] = marking.text(tool.description)
    function["parameters"] = marking.value(tool.parameters) or {"type": "object", "properties": {}}
    return {"type": "function", "function": function}


def texts_of(messages: Sequence[Message], tools: Sequence[Tool], arguments: Mapping[str, object]) -> Iterator[str]:
    """All texts that somebody outside wrote."""
    for message in messages:
        yield message.content or ""
        yield message.name
        yield message.reasoning
        yield message.tool_call_id
        for call in message.tool_calls:
            yield call.name
            yield call.arguments
    for tool in tools:
        yield tool.name
        yield tool.description
        yield json.dumps(tool.parameters, ensure_ascii=False, default=str)
    if arguments:
        yield json.dumps(arguments, ensure_ascii=False, default=str)


_PROBE_TOOLS: list[Written] = [
    {
        "type": "function",
        "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}},
    }
]


def _called(arguments: object) -> list[Written]:
    call = {"id": "call00000", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "y", "tool_call_id": "call00000", "name": "f"},
    ]


def _in_words(messages: Sequence[Message]) -> list[Message]:
    """Messages without calls or answers of tools, which the template does not know: they are part of their texts.

    Answers that follow each other, and what the user says after them, are one turn of the user, as in Qwen's template:
    many templates refuse two.
    """
    found: list[Message] = []
    answered = False  # the last one is of tools
    for message in messages:
        if message.tool_calls:
            calls = [_call_in_words(call) for call in message.tool_calls]
            text = "\n".join([message.content, *calls] if message.content else calls)
            message = Message(message.role, text, message.name, message.reasoning)
        of_tool = message.role == "tool"
        if of_tool:
            message = Message("user", f"<tool_response>\n{message.content or ''}\n</tool_response>")
        if answered and message.role == "user":
            message = replace(message, content=f"{found.pop().content}\n{message.content or ''}")
        found.append(message)
        answered = of_tool
    return found


def _call_in_words(call: ToolCall) -> str:
    name = json.dumps(call.name, ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {call.arguments or "{}"}}}\n</tool_call>'


def _tools_in_words(described: Sequence[Written]) -> str:
    lines = "".join("\n" + json.dumps(tool, ensure_ascii=False) for tool in described)
    return _TOOLS_BEGIN + lines + _TOOLS_END


def _prepend_system(written: list[Written], text: str) -> None:
    if written[0]["role"] == "system":
        written[0]["content"] = f"{written[0]['content']}\n\n{text}" if written[0]["content"] else text
    else:
        written.insert(0, {"role": "system", "content": text})


def _merge_system(written: list[Written]) -> None:
    """For templates that refuse or drop a system message: it becomes the beginning of the user's."""
    system = written[0]["content"]
    if written[1]["role"] == "user":
        written[1]["content"] = f"{system}\n\n{written[1]['content']}"
        del written[0]
    else:
        written[0]["role"] = "user"
