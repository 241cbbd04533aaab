"""What of an `Ask` a model can do: every field is honoured, or refused with an error that names it as the caller does.

Two tables: what values may be at all, and what an engine must be able to do for them (`EngineInfo`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from penstock.core.errors import InvalidInput
from penstock.core.language import Ask, EngineInfo

MOST_CHOICES = 128
MOST_STOPS = 64
MOST_STOP_CHARACTERS = 4096  # of all together
MOST_BIASES = 4096
_EFFORTS = ("", "none", "low", "medium", "high")


@dataclass(frozen=True, slots=True)
class Value:
    """What a field may be: `right` says it of an Ask, `allowed` to people."""

    field: str
    right: Callable[[Ask, EngineInfo], bool]
    allowed: str


@dataclass(frozen=True, slots=True)
class Need:
    """What a field needs of an engine when it is `asked` for."""

    field: str
    asked: Callable[[Ask], bool]
    able: Callable[[Ask, EngineInfo], bool]
    lacks: str


def _number(value: float | None, least: float, most: float) -> bool:
    return value is None or (math.isfinite(value) and least <= value <= most)


def _ids(ids: object, info: EngineInfo) -> bool:
    return all(isinstance(token, int) and 0 <= token < info.vocabulary for token in ids)  # type: ignore[attr-defined]


VALUES = (
    Value("n", lambda ask, _: 1 <= ask.n <= MOST_CHOICES, f"1 to {MOST_CHOICES}"),
    Value("max_tokens", lambda ask, _: ask.max_tokens is None or ask.max_tokens >= 1, "at least 1"),
    Value("sampling.temperature", lambda ask, _: _number(ask.sampling.temperature, 0, 100), "0 to 100"),
    Value("sampling.top_p", lambda ask, _: _number(ask.sampling.top_p, 0, 1) and ask.sampling.top_p != 0,
          "above 0, at most 1"),
    Value("sampling.top_k", lambda ask, _: ask.sampling.top_k is None or 0 <= ask.sampling.top_k < 1 << 31,
          "at least 0, which is all"),
    Value("sampling.min_p", lambda ask, _: _number(ask.sampling.min_p, 0, 1), "0 to 1"),
    Value("sampling.presence_penalty", lambda ask, _: _number(ask.sampling.presence_penalty, -2, 2), "-2 to 2"),
    Value("sampling.frequency_penalty", lambda ask, _: _number(ask.sampling.frequency_penalty, -2, 2), "-2 to 2"),
    Value("sampling.repetition_penalty",
          lambda ask, _: _number(ask.sampling.repetition_penalty, 0, 100) and ask.sampling.repetition_penalty != 0,
          "above 0; 1 is none"),
    Value("sampling.no_repeat_ngram", lambda ask, _: 0 <= ask.sampling.no_repeat_ngram < 1 << 31, "at least 0"),
    Value("sampling.seed", lambda ask, _: ask.sampling.seed is None or -(1 << 63) <= ask.sampling.seed < 1 << 63,
          "a whole number of 64 bits"),
    Value("sampling.logit_bias", lambda ask, info: len(ask.sampling.logit_bias) <= MOST_BIASES
          and _ids(ask.sampling.logit_bias, info)
          and all(_number(bias, -100, 100) for bias in ask.sampling.logit_bias.values()),
          f"at most {MOST_BIASES} of the model's token ids, each with -100 to 100"),
    Value("sampling.min_tokens", lambda ask, _: ask.sampling.min_tokens >= 0
          and (ask.max_tokens is None or ask.sampling.min_tokens <= ask.max_tokens), "0 to max_tokens"),
    Value("stop", lambda ask, _: len(ask.stop) <= MOST_STOPS and all(ask.stop)
          and sum(map(len, ask.stop)) <= MOST_STOP_CHARACTERS,
          f"at most {MOST_STOPS} texts, none empty, of {MOST_STOP_CHARACTERS} characters together"),
    Value("stop_token_ids", lambda ask, info: len(ask.stop_token_ids) <= MOST_STOPS and _ids(ask.stop_token_ids, info),
          f"at most {MOST_STOPS} of the model's token ids"),
    Value("logprobs", lambda ask, _: ask.logprobs is None or ask.logprobs >= 0, "at least 0"),
    Value("prompt_logprobs", lambda ask, _: ask.prompt_logprobs is None or ask.prompt_logprobs >= 0, "at least 0"),
    Value("priority", lambda ask, _: 0 <= ask.priority < 1 << 32, "0 (the default level) or above; 1 comes first"),
    Value("reasoning", lambda ask, _: ask.reasoning in _EFFORTS, "none, low, medium or high"),
    Value("echo", lambda ask, _: not (ask.echo and ask.messages is not None), "false for messages"),
    Value("continue_last", lambda ask, _: not ask.continue_last
          or bool(ask.messages and ask.messages[-1].role == "assistant"),
          "true only for an assistant's"),
    Value("tools", lambda ask, _: not (ask.tools and ask.messages is None), "left out for a prompt"),
    Value("template", lambda ask, _: not (ask.template and ask.messages is None), "left out for a prompt"),
    Value("template_arguments", lambda ask, _: not (ask.template_arguments and ask.messages is None),
          "left out for a prompt"),
    Value("tool_choice", lambda ask, _: _choice_is_right(ask), "auto, none, required or one of the tools"),
)  # fmt: skip

NEEDS = (
    Need("sampling.min_p", lambda ask: bool(ask.sampling.min_p), lambda _, info: info.min_p, "has no min_p"),
    Need("sampling.presence_penalty", lambda ask: ask.sampling.presence_penalty != 0,
         lambda _, info: info.penalties, "has no penalties"),
    Need("sampling.frequency_penalty", lambda ask: ask.sampling.frequency_penalty != 0,
         lambda _, info: info.penalties, "has no penalties"),
    Need("sampling.repetition_penalty", lambda ask: ask.sampling.repetition_penalty not in (None, 1.0),
         lambda _, info: info.repetition_penalty, "has no repetition penalty"),
    Need("sampling.no_repeat_ngram", lambda ask: ask.sampling.no_repeat_ngram > 0,
         lambda _, info: info.no_repeat_ngram, "cannot forbid repeated n-grams"),
    Need("sampling.seed", lambda ask: ask.sampling.seed is not None, lambda _, info: info.seeded, "takes no seed"),
    Need("sampling.logit_bias", lambda ask: bool(ask.sampling.logit_bias), lambda _, info: info.logit_bias,
         "cannot bias tokens"),
    Need("sampling.min_tokens", lambda ask: ask.sampling.min_tokens > 0, lambda _, info: info.min_tokens,
         "cannot keep from ending early"),
    Need("sampling.ignore_eos", lambda ask: ask.sampling.ignore_eos, lambda _, info: info.ignore_eos,
         "cannot go on beyond the model's end"),
    Need("logprobs", lambda ask: ask.logprobs is not None, lambda ask, info: (ask.logprobs or 0) <= info.top_logprobs,
         "gives fewer log-probabilities"),
    Need("prompt_logprobs", lambda ask: ask.prompt_logprobs is not None,
         lambda ask, info: info.prompt_logprobs and (ask.prompt_logprobs or 0) <= info.top_logprobs,
         "gives no such log-probabilities of prompts"),
    Need("adapter", lambda ask: bool(ask.adapter),
         lambda ask, info: info.adapters == "request" and ask.adapter in info.adapter_names,
         "has no LoRA adapter of this name that a request can choose"),
)  # fmt: skip


def check(ask: Ask, info: EngineInfo) -> None:
    """Nothing, when the model can do all that is asked.

    Raises:
        InvalidInput: a value is outside what it may be, or the engine lacks what it needs; it names the parameter.
    """
    if (ask.messages is None) == (ask.prompt is None):
        raise InvalidInput("give either messages or a prompt")
    if ask.messages is not None and not ask.messages:
        raise InvalidInput(f"{name(ask, 'messages')} is empty; give at least one message")
    for value in VALUES:
        if not value.right(ask, info):
            called = name(ask, value.field)
            raise InvalidInput(
                f"{called} is {_shown(ask, value.field)}; it may be {value.allowed}", parameter=called,
                problem="invalid_value",
            )  # fmt: skip
    for need in NEEDS:
        if need.asked(ask) and not need.able(ask, info):
            raise InvalidInput(
                f"{name(ask, need.field)} = {_shown(ask, need.field)}: this model's engine, {info.engine}, {need.lacks}"
                f"{_most(need.field, info)}",
                parameter=name(ask, need.field), problem="unsupported_parameter",
            )  # fmt: skip


def name(ask: Ask, field: str) -> str:
    """What the caller calls a field."""
    return ask.names.get(field, field.rpartition(".")[2])


def _shown(ask: Ask, field: str) -> str:
    value: object = ask
    for part in field.split("."):
        value = getattr(value, part)
    text = repr(value)
    return text if len(text) < 80 else f"{text[:80]}…"


def _most(field: str, info: EngineInfo) -> str:
    if field == "logprobs":
        return f" (at most {info.top_logprobs})" if info.top_logprobs >= 0 else " (none)"
    return ""


def _choice_is_right(ask: Ask) -> bool:
    choice = ask.tool_choice
    if choice.startswith("="):
        return any(tool.name == choice[1:] for tool in ask.tools)
    return choice in ("auto", "none") or (choice == "required" and bool(ask.tools))
