"""From what a caller asked for to one compiled grammar, with a cache of the last ones."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from threading import Lock

from penstock.core.errors import InvalidInput, ServableError
from penstock.core.language import Format, Grammar, Tool
from penstock.language.grammars import gbnf, pattern
from penstock.language.grammars.nodes import NOTHING, Limits, Node, Rules, choice, literal
from penstock.language.grammars.schema import SchemaCompiler
from penstock.language.grammars.tools import PLAIN, ToolFormat, chosen, compile_calls
from penstock.language.grammars.untangling import untangled
from penstock.language.grammars.validation import Validator, read_json

Check = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Compiled:
    """One grammar, for every engine. `grammar` is None where output is free and only validated (tools with `auto`).

    `regex` is the same as a pattern of the whole text, where there is a short one. `validated` names the keywords that
    the grammar lets through and `check` does not. `rules` and `root` are what the texts were written from.
    """

    grammar: Grammar | None
    regex: Grammar | None
    always_json: bool
    validated: tuple[str, ...]
    check: Check  # of the finished text; raises ServableError
    rules: Rules | None
    root: Node
    size_bytes: int
    arguments: Mapping[str, Validator] = field(default_factory=dict)  # of tool calls, by tool

    def check_call(self, name: str, arguments: str) -> None:
        """Raises ServableError when a call's arguments are not what the tool's schema allows."""
        if name not in self.arguments:
            raise ServableError(f"the output calls the tool {name[:80]!r}, which is none of those allowed")
        value = read_json(arguments, f"the arguments of {name!r}")
        self.arguments[name].check(value)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A grammar that was asked for. Two with the same `key` are the same."""

    format: Format
    tools: SequenceOf[Tool]  # none, where none may be called
    tool_choice: str
    parallel: bool
    tool_format: ToolFormat
    where: str
    key: str


_LONGEST_REGEX = 4096  # a pattern above this is not short; engines take the grammar
_SCHEMA = "response_format.json_schema.schema"


class Compiler:
    """Compiles, and remembers what it compiled: at most `entries` grammars and `most_bytes` of them, and why it refused
    as many others. Thread-safe. One grammar may take some seconds: never on a loop (see `Work`).
    """

    def __init__(self, limits: Limits | None = None, entries: int = 256, most_bytes: int = 64 * 1024 * 1024) -> None:
        self.limits = limits or Limits()
        self._entries, self._most_bytes = entries, most_bytes
        self._kept: OrderedDict[str, Compiled] = OrderedDict()
        self._bytes = 0
        self._refused: OrderedDict[bytes, InvalidInput] = OrderedDict()  # by the digest of the key
        self._lock = Lock()

    def compile_format(
        self, format: Format, tools: SequenceOf[Tool] = (), tool_choice: str = "auto", parallel: bool = True, *,
        tool_format: ToolFormat = PLAIN, where: str = "",
    ) -> Compiled | None:  # fmt: skip
        """The grammar of a request's output; None when anything may come.

        With `tool_choice` "required" or "=NAME" it is that of tool calls in the model's `tool_format`; with "auto"
        and tools the output stays free and `check_call` validates the arguments. `where` is what the caller calls
        the format, for errors. Raises InvalidInput that names the parameter and the keyword.
        """
        wanted = self.wanted(format, tools, tool_choice, parallel, tool_format=tool_format, where=where)
        return None if wanted is None else self.make(wanted)

    def wanted(
        self, format: Format, tools: SequenceOf[Tool] = (), tool_choice: str = "auto", parallel: bool = True, *,
        tool_format: ToolFormat = PLAIN, where: str = "",
    ) -> Wanted | None:  # fmt: skip
        """What `compile_format` is asked for, to be given to `kept` and `make`. Raises InvalidInput."""
        calls = bool(tools) and tool_choice != "none"
        if (tool_choice == "required" or tool_choice.startswith("=")) and not tools:
            raise InvalidInput("tool_choice: asks for a tool call, and there are no tools")
        if format.kind == "text" and not calls:
            return None
        tools, tool_choice = (tools, tool_choice) if calls else ((), "")
        key = self._key(format, tools, tool_choice, parallel, tool_format, where)
        return Wanted(format, tools, tool_choice, parallel, tool_format, where, key)

    def kept(self, wanted: Wanted) -> Compiled | None:
        """What was compiled before, if it is remembered. Raises InvalidInput where it was refused before."""
        digest = _digest(wanted.key)
        with self._lock:
            if wanted.key in self._kept:
                self._kept.move_to_end(wanted.key)
                return self._kept[wanted.key]
            refused = self._refused.get(digest)
            if refused is None:
                return None
            self._refused.move_to_end(digest)
        raise _again(refused)

    def make(self, wanted: Wanted) -> Compiled:
        """The grammar, compiled unless it is remembered. Raises InvalidInput."""
        found = self.kept(wanted)
        if found is not None:
            return found
        try:
            if wanted.tools and (wanted.format.kind == "text" or wanted.tool_choice != "auto"):
                made = self._calls(wanted.tools, wanted.tool_choice, wanted.parallel, wanted.tool_format)
            else:
                made = _compile(wanted.format, self.limits, wanted.where)
        except InvalidInput as error:
            with self._lock:
                self._refused[_digest(wanted.key)] = _again(error)
                while len(self._refused) > self._entries:
                    self._refused.popitem(last=False)
            raise
        key = wanted.key
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._bytes += made.size_bytes + len(key)
                while len(self._kept) > self._entries or (self._bytes > self._most_bytes and len(self._kept) > 1):
                    old, dropped = self._kept.popitem(last=False)
                    self._bytes -= dropped.size_bytes + len(old)
        return made

    def _key(
        self, format: Format, tools: SequenceOf[Tool], tool_choice: str, parallel: bool, tool_format: ToolFormat,
        where: str,
    ) -> str:  # fmt: skip
        """The canonical text: the order of keys stays, since properties are written in it."""
        try:
            schema = json.dumps(format.schema, separators=(",", ":"), allow_nan=False)
            listed = json.dumps(
                [[tool.name, dict(tool.parameters)] for tool in tools], separators=(",", ":"), allow_nan=False
            )
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidInput(f"{where or _SCHEMA}: is not JSON: {error}") from None
        key = repr(
            (format.kind, schema, format.text, format.choices, listed, tool_choice, parallel, tool_format, where)
        )
        if len(key) > self.limits.source_bytes:
            raise InvalidInput(
                f"{where or _SCHEMA}: more than {self.limits.source_bytes} bytes of schema or grammar; make it smaller"
            )
        return key

    def _calls(self, tools: SequenceOf[Tool], tool_choice: str, parallel: bool, tool_format: ToolFormat) -> Compiled:
        allowed = chosen(tools, tool_choice)
        rules = Rules(self.limits, "tools")
        root, compilers = compile_calls(allowed, tool_format, parallel, rules)
        validated = {key for compiler in compilers.values() for key in compiler.validated}
        validators = {name: compiler.validator for name, compiler in compilers.items()}
        if tool_choice == "auto":
            return Compiled(None, None, False, tuple(sorted(validated)), _anything, None, NOTHING, 0, validators)
        text = gbnf.write(*untangled(rules, root))
        always = tool_format == PLAIN
        return Compiled(
            Grammar("ebnf", text), None, always, tuple(sorted(validated)), read_and_drop if always else _anything,
            rules, root, 8 * len(text), validators,
        )  # fmt: skip


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()


