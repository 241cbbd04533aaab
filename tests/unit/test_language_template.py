"""Chat templates of the usual families render as Jinja renders them for transformers; what one lacks is made up for."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path

import jinja2
import jinja2.sandbox
import pytest
from language_templates import CHATML, DEEPSEEK_R1, FAMILIES, GEMMA2, LLAMA31, MISTRAL, PHI4_TOOLS, QWEN3, QWEN25

from penstock.core.errors import InvalidInput, LoadError, Unsupported
from penstock.core.language import Message, Tool, ToolCall
from penstock.language.card import describe, manner_of
from penstock.language.files import ModelFiles
from penstock.language.template import Template
from penstock.language.templates import Templates, open_templates
from penstock.language.tokenizer import ByteTokenizer

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": 'é <b>"q"</b>'}},
    "required": ["city"],
}
TOOL = Tool("weather", "Tells <it>", PARAMETERS)
CALL = ToolCall("call12345", "weather", '{"city": "Zürich", "days": 2, "exact": true}')

CONVERSATIONS = {
    "one": [Message("user", "Hi  <b>&'\"</b> there\n")],
    "turns": [Message("user", "Hi"), Message("assistant", "Yo"), Message("user", "why?")],
    "system": [Message("system", " Be brief. "), Message("user", "q")],
    "thought": [Message("user", "q"), Message("assistant", "<think>\nx\n</think>\n\nans"), Message("user", "q2")],
    "reasoning": [Message("user", "q"), Message("assistant", "a", reasoning="hm"), Message("user", "q2")],
    "call": [
        Message("user", "q"),
        Message("assistant", None, tool_calls=(CALL,)),
        Message("tool", "42", name="weather", tool_call_id="call12345"),
    ],
    "ends": [Message("user", "q"), Message("assistant", "a", reasoning="hm")],
}


def oracle(source: str) -> jinja2.Template:
    """The environment of transformers (utils/chat_template_utils.py)."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def tojson(
        value: object,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: object = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)  # type: ignore[arg-type]

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.fromtimestamp(86_400, datetime.UTC).strftime(
        form
    )
    # The `generation` tag is an extension of transformers: it renders what is inside.
    return environment.from_string(
        re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", lambda m: "{%- endif -%}" if m[1] else "{%- if true -%}", source)
    )


