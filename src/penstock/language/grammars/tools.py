"""Grammars of tool calls: the text in which a model's template writes them, with arguments by each tool's schema."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Literal as Either

from penstock.core.errors import InvalidInput
from penstock.core.language import Tool
from penstock.core.nearest import nearest
from penstock.language.grammars.nodes import (
    EMPTY,
    NOTHING,
    Literal,
    Node,
    Rules,
    choice,
    literal,
    repeat,
    sequence,
)
from penstock.language.grammars.schema import SchemaCompiler, constant
from penstock.language.grammars.validation import Validator


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How calls are written. A call is `begin`, then `{"name":…,"arguments":{…}}` in compact JSON, then `end`.

    `layout` "name_first" is instead `begin NAME middle {arguments} end` (Llama's `<function=NAME>{…}</function>`,
    Mistral's `[TOOL_CALLS]NAME[ARGS]{…}`). Several calls stand one after the other with `between`, the whole within
    `before` and `after` (a JSON list, or marks around all calls).
    """

    begin: str = ""
    end: str = ""
    name_key: str = "name"
    arguments_key: str = "arguments"
    layout: Either["json", "name_first"] = "json"
    middle: str = ""
    between: str = ""
    before: str = ""
    after: str = ""
    several: bool = True  # whether the format can hold more than one call


PLAIN = ToolFormat(several=False)
PLAIN_LIST = ToolFormat(before="[", after="]", between=",")
HERMES = ToolFormat(begin="<tool_call>\n", end="\n</tool_call>", between="\n")
MISTRAL = ToolFormat(before="[TOOL_CALLS][", after="]", between=",")
LLAMA = ToolFormat(arguments_key="parameters", several=False)

_MOST_CALLS = 32  # in one answer: a model that loops writes calls without end


def chosen(tools: SequenceOf[Tool], tool_choice: str, where: str = "tool_choice") -> tuple[Tool, ...]:
    """The tools that may be called. Raises InvalidInput for a name that is none of theirs."""
    names = [tool.name for tool in tools]
    if len(set(names)) != len(names):
        raise InvalidInput("tools: two of them have the same name")
    if not tool_choice.startswith("="):
        return tuple(tools)
    name = tool_choice[1:]
    if name not in names:
        raise InvalidInput(f"{where}: there is no tool {name[:80]!r} among the tools{nearest(name, names)}")
    return tuple(tool for tool in tools if tool.name == name)


def compile_calls(
    tools: SequenceOf[Tool], tool_format: ToolFormat, parallel: bool, rules: Rules, where: str = "tools"
) -> tuple[Node, dict[str, SchemaCompiler]]:
    """One call or several of the tools, and the compilers of the arguments, by tool (for what only validation sees)."""
    calls, compilers = [], {}
    for at, tool in enumerate(tools):
        place = f"{where}[{at}].function.parameters"
        schema = dict(tool.parameters) or {"type": "object", "properties": {}, "additionalProperties": False}
        if "type" not in schema and not {"$ref", "anyOf", "oneOf", "allOf"} & set(schema):
            schema["type"] = "object"
        compiler = compilers[tool.name] = SchemaCompiler(schema, rules, Validator(schema, place, rules.limits))
        arguments = compiler.compile(schema, place)
        if arguments == NOTHING:
            raise InvalidInput(f"{place}: nothing can match it")
        arguments = rules.add("arguments", arguments)
        calls.append(_call(tool.name, arguments, tool_format))
    one = rules.add("call", choice(*calls))
    more: Node = EMPTY
    if parallel and tool_format.several:
        more = repeat(sequence(literal(tool_format.between), one), 0, _MOST_CALLS - 1)
    return sequence(literal(tool_format.before), one, more, literal(tool_format.after)), compilers


def _call(name: str, arguments: Node, tool_format: ToolFormat) -> Node:
    begin, end = literal(tool_format.begin), literal(tool_format.end)
    if tool_format.layout == "name_first":
        return sequence(begin, literal(name), literal(tool_format.middle), arguments, end)
    colon = Literal(":")
    return sequence(
        begin, Literal("{"), constant(tool_format.name_key), colon, constant(name), Literal(","),
        constant(tool_format.arguments_key), colon, arguments, Literal("}"), end,
    )  # fmt: skip
