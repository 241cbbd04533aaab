"""Every field of an Ask is honoured by the engine, or refused by the name that its caller has for it."""

from __future__ import annotations

import dataclasses
import math

import pytest

from penstock.core.errors import InvalidInput
from penstock.core.language import Ask, EngineInfo, Message, Sampling, Tool
from penstock.runtime.language import checks

ALL = EngineInfo(
    "all", "1", 100, 50, grammars=frozenset({"ebnf"}), top_logprobs=20, prompt_logprobs=True, logit_bias=True,
    min_p=True, min_tokens=True, ignore_eos=True, no_repeat_ngram=True, adapters="request", adapter_names=("sql",),
)  # fmt: skip
NOTHING = EngineInfo(
    "none", "1", 100, 50, top_logprobs=-1, penalties=False, repetition_penalty=False, seeded=False
)  # fmt: skip

# A value that asks something of the engine, the capability that it takes, and that capability's absence.
NEEDED: dict[str, tuple[object, dict[str, object]]] = {
    "sampling.min_p": (0.1, {"min_p": False}),
    "sampling.presence_penalty": (0.5, {"penalties": False}),
    "sampling.frequency_penalty": (-0.5, {"penalties": False}),
    "sampling.repetition_penalty": (1.1, {"repetition_penalty": False}),
    "sampling.no_repeat_ngram": (2, {"no_repeat_ngram": False}),
    "sampling.seed": (0, {"seeded": False}),
    "sampling.logit_bias": ({1: 5.0}, {"logit_bias": False}),
    "sampling.min_tokens": (2, {"min_tokens": False}),
    "sampling.ignore_eos": (True, {"ignore_eos": False}),
    "logprobs": (5, {"top_logprobs": 4}),
    "prompt_logprobs": (0, {"prompt_logprobs": False}),
    "adapter": ("sql", {"adapter_names": ()}),
}
WRONG: dict[str, list[object]] = {
    "n": [0, -1, 1000],
    "max_tokens": [0, -5],
    "sampling.temperature": [-0.1, math.nan, math.inf],
    "sampling.top_p": [0, 1.1, -1],
    "sampling.top_k": [-1],
    "sampling.min_p": [1.5, -0.1],
    "sampling.presence_penalty": [2.1, -2.1, math.nan],
    "sampling.frequency_penalty": [2.1, -2.1],
    "sampling.repetition_penalty": [0, -1, math.inf],
    "sampling.no_repeat_ngram": [-1],
    "sampling.seed": [1 << 63],
    "sampling.logit_bias": [{50: 1.0}, {-1: 1.0}, {1: 101.0}, {1: math.nan}],
    "sampling.min_tokens": [-1],
    "stop": [("",), ("a",) * 65, ("a" * 5000,)],
    "stop_token_ids": [(50,), (-1,)],
    "logprobs": [-1],
    "prompt_logprobs": [-1],
    "priority": [-1],
    "reasoning": ["sometimes"],
    "tool_choice": ["required", "=missing", "perhaps"],
}
PLAIN = {  # honoured by every engine, whatever it can do
    "sampling.temperature": 0.5, "sampling.top_p": 0.5, "sampling.top_k": 5, "n": 2, "max_tokens": 5, "stop": ("a",),
    "stop_token_ids": (1,), "include_stop": True, "priority": 1, "skip_special_tokens": False,
}  # fmt: skip


def asking(field: str, value: object) -> Ask:
    ask = Ask(messages=[Message("user", "x")], names={field: "their-name"})
    if field.startswith("sampling."):
        ask.sampling = dataclasses.replace(ask.sampling, **{field.removeprefix("sampling."): value})
    else:
        setattr(ask, field, value)
    return ask


def test_every_field_is_in_a_table_or_needs_none() -> None:
    fields = {field.name for field in dataclasses.fields(Ask)} - {"sampling"}
    fields |= {f"sampling.{field.name}" for field in dataclasses.fields(Sampling)}
    known = {value.field for value in checks.VALUES} | {need.field for need in checks.NEEDS}
    # What is looked at elsewhere: by templates, grammars, parsers, the queue; or is free.
    elsewhere = {
        "messages", "prompt", "format", "parallel_tool_calls", "include_stop", "skip_special_tokens", "id", "deadline",
        "caller", "trace", "names", "whole", "take", "notes", "add_generation_prompt",
    }  # fmt: skip
    assert fields == known | elsewhere
    assert {need.field for need in checks.NEEDS} == set(NEEDED)


@pytest.mark.parametrize("field", NEEDED)
def test_field_needs_its_capability(field: str) -> None:
    value, lacking = NEEDED[field]
    checks.check(asking(field, value), ALL)
    for info in (dataclasses.replace(ALL, **lacking), NOTHING):  # type: ignore[arg-type]  # fields by name
        with pytest.raises(InvalidInput, match="their-name") as caught:
            checks.check(asking(field, value), info)
        assert caught.value.parameter == "their-name"


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
def test_impossible_value_is_refused(field: str, value: object) -> None:
    with pytest.raises(InvalidInput, match="their-name") as caught:
        checks.check(asking(field, value), ALL)
    assert caught.value.parameter == "their-name"


@pytest.mark.parametrize("field", PLAIN)
@pytest.mark.parametrize("info", [ALL, NOTHING], ids=["all", "nothing"])
def test_field_of_every_engine(field: str, info: EngineInfo) -> None:
    checks.check(asking(field, PLAIN[field]), info)


def test_prompt_and_messages_exclude_each_other() -> None:
    for ask in (Ask(), Ask(prompt="x", messages=[Message("user", "x")]), Ask(messages=[])):
        with pytest.raises(InvalidInput):
            checks.check(ask, ALL)
    for field, value in (("tools", (Tool("a"),)), ("template", "x"), ("template_arguments", {"a": 1})):
        ask = asking(field, value)
        ask.messages, ask.prompt = None, "x"
        with pytest.raises(InvalidInput, match="their-name"):
            checks.check(ask, ALL)