def as_openai(message: Message, as_text: bool) -> dict[str, object]:
    """A message as a user of transformers writes it."""
    written: dict[str, object] = {"role": message.role, "content": message.content}
    if message.name:
        written["name"] = message.name
    if message.reasoning:
        written["reasoning_content"] = message.reasoning
    if message.tool_calls:
        written["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments if as_text else json.loads(call.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        written["tool_call_id"] = message.tool_call_id
    return written


# What a family cannot do, and we do in other words: tested below.
ELSEWHERE = {("gemma2", "system"), *((name, "call") for name in ("chatml", "gemma2", "phi4"))}
WITHOUT_TOOLS = ("chatml", "gemma2", "phi4")
CASES = [
    (family, conversation, tools)
    for family in FAMILIES
    for conversation in CONVERSATIONS
    for tools in ((False,) if family in WITHOUT_TOOLS else (False, True))
    if (family, conversation) not in ELSEWHERE
]


@pytest.mark.parametrize(("family", "conversation", "tools"), CASES)
def test_the_families_render_as_jinja_renders_them(family: str, conversation: str, tools: bool) -> None:
    template = Template(FAMILIES[family], SPECIAL)
    messages = CONVERSATIONS[conversation]
    described = [
        {"type": "function", "function": {"name": "weather", "description": "Tells <it>", "parameters": PARAMETERS}}
    ]
    values = {"tools": described} if tools else {} if family == "phi4-tools" else {"tools": None}
    written = [as_openai(message, family == "deepseek-r1") for message in messages]
    for add in (True, False):
        try:
            expected = oracle(FAMILIES[family]).render(**SPECIAL, **values, messages=written, add_generation_prompt=add)
        except jinja2.exceptions.TemplateError as error:
            with pytest.raises(InvalidInput, match=re.escape(str(error))):
                template.render(messages, [TOOL] if tools else [], add_generation_prompt=add, now_s=86_400)
        else:
            found = template.render(messages, [TOOL] if tools else [], add_generation_prompt=add, now_s=86_400)
            assert found == expected


def test_a_template_without_tools_is_told_them_in_words() -> None:
    template = Template(CHATML)
    prompt = template.render([Message("system", "S"), *CONVERSATIONS["call"]], [TOOL])
    assert (
        prompt.startswith("<|im_start|>system\nS\n\n# Tools\n") and '"name": "weather"' in prompt and "é <b>" in prompt
    )
    assert f'<tool_call>\n{{"name": "weather", "arguments": {CALL.arguments}}}\n</tool_call>' in prompt
    assert "<|im_start|>user\n<tool_response>\n42\n</tool_response>" in prompt
    assert template.render(CONVERSATIONS["one"], [TOOL]).startswith("<|im_start|>system\n# Tools")


def test_answers_of_tools_in_words_are_one_turn_of_the_user() -> None:
    """Gemma's template refuses two turns of the user; so does Mistral's older one."""
    template = Template(GEMMA2, SPECIAL)
    prompt = template.render([
        Message("user", "q"), Message("assistant", None, tool_calls=(CALL, CALL)), Message("tool", "1"),
        Message("tool", "2"), Message("user", "and now?"),
    ])  # fmt: skip
    assert prompt.endswith(
        "<start_of_turn>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response>\nand now?"
        "<end_of_turn>\n<start_of_turn>model\n"
    )
    with pytest.raises(InvalidInput, match="must alternate"):
        template.render([Message("user", "q"), Message("user", "and now?")])


ODD = {
    "an assistant first": [Message("assistant", "a"), Message("user", "q")],
    "two users": [Message("user", "q"), Message("user", "q")],
    "two assistants": [Message("user", "q"), Message("assistant", "a"), Message("assistant", "a")],
    "an answer of no call": [Message("user", "q"), Message("tool", "1", tool_call_id="x")],
    "an answer first": [Message("tool", "1", tool_call_id="x")],
    "nothing said": [Message("user", ""), Message("assistant", ""), Message("user", "")],
    "only a system": [Message("system", "s")], "only an assistant": [Message("assistant", "a")],
    "a late system": [Message("user", "q"), Message("system", "s"), Message("user", "q")],
    "a call without its answer": [Message("user", "q"), Message("assistant", None, tool_calls=(CALL,))],
    "a call and no answer": [
        Message("user", "q"), Message("assistant", None, tool_calls=(CALL,)), Message("user", "q"),
    ],
    "arguments that are no JSON": [
        Message("user", "q"), Message("assistant", "a", tool_calls=(ToolCall("i", "f", "{"), ToolCall("j", "g", "[1]"))),
        Message("tool", "1", tool_call_id="i"), Message("tool", "2", tool_call_id="j"),
    ],
    "only thoughts": [Message("user", "q"), Message("assistant", None, reasoning="hm"), Message("user", "q")],
    "a role that nobody has": [Message("robot", "x")], "a system and an answer": [
        Message("system", "s"), Message("tool", "1", tool_call_id="x")],
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_odd_conversation_is_rendered_or_refused_in_the_templates_words(family: str, odd: str) -> None:
    template = Template(FAMILIES[family], SPECIAL)
    for tools in ((), (TOOL,)):
        for continues in {False, ODD[odd][-1].role == "assistant"}:
            try:
                assert template.render(ODD[odd], tools, continue_last=continues)
            except (InvalidInput, Unsupported) as error:
                assert "refuses the messages: " in error.message or "cannot be continued" in error.message


def test_a_template_that_refuses_system_messages_gets_them_with_the_users() -> None:
    prompt = Template(GEMMA2, SPECIAL).render([Message("system", "Be brief."), Message("user", "q")])
    assert prompt == "<s><start_of_turn>user\nBe brief.\n\nq<end_of_turn>\n<start_of_turn>model\n"


def test_ids_of_calls_are_made_as_mistral_wants_them() -> None:
    call = ToolCall("call_abcdefghijkl", "weather", "{}")
    messages = [
        Message("user", "q"),
        Message("assistant", None, tool_calls=(call,)),
        Message("tool", "1", tool_call_id=call.id),
    ]
    found = re.findall(r'id": "(\w+)"', Template(MISTRAL, SPECIAL).render(messages))
    assert len(found) == 2 and found[0] == found[1] and len(found[0]) == 9


def test_a_template_that_joins_arguments_as_text_gets_text() -> None:
    assert "```json\n" + CALL.arguments in Template(DEEPSEEK_R1, SPECIAL).render(CONVERSATIONS["call"])


def test_without_tools_a_template_that_looks_only_for_their_name_does_not_tell_of_them() -> None:
    assert Template(PHI4_TOOLS, SPECIAL).render([Message("user", "q")]) == "<|user|>q<|end|><|assistant|>"


def test_a_developer_is_the_system_where_a_template_knows_none() -> None:
    assert (
        Template(CHATML).render([Message("developer", "D"), Message("user", "q")]).startswith("<|im_start|>system\nD<")
    )


def test_the_last_message_is_continued_to_its_last_letter() -> None:
    messages = [Message("user", "q"), Message("assistant", "So ")]
    for source in (CHATML, QWEN25, QWEN3, LLAMA31, GEMMA2):
        assert Template(source, SPECIAL).render(messages, continue_last=True).endswith("So ")
    with pytest.raises(InvalidInput, match="to be continued"):
        Template(CHATML).render(messages[:1], continue_last=True)


def test_arguments_of_the_template_reach_it() -> None:
    assert (
        Template(QWEN3)
        .render(CONVERSATIONS["one"], arguments={"enable_thinking": False})
        .endswith("<think>\n\n</think>\n\n")
    )


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("{{ raise_exception('no such role') }}", "no such role"),
        ("{{ raise_exception() }}", "refuses the messages"),
        ("{{ raise_exception('x' * 9999) }}", "refuses the messages: x{500}$"),
        ("{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}", "fuel"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "cannot render"),
        ("{{ messages[0].content.__class__ }}{{ messages.x.y }}", "undefined"),
        ("{% include '/etc/passwd' %}", "cannot render"),
    ],
)
def test_what_a_template_may_not_do_is_an_error_of_the_caller(source: str, word: str) -> None:
    with pytest.raises(InvalidInput, match=word):
        Template(source).render([Message("user", "q")])


