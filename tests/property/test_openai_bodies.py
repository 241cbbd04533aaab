"""Whatever a body holds, it is an ask or an error that says why; nothing else gets out."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.core.errors import PenstockError
from penstock.core.fields import Fields
from penstock.core.json_body import read_object
from penstock.protocols.openai_http import chat, embeddings, parameters, texts
from penstock.protocols.openai_http.failures import error_event

WORDS = sorted(
    chat.KNOWN
    | texts.KNOWN
    | {
        "role",
        "content",
        "type",
        "function",
        "name",
        "arguments",
        "tool_calls",
        "json_schema",
        "schema",
        "text",
        "mode",
    }
)
STRINGS = ("user", "assistant", "tool", "function", "json_schema", "required", "text", "allowed_tools", "", "\x00é")
LEAVES = (
    st.none() | st.booleans() | st.integers(-(1 << 63), 1 << 63) | st.floats(allow_nan=False) | st.sampled_from(STRINGS)
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4)
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "function", "system"])},
    optional={"content": VALUES, "tool_calls": VALUES, "function_call": VALUES, "tool_call_id": VALUES, "name": VALUES},
)
BODIES = st.builds(
    lambda some, messages: {**some, "messages": messages},
    st.dictionaries(st.sampled_from(WORDS) | st.text(max_size=8), VALUES, max_size=5),
    st.lists(MESSAGE, max_size=3) | VALUES,
)


def answer(body: dict[str, Any]) -> None:
    raw = msgspec.json.encode(body)
    for read in (chat.decode, _texts, embeddings.read_inputs):
        try:
            read(Fields(read_object(raw)))
        except PenstockError as error:
            assert error.message and error_event(error).startswith(b'data: {"error":{')


def _texts(fields: Fields) -> None:
    texts.decode(fields, len(texts.read_prompts(fields)))


@settings(max_examples=300, deadline=None)
@given(BODIES)
def test_a_body_is_an_ask_or_an_error(body: dict[str, Any]) -> None:
    answer(body)


@pytest.mark.parametrize("depth", [50, 300, 900])
def test_deep_arguments(depth: int) -> None:
    inner: Any = 1
    for _ in range(depth):
        inner = [inner]
    call = {"function": {"name": "f", "arguments": {"a": inner}}}
    answer({"messages": [{"role": "assistant", "tool_calls": [call]}]})


def test_many_strange_members_cost_little() -> None:
    body = {f"temperatur{at}": at for at in range(50_000)}
    began = time.process_time()
    with pytest.raises(PenstockError, match="at most 64"):
        parameters.check_rest(Fields(body), chat.KNOWN)
    assert time.process_time() - began < 0.5
