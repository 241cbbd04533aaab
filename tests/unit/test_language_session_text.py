"""What one choice says does not depend on how its tokens came."""

from __future__ import annotations

import itertools

import pytest

from penstock.core.language import (
    Ask,
    Delta,
    Event,
    Finished,
    Message,
    Reasoning,
    Text,
    TokenLogprob,
    Tool,
    ToolCallPart,
)
from penstock.language.template import Template
from penstock.language.tokenizer import ByteTokenizer
from penstock.runtime.language.choice_text import ChoiceText
from penstock.runtime.language.reading import arguments, forms, reader

THINKS = "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking %}<think>{% endif %}</think>"
OUTPUT = 'Hm.</think>\n\nYes: <tool_call>{"name": "f", "arguments": {"a": "é"}}</tool_call>'


def events_of(output: bytes, step: int, **options: object) -> list[Event]:
    choice = ChoiceText(0, ByteTokenizer(), ends=frozenset({256}), **options)  # type: ignore[arg-type]
    tokens = [*output, 256]
    found: list[Event] = []
    for start in range(0, len(tokens), step):
        ids = tuple(tokens[start : start + step])
        last = start + step >= len(tokens)
        found += choice.feed(
            Delta(ids, tuple(TokenLogprob(token, -1.0) for token in ids), finish_reason="stop" if last else "")
        )
        if choice.ended:
            break
    assert isinstance(found[-1], Finished)
    assert sum(isinstance(event, Finished) for event in found) == 1
    return found


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_thoughts_text_and_calls_are_told_apart(step: int) -> None:
    ask = Ask(messages=[Message("user", "x")], tools=(Tool("f"),))
    known = forms(Template(THINKS), ByteTokenizer(), "")
    assert known.reasons
    events = events_of(OUTPUT.encode(), step, reader=reader(0, ask, known, ask.tools, "x<think>", ""))
    assert "".join(event.text for event in events if isinstance(event, Reasoning)) == "Hm."
    assert "".join(event.text for event in events if isinstance(event, Text)).strip() == "Yes:"
    calls = [event for event in events if isinstance(event, ToolCallPart)]
    assert "".join(call.arguments for call in calls).replace(" ", "") == '{"a":"é"}'
    assert [call.name for call in calls if call.name] == ["f"]
    assert sum(bool(call.id) for call in calls) == 1
    assert events[-1] == Finished(0, "tool_calls")
    counted = sum(event.count for event in events if isinstance(event, Text | Reasoning | ToolCallPart))
    assert len(OUTPUT.encode()) - 40 <= counted <= len(OUTPUT.encode()) + 1


@pytest.mark.parametrize(("step", "stop"), list(itertools.product([1, 2, 5, 100], ["cd", "üd", "f"])))
def test_tokens_end_where_the_text_does(step: int, stop: str) -> None:
    text = "abücdefüd"
    events = events_of(text.encode(), step, stop=(stop,), logprobs=True)
    shown = "".join(event.text for event in events if isinstance(event, Text))
    assert shown == text[: text.index(stop)]
    raw = b"".join(token.raw for event in events if isinstance(event, Text) for token in event.tokens)
    assert raw.decode(errors="ignore").startswith(shown)
    assert len(raw) - len(shown.encode()) <= 1  # a byte of the character that the stop begins with
    assert events[-1] == Finished(0, "stop", stop)


class Words:
    """A tokenizer of three words, which stops may cut in two."""

    special_ids = frozenset[int]()
    strips_first_space = False

    def piece(self, token_id: int) -> bytes:
        return (b"The", b" sea", b" is")[token_id]


@pytest.mark.parametrize(
    ("stop", "shown", "told"), [("ea", "The s", [0, 1]), (" sea", "The", [0]), ("is", "The sea ", [0, 1, 2])]
)
@pytest.mark.parametrize("step", [1, 3])
def test_a_token_that_a_stop_cuts_in_two_is_told(stop: str, shown: str, told: list[int], step: int) -> None:
    choice = ChoiceText(0, Words(), ends=frozenset(), stop=(stop,), logprobs=True)  # type: ignore[arg-type]
    events: list[Event] = []
    for start in range(0, 3, step):
        ids = (0, 1, 2)[start : start + step]
        if not choice.ended:
            events += choice.feed(Delta(ids, tuple(TokenLogprob(token, -1.0) for token in ids)))
    texts = [event for event in events if isinstance(event, Text)]
    assert "".join(event.text for event in texts) == shown
    assert [token.token_id for event in texts for token in event.tokens] == told
    assert events[-1] == Finished(0, "stop", stop)


CALL = '[{"name":"f","arguments":{"a":"Rome"}}]'


@pytest.mark.parametrize("step", [1, 4, 1000])
@pytest.mark.parametrize("length", [1, 8, 20, 30, len(CALL)])
def test_half_a_forced_call_is_no_text(length: int, step: int) -> None:
    ask = Ask(messages=[Message("user", "x")], tools=(Tool("f"),), tool_choice="required")
    choice = ChoiceText(
        0, ByteTokenizer(), ends=frozenset({256}), reader=reader(0, ask, None, ask.tools, "x", "calls")
    )  # fmt: skip
    ids, events = CALL.encode()[:length], list[Event]()
    for start in range(0, length, step):
        last = start + step >= length
        events += choice.feed(Delta(tuple(ids[start : start + step]), finish_reason="length" if last else ""))
    assert not [event for event in events if isinstance(event, Text)]
    assert events[-1] == Finished(0, "length")


@pytest.mark.parametrize(("stop", "reason"), [("Ro", "stop"), ("\n", "tool_calls")])
def test_a_call_that_a_stop_cuts_off_is_no_call_to_be_made(stop: str, reason: str) -> None:
    ask = Ask(messages=[Message("user", "x")], tools=(Tool("f"),))
    known = forms(Template("{% for m in messages %}{{ m.content }}{% endfor %}"), ByteTokenizer(), "")
    said = '<tool_call>{"name": "f", "arguments": {"a": "Rome"}}</tool_call>\n'
    events = events_of(said.encode(), 3, stop=(stop,), reader=reader(0, ask, known, ask.tools, "x", ""))
    assert events[-1] == Finished(0, reason, stop)  # type: ignore[arg-type]


def test_reasoning_is_switched_as_the_template_knows() -> None:
    known = forms(Template(THINKS), ByteTokenizer(), "")
    assert arguments(Ask(reasoning="none"), known) == {"enable_thinking": False}
    assert arguments(Ask(reasoning="high", template_arguments={"enable_thinking": 1}), known) == {"enable_thinking": 1}
    plain = forms(Template("{{ messages[0].content }}"), ByteTokenizer(), "")
    assert arguments(Ask(reasoning="none"), plain) == {}
    with pytest.raises(Exception, match=r"effort.*does not reason"):
        arguments(Ask(reasoning="high", names={"reasoning": "effort"}), plain)
