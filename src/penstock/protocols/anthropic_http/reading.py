"""Reads the body of a Messages call: what is asked, and what of it has no effect here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from penstock.core.errors import InvalidInput
from penstock.core.fields import Fields, shown
from penstock.core.language import Ask, Card, Format, Sampling, Tool
from penstock.core.nearest import nearest
from penstock.protocols.anthropic_http.conversation import messages

MOST_TOOLS: Final = 128
MOST_STOPS: Final = 64
LONGEST_STOP: Final = 1024  # characters
MOST_TOKENS: Final = 1 << 31
_NAME_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
_LONGEST_NAME: Final = 128
_LEAST_BUDGET: Final = 1024  # Anthropic's own
_EFFORTS: Final = ("low", "medium", "high", "xhigh", "max")
_OUR_EFFORTS: Final = {"xhigh": "high", "max": "high"}  # the nearest of those that templates know

# What changes no answer: bookkeeping and billing at Anthropic's, hints that only make things faster.
HARMLESS: Final = frozenset({
    "metadata", "service_tier", "cache_control", "user_profile_id", "workspace_id", "diagnostics",
})  # fmt: skip

# What would change the answer, or promise what is not kept; each with the values that ask for nothing.
REFUSED: Final[Mapping[str, tuple[object, ...]]] = {
    "container": (), "mcp_servers": ([],), "context_management": (), "inference_geo": (), "speed": ("standard",),
    "fallbacks": ([],),
}  # fmt: skip

# What `decode` reads. The last line is not Anthropic's: what this server's engines can do besides.
KNOWN: Final = (
    "model", "messages", "system", "max_tokens", "stop_sequences", "stream", "temperature", "top_p", "top_k",
    "thinking", "output_config", "output_format", "tools", "tool_choice",
    "min_p", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty", "priority",
)  # fmt: skip

NAMES: Final[Mapping[str, str]] = {
    "stop": "stop_sequences", "format": "output_config.format", "reasoning": "thinking", "adapter": "model",
    "continue_last": "messages",
    **{f"sampling.{name}": name for name in (
        "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed",
    )},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wish:
    """How the answer is to be sent."""

    stream: bool = False
    thoughts: bool = True  # they are shown
    ignored: tuple[str, ...] = ()  # members without an effect


def decode(fields: Fields, card: Card, *, counting: bool = False) -> tuple[Ask, Wish]:
    """What is asked of a model, and how the answer looks. `counting`: only the prompt matters. Raises: InvalidInput."""
    fields.take("model")
    tools = _tools(fields)
    choice, parallel = _tool_choice(fields, tools)
    found = messages(fields)
    most = fields.integer("max_tokens", 1, MOST_TOKENS)
    if most is None and not counting:
        raise fields.missing("max_tokens")
    effort, form, form_name = _output(fields)
    thinking = _thinking(fields, card, most)
    by_effort = bool(effort) and thinking.effort != "none"
    continues = found[-1].role == "assistant"
    ask = Ask(
        found,
        max_tokens=most,
        sampling=_sampling(fields),
        stop=tuple(text for text in fields.texts("stop_sequences", MOST_STOPS, LONGEST_STOP) if text),
        format=form,
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        reasoning=effort if by_effort else thinking.effort,
        continue_last=continues,
        add_generation_prompt=not continues,
        priority=fields.integer("priority", 0, 1 << 15) or 0,
        names={**NAMES, "format": form_name, "reasoning": "output_config.effort" if by_effort else "thinking"},
    )
    wish = Wish(fields.flag("stream"), thinking.shown, thinking.ignored)
    _check_rest(fields)
    return ask, wish


def _sampling(fields: Fields) -> Sampling:
    repetition = fields.number("repetition_penalty", 0, 100)
    if repetition == 0:
        raise fields.refused("repetition_penalty", "a decimal above 0", "decimal_below_min_value")
    return Sampling(
        temperature=fields.number("temperature", 0, 1),
        top_p=fields.number("top_p", 0, 1),
        top_k=fields.integer("top_k", 0, 1 << 30),
        min_p=fields.number("min_p", 0, 1),
        presence_penalty=fields.number("presence_penalty", -2, 2) or 0.0,
        frequency_penalty=fields.number("frequency_penalty", -2, 2) or 0.0,
        repetition_penalty=repetition,
        seed=fields.integer("seed", -(1 << 63), (1 << 63) - 1),
    )


# --- tools ---


def _tools(fields: Fields) -> tuple[Tool, ...]:
    found = []
    for at, value in enumerate(fields.array("tools", MOST_TOOLS) or ()):
        if not isinstance(value, dict):
            raise fields.mistyped(f"tools[{at}]", value, "an object")
        tool = Fields(value, f"tools[{at}]")
        kind = tool.text("type")
        if kind not in (None, "custom"):
            raise tool.unsupported("type", f"{kind!r:.80} runs at Anthropic's; only tools of the caller's own are here")
        name = tool.text("name", _LONGEST_NAME)
        if not name:
            raise tool.missing("name")
        if not _NAME_CHARACTERS.issuperset(name):
            raise tool.refused("name", f"letters, digits, '_', '-' and '.', but got {name!r}", "invalid_value")
        schema = tool.members("input_schema")
        if schema is None:
            raise tool.missing("input_schema")
        found.append(Tool(name, tool.text("description") or "", schema, tool.flag("strict")))
    if len({tool.name for tool in found}) < len(found):
        raise fields.refused("tools", "names that differ", "invalid_value")
    return tuple(found)


def _tool_choice(fields: Fields, tools: tuple[Tool, ...]) -> tuple[str, bool]:
    """`Ask.tool_choice`, and whether several calls may be made."""
    inner = fields.inner("tool_choice")
    if inner is None:
        return "auto", True
    parallel = not inner.flag("disable_parallel_tool_use")
    kind = inner.one_of("type", ("auto", "any", "tool", "none"))
    if kind is None:
        raise inner.missing("type")
    if kind in ("auto", "none"):
        return kind, parallel
    if not tools:
        raise fields.refused("tool_choice", "it only when 'tools' are given", "invalid_value")
    if kind == "any":
        return "required", parallel
    name = inner.text("name", _LONGEST_NAME)
    if name is None:
        raise inner.missing("name")
    if all(tool.name != name for tool in tools):
        raise inner.refused("name", f"one of the tools, but got {name!r}", "invalid_value")
    return f"={name}", parallel


# --- thinking and the output's form ---


@dataclass(frozen=True, slots=True)
class _Thinking:
    effort: str = ""
    shown: bool = True
    ignored: tuple[str, ...] = ()


def _thinking(fields: Fields, card: Card, most: int | None) -> _Thinking:
    """A budget of thoughts is no engine's to keep: it becomes an effort, and is said to be ignored as a number."""
    inner = fields.inner("thinking")
    if inner is None:
        return _Thinking()
    kind = inner.one_of("type", ("enabled", "adaptive", "disabled"))
    if kind is None:
        raise inner.missing("type")
    display = inner.one_of("display", ("summarized", "omitted"))
    if kind == "disabled":
        return _Thinking("none")
    if kind == "adaptive":
        return _Thinking("", display != "omitted")
    if not card.reasons:
        raise fields.unsupported("thinking", f"model '{card.name}' does not think before it answers; leave it out")
    budget = inner.integer("budget_tokens", _LEAST_BUDGET, MOST_TOKENS)
    if budget is None:
        raise inner.missing("budget_tokens")
    if most is not None and budget >= most:
        raise inner.refused("budget_tokens", f"less than max_tokens, {most}, but got {budget}", "invalid_value")
    effort = "low" if budget < 4096 else "medium" if budget < 16384 else "high"
    return _Thinking(effort, display != "omitted", ("thinking.budget_tokens",))


