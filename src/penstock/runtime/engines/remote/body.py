"""An `Ask` as the body of a request to OpenAI's API, or refused by name where that API has no word for it.

Source: https://platform.openai.com/docs/api-reference/chat/create and /completions/create; the extensions are those of
https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from penstock.core.errors import InvalidInput
from penstock.core.language import Ask, Format, Message
from penstock.runtime.engines.remote.file import Upstream


@dataclass(frozen=True, slots=True)
class _Refusal:
    field: str
    asked: Callable[[Ask], bool]


_NEVER = (
    _Refusal("adapter", lambda ask: bool(ask.adapter)),
    _Refusal("template", lambda ask: bool(ask.template)),
    _Refusal("prompt_logprobs", lambda ask: ask.prompt_logprobs is not None),
    _Refusal("sampling.no_repeat_ngram", lambda ask: ask.sampling.no_repeat_ngram > 0),
    _Refusal("format", lambda ask: ask.format.kind == "lark"),
    _Refusal("format", lambda ask: ask.messages is None and ask.format.kind in ("json_object", "json_schema")),
)
_EXTENSIONS = (
    _Refusal("sampling.top_k", lambda ask: bool(ask.sampling.top_k)),
    _Refusal("sampling.min_p", lambda ask: bool(ask.sampling.min_p)),
    _Refusal("sampling.repetition_penalty", lambda ask: ask.sampling.repetition_penalty not in (None, 1.0)),
    _Refusal("sampling.min_tokens", lambda ask: ask.sampling.min_tokens > 0),
    _Refusal("sampling.ignore_eos", lambda ask: ask.sampling.ignore_eos),
    _Refusal("stop_token_ids", lambda ask: bool(ask.stop_token_ids)),
    _Refusal("include_stop", lambda ask: ask.include_stop),
    _Refusal("skip_special_tokens", lambda ask: not ask.skip_special_tokens),
    _Refusal("continue_last", lambda ask: ask.continue_last),
    _Refusal("add_generation_prompt", lambda ask: not ask.add_generation_prompt and not ask.continue_last),
    _Refusal("template_arguments", lambda ask: bool(ask.template_arguments)),
    _Refusal("format", lambda ask: ask.format.kind in ("regex", "choice", "ebnf")),
)


def check(ask: Ask, *, extensions: bool) -> None:
    """Nothing, when the API has a word for all of it. Raises: InvalidInput, which names the field."""
    for refusal in _NEVER if extensions else (*_NEVER, *_EXTENSIONS):
        if refusal.asked(ask):
            name = ask.names.get(refusal.field, refusal.field.removeprefix("sampling."))
            hint = "" if refusal in _NEVER else "; if its servers take it, set extensions = true in the model's file"
            raise InvalidInput(f"{name}: this model is an upstream, whose API has no such thing{hint}", parameter=name)


def body(ask: Ask, upstream: Upstream) -> tuple[str, dict[str, object]]:
    """The path below the upstream's URL, and the body for it: always a stream, with usage."""
    sampling = ask.sampling
    fields: dict[str, object] = {
        "model": upstream.model, "stream": True, "stream_options": {"include_usage": True},
        "n": ask.n if ask.n > 1 else None, upstream.max_tokens_field: ask.max_tokens,
        "temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty or None, "frequency_penalty": sampling.frequency_penalty or None,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias.items()} or None,
        "stop": list(ask.stop) or None,
        # Extensions; unset unless `check` let them pass.
        "top_k": sampling.top_k, "min_p": sampling.min_p, "repetition_penalty": sampling.repetition_penalty,
        "min_tokens": sampling.min_tokens or None, "ignore_eos": sampling.ignore_eos or None,
        "stop_token_ids": list(ask.stop_token_ids) or None, "include_stop_str_in_output": ask.include_stop or None,
        "skip_special_tokens": None if ask.skip_special_tokens else False,
        "structured_outputs": _structured(ask.format),
    }  # fmt: skip
    if ask.messages is None:
        fields.update({"prompt": ask.prompt, "echo": ask.echo or None, "logprobs": ask.logprobs})
        fields["max_tokens"] = fields.pop(upstream.max_tokens_field)  # the only name it has there
        return "/completions", _set(fields)
    fields.update({
        "messages": [_message(message) for message in ask.messages], "response_format": _response_format(ask.format),
        "logprobs": True if ask.logprobs is not None else None, "top_logprobs": ask.logprobs or None,
        "reasoning_effort": ask.reasoning or None, "chat_template_kwargs": dict(ask.template_arguments) or None,
        "continue_final_message": ask.continue_last or None,
        "add_generation_prompt": None if ask.add_generation_prompt and not ask.continue_last else False,
    })  # fmt: skip
    if ask.tools:
        fields["tools"] = [
            {"type": "function", "function": _set({
                "name": tool.name, "description": tool.description or None, "parameters": dict(tool.parameters),
                "strict": tool.strict or None,
            })} for tool in ask.tools
        ]  # fmt: skip
        named = ask.tool_choice.startswith("=")
        fields["tool_choice"] = (
            {"type": "function", "function": {"name": ask.tool_choice[1:]}} if named else ask.tool_choice
        )
        fields["parallel_tool_calls"] = None if ask.parallel_tool_calls else False
    return "/chat/completions", _set(fields)


def _set(fields: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}


def _message(message: Message) -> dict[str, object]:
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in message.tool_calls
    ]
    fields = _set({
        "role": message.role, "name": message.name or None, "tool_calls": calls or None,
        "tool_call_id": message.tool_call_id or None, "reasoning_content": message.reasoning or None,
    })  # fmt: skip
    return fields | {"content": message.content}


def _response_format(format: Format) -> dict[str, object] | None:
    if format.kind == "json_object":
        return {"type": "json_object"}
    if format.kind != "json_schema":
        return None
    schema = format.schema if isinstance(format.schema, bool) else dict(format.schema)
    return {
        "type": "json_schema",
        "json_schema": {"name": format.name or "answer", "schema": schema, "strict": True},
    }


def _structured(format: Format) -> dict[str, object] | None:
    match format.kind:
        case "regex":
            return {"regex": format.text}
        case "choice":
            return {"choice": list(format.choices)}
        case "ebnf":
            return {"grammar": format.text}
        case _:
            return None
