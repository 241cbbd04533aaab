"""From an `Ask` to what an engine is asked: checked, rendered, tokenised, its grammar compiled; and the last check."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from penstock.core.errors import InvalidInput, ServableError, TooLarge, Unsupported
from penstock.core.language import Ask, EngineInfo, Finished, Format, Grammar, Tool
from penstock.core.messages import NO_DEADLINE
from penstock.language.grammars import PLAIN, PLAIN_LIST, Compiled
from penstock.runtime.language import checks
from penstock.runtime.language.choice_text import ChoiceText
from penstock.runtime.language.compiles import Compiles
from penstock.runtime.language.reading import Forced, Forms, arguments
from penstock.runtime.language.texts import Texts


@dataclass(slots=True)
class Plan:
    """One request, ready to be generated."""

    text: str  # the prompt, where it is known; "" when only ids were given and nobody asks for it
    token_ids: tuple[int, ...]
    max_tokens: int
    compiled: Compiled | None
    grammar: Grammar | None
    deadline: float
    forms: Forms | None  # how the output is read; None: as text
    tools: Sequence[Tool]
    forced: Forced


class Planner:
    """Plans requests to one version. `timeout_s` is the deadline of those that bring none."""

    def __init__(self, name: str, info: EngineInfo, texts: Texts, compiles: Compiles, timeout_s: float) -> None:
        self._name = name
        self._info = info
        self._texts = texts
        self._compiles = compiles
        self._timeout_s = timeout_s

    async def plan(self, ask: Ask, received: float) -> Plan:
        """The plan of one request. Raises: InvalidInput, TooLarge, Unsupported, Overloaded, DeadlineExceeded."""
        info = self._info
        if not info.generates:
            raise Unsupported(f"model '{self._name}' does not generate text; ask it for embeddings")
        tools = ask.tools if ask.tool_choice != "none" else ()
        forced: Forced = ""
        if tools and ask.tool_choice != "auto":
            forced = "calls"
            tools = tuple(tool for tool in tools if ask.tool_choice in ("required", f"={tool.name}"))
        elif ask.format.kind != "text":
            forced = "format"
        if forced:
            _check_ends(ask)  # before what the engine lacks: another model would be asked in vain
        checks.check(ask, info)
        deadline = ask.deadline if ask.deadline != NO_DEADLINE else received + self._timeout_s
        compiled = await self._compiled(ask, tools, forced, deadline)
        grammar = self._grammar(ask, compiled, forced)
        forms, given = None, ask.template_arguments
        if ask.messages is not None:
            forms = self._texts.forms(self._texts.template(ask, bool(tools)))
            given = arguments(ask, forms)
        text, ids = await self._prompt(ask, tools, given)
        count, context = len(ids), info.context_tokens
        if not count:
            raise InvalidInput(
                f"{checks.name(ask, 'prompt')} is empty; give at least one token", parameter=checks.name(ask, "prompt")
            )
        if count >= context:
            raise TooLarge(
                f"the prompt has {count} tokens, and the model's context holds {context}, the answer included; shorten "
                "it", parameter=checks.name(ask, "messages" if ask.prompt is None else "prompt"),
                problem="context_length_exceeded",
            )  # fmt: skip
        room = context - count
        if ask.max_tokens is not None and ask.max_tokens > room:
            name = checks.name(ask, "max_tokens")
            raise TooLarge(
                f"{name} is {ask.max_tokens} and the prompt has {count} tokens: together more than the model's context "
                f"of {context}; ask for at most {room}, or shorten the prompt",
                parameter=name, problem="context_length_exceeded",
            )  # fmt: skip
        return Plan(text, tuple(ids), ask.max_tokens or room, compiled, grammar, deadline, forms, tools, forced)

    async def _prompt(self, ask: Ask, tools: Sequence[Tool], given: Mapping[str, object]) -> tuple[str, list[int]]:
        prompt = ask.prompt
        if isinstance(prompt, str):
            return prompt, await self._texts.encode(prompt)
        if prompt is not None:
            vocabulary = self._info.vocabulary
            if any(not 0 <= token < vocabulary for token in prompt):
                raise InvalidInput(
                    f"{checks.name(ask, 'prompt')}: a token id is outside the model's vocabulary of {vocabulary}",
                    parameter=checks.name(ask, "prompt"),
                )
            return (await self._texts.decode(prompt) if ask.echo else ""), list(prompt)
        try:
            return await self._texts.prompt(ask, tools, given)
        except InvalidInput as error:  # of the template: its own message
            if error.parameter:
                raise
            raise InvalidInput(error.message, parameter=checks.name(ask, "messages"), problem="invalid_value") from None

    async def _compiled(self, ask: Ask, tools: Sequence[Tool], forced: Forced, deadline: float) -> Compiled | None:
        """What the output is held to, and checked by in the end."""
        if not forced and not any(tool.strict for tool in tools):
            return None
        compile_format = self._compiles.compile_format
        name = checks.name(ask, "format" if forced == "format" else "tools")
        try:
            if forced == "format":
                return await compile_format(ask.format, where=ask.names.get("format", ""), deadline=deadline)
            form = PLAIN_LIST if ask.parallel_tool_calls and ask.tool_choice == "required" else PLAIN
            return await compile_format(
                Format(), ask.tools, ask.tool_choice, ask.parallel_tool_calls, tool_format=form, deadline=deadline
            )
        except InvalidInput as error:  # whose message says where in the format or the tools
            if error.parameter:
                raise
            raise InvalidInput(error.message, parameter=name, problem="invalid_value") from error

    def _grammar(self, ask: Ask, compiled: Compiled | None, forced: Forced) -> Grammar | None:
        if compiled is None or compiled.grammar is None:
            return None
        kinds = self._info.grammars
        for grammar in (compiled.grammar, compiled.regex):
            if grammar is not None and grammar.kind in kinds:
                return grammar
        if "json" in kinds and ask.format.kind == "json_schema" and forced == "format":
            return Grammar("json", json.dumps(ask.format.schema))
        name, value = (
            ("format", ask.format.kind) if forced == "format" else ("tool_choice", ask.tool_choice.lstrip("="))
        )
        name = checks.name(ask, name)
        can = f"takes only {', '.join(sorted(kinds))}" if kinds else "cannot hold its output to a grammar"
        raise InvalidInput(
            f"{name} = {value}: this model's engine, {self._info.engine}, {can}",
            parameter=name, problem="unsupported_parameter",
        )  # fmt: skip

    async def render(self, ask: Ask) -> tuple[str, list[int]]:
        """The prompt that the messages become, and its ids. Raises: InvalidInput, Unsupported."""
        checks.check(ask, self._info)
        if ask.messages is None:
            raise InvalidInput("give messages to be rendered, not a prompt")
        tools = ask.tools if ask.tool_choice != "none" else ()
        forms = self._texts.forms(self._texts.template(ask, bool(tools)))
        return await self._prompt(ask, tools, arguments(ask, forms))


def _check_ends(ask: Ask) -> None:
    """A grammar says where its text ends; engines that were kept from it went on with what it does not allow.

    Raises: InvalidInput.
    """
    wished = {"sampling.min_tokens": ask.sampling.min_tokens > 0, "sampling.ignore_eos": ask.sampling.ignore_eos}
    for field in (field for field, asked in wished.items() if asked):
        name = checks.name(ask, field)
        raise InvalidInput(
            f"{name}: output that is held to a format or a call ends where that ends; leave {name} out",
            parameter=name, problem="invalid_value",
        )  # fmt: skip


def check_end(plan: Plan, choice: ChoiceText, finished: Finished) -> None:
    """Nothing, when a choice that ended by itself is what its grammar or its tools allow. Raises: ServableError."""
    compiled = plan.compiled
    if compiled is None or finished.reason == "length" or finished.stop is not None:
        return
    if plan.forced == "format":
        compiled.check("".join(choice.text_parts))
        return
    strict = {tool.name for tool in plan.tools if tool.strict or plan.forced}
    calls = choice.reader.calls if choice.reader is not None else []
    for name, given in calls:
        if name in strict:
            compiled.check_call(name, given)
    if plan.forced and not calls:
        raise ServableError("the model was to call a tool, and called none")