def _again(error: InvalidInput) -> InvalidInput:
    """The same refusal, without the frames that the first one came through."""
    return type(error)(error.message, parameter=error.parameter, problem=error.problem)


def _anything(text: str) -> None:
    """Nothing to check in the text as a whole: the parser of tool calls finds the calls, `check_call` checks those."""


def read_and_drop(text: str) -> None:
    read_json(text)


def _compile(format: Format, limits: Limits, where: str) -> Compiled:
    if format.kind in ("json_object", "json_schema"):
        return _json(format, limits, where)
    if format.kind == "choice":
        return _choice(format, limits, where or "structured_outputs.choice")
    if format.kind == "regex":
        return _regex(format, limits, where or "structured_outputs.regex")
    if format.kind == "ebnf":
        from penstock.language.grammars.gbnf_reading import read

        rules, root = read(format.text, limits, where or "structured_outputs.grammar")
        return _written(rules, root, False, (), _anything)
    from penstock.language.grammars.lark_reading import read as read_lark

    rules, root = read_lark(format.text, limits, where or "structured_outputs.grammar")
    return _written(rules, root, False, (), _anything)


def _written(rules: Rules, root: Node, always_json: bool, validated: SequenceOf[str], check: Check) -> Compiled:
    text = gbnf.write(*untangled(rules, root))
    short = None if always_json or rules.bodies else pattern.write(root)
    regex = Grammar("regex", short) if short is not None and len(short) <= _LONGEST_REGEX else None
    return Compiled(
        Grammar("ebnf", text), regex, always_json, tuple(sorted(validated)), check, rules, root, 8 * len(text)
    )


def _json(format: Format, limits: Limits, where: str) -> Compiled:
    if format.kind == "json_object":
        rules = Rules(limits, where or "response_format")
        schema: Mapping[str, object] | bool = {"type": "object"}
    else:
        rules, schema = Rules(limits, where or _SCHEMA), format.schema
    validator = Validator(schema, rules.where, limits)
    compiler = SchemaCompiler(schema, rules, validator)
    root = compiler.compile(schema, rules.where)

    def check(text: str) -> None:
        validator.check(read_json(text))

    return _written(rules, root, True, tuple(compiler.validated), check)


def _choice(format: Format, limits: Limits, where: str) -> Compiled:
    if not format.choices:
        raise InvalidInput(f"{where}: needs at least one choice")
    if len(format.choices) > limits.rules:
        raise InvalidInput(f"{where}: has {len(format.choices)} choices; at most {limits.rules} are allowed")
    allowed = frozenset(format.choices)

    def check(text: str) -> None:
        if text not in allowed:
            raise ServableError(f"the output {text[:80]!r} is none of the choices")

    return _written(Rules(limits, where), choice(*(literal(text) for text in format.choices)), False, (), check)


def _regex(format: Format, limits: Limits, where: str) -> Compiled:
    rules = Rules(limits, where)
    return _written(rules, pattern.read(format.text, rules, where), False, (), _regex_check(format.text))


def _regex_check(text: str) -> Check:
    from penstock.language.grammars.validation import found_in

    def check(output: str) -> None:
        if not found_in(f"^(?:{text})$", output):
            raise ServableError(f"the output {output[:80]!r} does not match the pattern")

    return check