def test_what_cannot_be_compiled_or_is_too_long_is_refused_at_load() -> None:
    for source in ("{% for %}", "x" * (2 << 20)):
        with pytest.raises(LoadError):
            Template(source)
    with pytest.raises(InvalidInput, match="messages is empty"):
        Template(CHATML).render([])


def test_templates_are_found_by_name_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {"chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T{{ tools }}"}]}
        )
    )
    templates = open_templates(ModelFiles(tmp_path, "huggingface", "generate"), ByteTokenizer())
    assert templates.pick().source == "D" and templates.pick(tools=True).source.startswith("T")
    assert templates.pick(override="tool_use").source.startswith("T") and templates.pick(override="X").source == "X"
    (tmp_path / "chat_template.jinja").write_text("J")
    assert open_templates(ModelFiles(tmp_path, "huggingface", "generate"), ByteTokenizer()).pick().source == "J"
    with pytest.raises(Unsupported, match="no chat template"):
        Templates({}, ByteTokenizer()).pick()


def test_a_card_tells_what_the_template_can(tmp_path: Path) -> None:
    files = ModelFiles(tmp_path, "huggingface", "generate", "qwen3")
    assert describe(files, ByteTokenizer(), Template(QWEN3)) == (True, True, True)
    assert describe(files, ByteTokenizer(), Template(CHATML)) == (True, True, False)
    assert describe(files, ByteTokenizer(), None) == (False, False, False)
    assert manner_of(files, ByteTokenizer(), Template(MISTRAL)).tools.name == "mistral"
    assert not manner_of(files, ByteTokenizer(), Template(CHATML)).own_tools
