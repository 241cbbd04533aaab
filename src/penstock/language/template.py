"""Chat templates: messages to the prompt that a model was trained with. They run in minijinja, which gives them
nothing of Python and counts their steps; what they print of values is what Python's Jinja would print.

Source of the dialect: transformers, utils/chat_template_utils.py (trim_blocks, lstrip_blocks, loop controls, `tojson`
without escapes of HTML, raise_exception, strftime_now, the `generation` tag).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from penstock.core.errors import InvalidInput, LoadError, Unsupported
from penstock.core.language import Message, Tool
from penstock.language.conversation import Conversation, texts_of
from penstock.language.guard import Guard, Marking
from penstock.language.tokenizer import Tokenizer

if TYPE_CHECKING:
    import minijinja

_MOST_SOURCE = 1 << 20  # characters; the longest in public use has about 30 thousand
_MOST_PROMPT = 64 << 20
_LONGEST_REFUSAL = 500  # characters; templates may put the messages in it
_FUEL = (
    10_000_000  # steps of minijinja's machine: 0.2 s. The longest templates in public use take a few thousand a message
)

# A block that transformers adds, around what a model is trained to say. It renders as what is inside.
_GENERATION = re.compile(r"\{%(-|\+)?\s*(end)?generation\s*(-|\+)?%\}")


class Template:
    """One chat template, compiled. `special` are texts of control tokens that it may name (bos_token, …).

    Raises: LoadError when it cannot be compiled.
    """

    def __init__(self, source: str, special: Mapping[str, str] | None = None, guard: Guard | None = None) -> None:
        self.source = source
        self._special = dict(special or {})
        self._guard = guard or Guard(())
        self._environment = _environment(source)
        names = self._environment.undeclared_variables_in_template("chat")
        self.arguments = frozenset(names)
        self.takes_tools = "tools" in names
        self._conversation = Conversation(source, self.takes_tools, self._probe)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        add_generation_prompt: bool = True,
        continue_last: bool = False,
        arguments: Mapping[str, object] | None = None,
        now_s: float = 0.0,
    ) -> str:
        """The prompt. `now_s` are seconds since the epoch, for templates that tell the date.

        `continue_last`: the last message is an assistant's beginning, and the prompt ends with its last letter.
        Raises: InvalidInput for what the template refuses, or takes too many steps for.
        """
        marking = self._marking(messages, tools, arguments)
        return marking.plain(
            self._render(marking, messages, tools, add_generation_prompt, continue_last, arguments, now_s)
        )

    def encode(
        self,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        add_generation_prompt: bool = True,
        continue_last: bool = False,
        arguments: Mapping[str, object] | None = None,
        now_s: float = 0.0,
    ) -> tuple[str, list[int]]:
        """The prompt, and its ids, in which control texts that users wrote are text like any other."""
        marking = self._marking(messages, tools, arguments)
        rendered = self._render(marking, messages, tools, add_generation_prompt, continue_last, arguments, now_s)
        return marking.plain(rendered), marking.encode(tokenizer, rendered)

    def _marking(
        self, messages: Sequence[Message], tools: Sequence[Tool], arguments: Mapping[str, object] | None
    ) -> Marking:
        return self._guard.marking(texts_of(messages, tools, arguments or {}))

    def _render(
        self,
        marking: Marking,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        add_generation_prompt: bool,
        continue_last: bool,
        arguments: Mapping[str, object] | None,
        now_s: float,
    ) -> str:
        if not messages:
            raise InvalidInput("messages is empty: a conversation has at least one message")
        if continue_last and messages[-1].role != "assistant":
            raise InvalidInput(f"the last message is to be continued, but it is of role {messages[-1].role!r}")
        written, described = self._conversation.prepare(messages, tools, marking)
        if continue_last:
            written[-1]["content"] = f"{written[-1].get('content') or ''}{marking.cut}"
        values = {
            **self._special,
            **{key: marking.value(value) for key, value in (arguments or {}).items()},
            "messages": written,
            **({"tools": described} if described else self._conversation.none_of_tools),
            "add_generation_prompt": add_generation_prompt and not continue_last,
        }
        rendered = self._run(values, now_s)
        if not continue_last:
            return rendered
        if marking.cut not in rendered:
            raise Unsupported("this model's chat template changes the last message, which cannot be continued")
        return rendered[: rendered.rindex(marking.cut)]

    def _run(self, values: Mapping[str, object], now_s: float) -> str:
        import minijinja

        def strftime_now(form: str) -> str:
            return datetime.fromtimestamp(now_s, UTC).strftime(form)

        try:
            found: str = self._environment.render_template("chat", **values, strftime_now=strftime_now)
        except _Refused as error:
            raise InvalidInput(f"the chat template refuses the messages: {error}") from None
        except minijinja.TemplateError as error:
            raise InvalidInput(f"the chat template cannot render the messages: {_first_line(error)}") from None
        except (TypeError, ValueError, RecursionError, OverflowError) as error:
            raise InvalidInput(f"the chat template cannot render the messages: {error}") from None
        if len(found) > _MOST_PROMPT:
            raise InvalidInput(f"the prompt has {len(found)} characters; {_MOST_PROMPT} are allowed")
        return found

    def _probe(self, messages: list[dict[str, object]], tools: Mapping[str, object]) -> str | None:
        """What the template makes of made-up messages, to learn what it can do; None when it refuses."""
        try:
            return self._run({**self._special, **tools, "messages": messages, "add_generation_prompt": True}, 0.0)
        except InvalidInput:
            return None


class _Refused(Exception):
    """The template called raise_exception."""


def _environment(source: str) -> minijinja.Environment:
    try:
        import minijinja
    except ImportError as error:
        raise LoadError('chat templates need the package minijinja: pip install "penstock[llm]"') from error
    if len(source) > _MOST_SOURCE:
        raise LoadError(f"the chat template has {len(source)} characters; {_MOST_SOURCE} are allowed")
    environment = minijinja.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        debug=False,
        fuel=_FUEL,
        auto_escape_callback=_never,
        filters={"tojson": _to_json},
        globals={"raise_exception": _refuse},
    )
    plain = _GENERATION.sub(lambda m: f"{{%{m[1] or ''} {'endif' if m[2] else 'if true'} {m[3] or ''}%}}", source)
    try:
        environment.add_template("chat", plain)
    except minijinja.TemplateError as error:
        raise LoadError(f"the chat template cannot be compiled: {_first_line(error)}") from error
    return environment


def _never(name: str) -> bool:
    return False  # prompts are not HTML


def _refuse(message: object = "") -> str:
    raise _Refused(str(message)[:_LONGEST_REFUSAL])


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    cut = None if separators is None else (str(separators[0]), str(separators[1]))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=cut, sort_keys=sort_keys)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