def _output(fields: Fields) -> tuple[str, Format, str]:
    """The effort, the output's form, and the member that asks for the form."""
    effort, form, name = "", Format(), "output_config.format"
    inner = fields.inner("output_config")
    if inner is not None:
        wished = inner.one_of("effort", _EFFORTS) or ""
        effort = _OUR_EFFORTS.get(wished, wished)
        form = _format(inner.inner("format"))
        if rest := inner.rest():
            raise inner.unsupported(rest[0][:80], "it is not one of effort, format")
    older = fields.inner("output_format")
    if older is not None:
        if form.kind != "text":
            raise fields.refused("output_format", "it without 'output_config.format'", "invalid_value")
        form, name = _format(older), "output_format"
    return effort, form, name


def _format(inner: Fields | None) -> Format:
    if inner is None:
        return Format()
    kind = inner.one_of("type", ("json_schema",))
    if kind is None:
        raise inner.missing("type")
    schema = inner.members("schema")
    if schema is None:
        raise inner.missing("schema")
    return Format("json_schema", schema)


def _check_rest(fields: Fields) -> None:
    """Nothing is left out in silence: Anthropic's API refuses what it does not know, and so does this one."""
    for name in fields.rest():
        if name in HARMLESS:
            continue
        if name in REFUSED:
            value = fields.take(name)
            if any(type(value) is type(neutral) and value == neutral for neutral in REFUSED[name]):
                continue
            raise fields.unsupported(name, f"{shown(value)} is not supported here; leave it out")
        raise InvalidInput(
            f"{name[:80]}: Extra inputs are not permitted{nearest(name[:80], KNOWN)}", parameter=name[:80],
            problem="unknown_parameter",
        )  # fmt: skip
