"""`POST /tokenize` and `/detokenize`, in vLLM's shapes."""

from __future__ import annotations

from typing import Final

import orjson

from penstock.core.door import Door
from penstock.core.fields import Fields
from penstock.core.language import Ask
from penstock.core.language_calls import named_model
from penstock.protocols import HttpRequest, HttpResponse
from penstock.protocols.openai_http import parameters
from penstock.protocols.openai_http.answering import read_fields
from penstock.protocols.openai_http.chat import read_template
from penstock.protocols.openai_http.conversation import messages, tools
from penstock.protocols.openai_http.failures import request_id

_MOST_IDS: Final = 1 << 20
_KNOWN: Final = frozenset({
    "model", "prompt", "messages", "add_special_tokens", "return_token_strs", "add_generation_prompt",
    "continue_final_message", "chat_template", "chat_template_kwargs", "tools", "tokens",
})  # fmt: skip


async def tokenize(http: HttpRequest, door: Door) -> HttpResponse:
    """The ids of a text, or of what a conversation becomes."""
    fields = read_fields(http)
    _, found = await named_model(fields, door)
    model = found.model
    strings = fields.flag("return_token_strs")
    prompt = fields.text("prompt")
    if prompt is not None:
        special = fields.flag("add_special_tokens", True)
        fields.take("add_generation_prompt")
        ids = await model.tokenize(prompt, special=special)
    else:
        ids = await model.prompt_ids(_conversation(fields))
    ignored = parameters.check_rest(fields, _KNOWN)
    document = {
        "count": len(ids),
        "max_model_len": model.card.info.context_tokens,
        "tokens": ids,
        "token_strs": await model.pieces(ids) if strings else None,
    }
    return HttpResponse(200, orjson.dumps(document), headers=request_id(http) + parameters.ignored_header(ignored))


def _conversation(fields: Fields) -> Ask:
    if fields.take("messages") is None:
        raise fields.missing("prompt")
    listed, choice, _ = tools(fields)
    ask = Ask(messages(fields), tools=listed, tool_choice=choice, names=parameters.NAMES)
    read_template(fields, ask)
    return ask


async def detokenize(http: HttpRequest, door: Door) -> HttpResponse:
    """The text of ids."""
    fields = read_fields(http)
    _, found = await named_model(fields, door)
    if fields.take("tokens") is None:
        raise fields.missing("tokens")
    ids = fields.token_ids("tokens", _MOST_IDS)
    vocabulary = found.model.card.info.vocabulary
    if ids and vocabulary and max(ids) >= vocabulary:
        raise fields.refused("tokens", f"token ids below {vocabulary}, but got {max(ids)}", "invalid_value")
    ignored = parameters.check_rest(fields, _KNOWN)
    document = {"prompt": await found.model.detokenize(ids)}
    return HttpResponse(200, orjson.dumps(document), headers=request_id(http) + parameters.ignored_header(ignored))
