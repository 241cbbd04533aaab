"""`POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Final

from penstock.core.door import Door
from penstock.core.errors import InvalidInput
from penstock.core.fields import Fields
from penstock.core.language import Ask
from penstock.core.language_calls import named_model
from penstock.protocols import HttpRequest, HttpResponse, HttpStream
from penstock.protocols.openai_http import parameters
from penstock.protocols.openai_http.answering import asked, gathered, head_of, read_fields, streamed, told, write_early
from penstock.protocols.openai_http.chat_wire import ChatAnswer, ChatStream, Shape
from penstock.protocols.openai_http.conversation import check_continued, messages, tools
from penstock.protocols.openai_http.formats import output_format

EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh")
OUR_EFFORTS: Final = {"minimal": "low", "xhigh": "high"}  # the nearest of those that templates know

# For finding misspelt names: what `decode` reads.
KNOWN: Final = frozenset({
    "model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n", "temperature", "top_p",
    "top_k", "min_p", "stop", "stop_token_ids", "seed", "logprobs", "top_logprobs", "prompt_logprobs",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "no_repeat_ngram_size", "logit_bias", "min_tokens",
    "ignore_eos", "response_format", "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call",
    "structured_outputs", "guided_json", "guided_json_object", "guided_regex", "guided_choice", "guided_grammar",
    "chat_template", "chat_template_kwargs", "documents", "add_generation_prompt", "continue_final_message",
    "add_special_tokens", "skip_special_tokens", "include_stop_str_in_output", "priority", "reasoning_effort",
    "include_reasoning", "return_tokens_as_token_ids", "request_id",
})  # fmt: skip


async def complete(http: HttpRequest, door: Door) -> HttpResponse | HttpStream:
    """An answer to a conversation."""
    fields = read_fields(http)
    name, found = await named_model(fields, door)
    ask, shape, ignored = decode(fields)
    ask.adapter = found.adapter
    head = head_of("chatcmpl", name, found.model)
    ask.whole = not shape.stream.stream
    events = asked(found.model, told(ask, http, head))
    headers = parameters.ignored_header(ignored)
    if shape.stream.stream:
        chunks = ChatStream(head, shape)
        return write_early(ask, streamed(events, chunks, http, headers), chunks.encode)
    return await gathered(events, ChatAnswer(head, shape), http, headers)


def decode(fields: Fields) -> tuple[Ask, Shape, list[str]]:
    """What is asked, how the answer looks, and the members without an effect. Raises: InvalidInput."""
    fields.take("model")
    listed, choice, functions = tools(fields)
    stop, stop_ids = parameters.stops(fields)
    form, form_name = output_format(fields)
    ask = Ask(
        messages(fields),
        n=fields.integer("n", 1, parameters.MOST_CHOICES) or 1,
        sampling=parameters.sampling(fields),
        stop=stop,
        stop_token_ids=stop_ids,
        include_stop=fields.flag("include_stop_str_in_output"),
        format=form,
        tools=listed,
        tool_choice=choice,
        parallel_tool_calls=fields.flag("parallel_tool_calls", True),
        prompt_logprobs=fields.integer("prompt_logprobs", 0, parameters.MOST_TOP_LOGPROBS),
        skip_special_tokens=fields.flag("skip_special_tokens", True),
        priority=parameters.priority(fields),
    )
    limit = fields.integer("max_completion_tokens", 1, parameters.MOST_TOKENS)
    older = fields.integer("max_tokens", 1, parameters.MOST_TOKENS)
    ask.max_tokens = limit if limit is not None else older
    limit_name = "max_tokens" if limit is None else "max_completion_tokens"
    ask.names = {**parameters.NAMES, "max_tokens": limit_name, "format": form_name}
    _logprobs(fields, ask)
    read_template(fields, ask)
    effort = fields.one_of("reasoning_effort", EFFORTS) or ""
    ask.reasoning = OUR_EFFORTS.get(effort, effort)
    fields.text("request_id", 512)  # `x-request-id` names a request here
    shape = Shape(
        ask.n,
        ask.logprobs is not None,
        fields.flag("return_tokens_as_token_ids"),
        functions,
        fields.flag("include_reasoning", True),
        parameters.stream_options(fields),
    )
    if shape.stream.stream and ask.prompt_logprobs is not None:
        raise fields.unsupported("prompt_logprobs", "it is not part of a stream")
    return ask, shape, parameters.check_rest(fields, KNOWN)


def _logprobs(fields: Fields, ask: Ask) -> None:
    wanted = fields.flag("logprobs")
    top = fields.integer("top_logprobs", 0, parameters.MOST_TOP_LOGPROBS)
    if top and not wanted:
        raise fields.refused("top_logprobs", "it only when 'logprobs' is true", "invalid_value")
    if wanted:
        ask.logprobs = top or 0
        ask.names = {**ask.names, "logprobs": "top_logprobs" if top else "logprobs"}


def read_template(fields: Fields, ask: Ask) -> None:
    """How the conversation becomes a prompt. Raises: InvalidInput."""
    ask.template = fields.text("chat_template", parameters.LONGEST_TEMPLATE) or ""
    arguments = dict(fields.members("chat_template_kwargs") or {})
    documents = fields.array("documents", 1024)
    if documents is not None:
        arguments["documents"] = documents
    ask.continue_last = fields.flag("continue_final_message")
    begins = fields.take("add_generation_prompt")
    if begins is not None and not isinstance(begins, bool):
        raise fields.mistyped("add_generation_prompt", begins, "a boolean")
    if ask.continue_last:
        if begins:
            raise fields.refused("continue_final_message", "it without 'add_generation_prompt'", "invalid_value")
        assert ask.messages is not None
        check_continued(ask.messages)
    ask.add_generation_prompt = begins is not False and not ask.continue_last
    if fields.flag("add_special_tokens"):
        raise InvalidInput(
            "Unsupported parameter: 'add_special_tokens': a chat template writes its special tokens itself",
            parameter="add_special_tokens", problem="unsupported_parameter",
        )  # fmt: skip
    ask.template_arguments = arguments
