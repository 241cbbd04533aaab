"""`POST /v1/completions`: the older form, with prompts instead of conversations."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from penstock.core.door import Door
from penstock.core.errors import InvalidInput
from penstock.core.fields import Fields, token_ids
from penstock.core.language import Ask, LanguageModel
from penstock.core.language_calls import named_model
from penstock.language.merging import merged
from penstock.protocols import HttpRequest, HttpResponse, HttpStream
from penstock.protocols.openai_http import parameters
from penstock.protocols.openai_http.answering import asked, gathered, head_of, read_fields, streamed, told, write_early
from penstock.protocols.openai_http.formats import output_format
from penstock.protocols.openai_http.texts_wire import Shape, TextAnswer, TextStream

Prompt = str | tuple[int, ...]

MOST_PROMPTS: Final = 2048  # OpenAI's limit of lists elsewhere; of prompts it names none
_MOST_CHOICES: Final = 4096  # of all prompts together
_MOST_IDS: Final = 1 << 20

KNOWN: Final = frozenset({
    "model", "prompt", "stream", "stream_options", "max_tokens", "max_completion_tokens", "n", "best_of", "echo",
    "suffix", "temperature", "top_p", "top_k", "min_p", "stop", "stop_token_ids", "seed", "logprobs", "prompt_logprobs",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "no_repeat_ngram_size", "logit_bias", "min_tokens",
    "ignore_eos", "response_format", "structured_outputs", "guided_json", "guided_json_object", "guided_regex",
    "guided_choice", "guided_grammar", "add_special_tokens", "skip_special_tokens", "include_stop_str_in_output",
    "priority", "return_tokens_as_token_ids", "request_id",
})  # fmt: skip


async def complete(http: HttpRequest, door: Door) -> HttpResponse | HttpStream:
    """What follows the prompts."""
    fields = read_fields(http)
    name, found = await named_model(fields, door)
    prompts = read_prompts(fields)
    ask, shape, ignored = decode(fields, len(prompts))
    ask.adapter = found.adapter
    ask.whole = not shape.stream.stream
    head = head_of("cmpl", name, found.model)
    told(ask, http, head)
    if not fields.flag("add_special_tokens", True):
        prompts = [await _bare(prompt, found.model) for prompt in prompts]
    asks = [replace(ask, prompt=prompt, id=_id(head.id, at, len(prompts))) for at, prompt in enumerate(prompts)]
    events = merged(asks, lambda one: asked(found.model, one))
    headers = parameters.ignored_header(ignored)
    if shape.stream.stream:
        chunks = TextStream(head, shape)
        stream = streamed(events, chunks, http, headers)
        return write_early(asks[0], stream, lambda event: chunks.encode((0, event))) if len(asks) == 1 else stream
    return await gathered(events, TextAnswer(head, shape), http, headers)


def _id(identity: str, at: int, count: int) -> str:
    return identity if count == 1 else f"{identity}-{at}"


async def _bare(prompt: Prompt, model: LanguageModel) -> Prompt:
    """The prompt without the model's own special tokens around it."""
    return tuple(await model.tokenize(prompt, special=False)) if isinstance(prompt, str) else prompt


def read_prompts(fields: Fields) -> list[Prompt]:
    """A text, a list of texts, a list of token ids, or a list of such lists. Raises: InvalidInput."""
    value = fields.take("prompt")
    if value is None:
        raise fields.missing("prompt")
    if isinstance(value, str):
        return [value]
    values = fields.array("prompt", _MOST_IDS, least=1) or []
    if type(values[0]) is int:
        return [token_ids(values, "prompt")]
    if len(values) > MOST_PROMPTS:
        raise fields.refused("prompt", f"at most {MOST_PROMPTS} prompts, but got {len(values)}",
                             "array_above_max_length")  # fmt: skip
    prompts: list[Prompt] = []
    for at, one in enumerate(values):
        if isinstance(one, str):
            prompts.append(one)
        elif isinstance(one, list) and one:
            prompts.append(token_ids(one, f"prompt[{at}]"))
        else:
            raise fields.mistyped(f"prompt[{at}]", one, "a string or an array of token ids")
    return prompts


def decode(fields: Fields, prompts: int) -> tuple[Ask, Shape, list[str]]:
    """What is asked for each prompt (without it), how the answer looks, and the members without an effect.

    Raises: InvalidInput.
    """
    stop, stop_ids = parameters.stops(fields)
    form, form_name = output_format(fields)
    n = fields.integer("n", 1, parameters.MOST_CHOICES) or 1
    best_of = fields.integer("best_of", 1, parameters.MOST_CHOICES) or n
    stream = parameters.stream_options(fields)
    if best_of < n:
        raise fields.refused("best_of", f"a value >= 'n', which is {n}, but got {best_of}", "invalid_value")
    if best_of > n and stream.stream:
        raise fields.refused(
            "best_of", "it only when 'stream' is false: what is best is known at the end", "invalid_value"
        )
    if best_of * prompts > _MOST_CHOICES:
        raise fields.refused("n", f"at most {_MOST_CHOICES} choices of all prompts, but got {best_of * prompts}",
                             "integer_above_max_value")  # fmt: skip
    if fields.text("suffix"):
        raise fields.unsupported("suffix", "text is not filled in between by this model")
    echo = fields.flag("echo")
    logprobs = fields.integer("logprobs", 0, parameters.MOST_TOP_LOGPROBS)
    prompt_logprobs = fields.integer("prompt_logprobs", 0, parameters.MOST_TOP_LOGPROBS)
    limit, nothing = _limit(fields, echo)
    ask = Ask(
        n=best_of,
        max_tokens=limit,
        sampling=parameters.sampling(fields),
        stop=stop,
        stop_token_ids=stop_ids,
        include_stop=fields.flag("include_stop_str_in_output"),
        format=form,
        logprobs=0 if logprobs is None and best_of > n else logprobs,
        prompt_logprobs=logprobs if echo and logprobs is not None and prompt_logprobs is None else prompt_logprobs,
        echo=echo,
        skip_special_tokens=fields.flag("skip_special_tokens", True),
        priority=parameters.priority(fields),
        names={**parameters.NAMES, "format": form_name},
    )
    if logprobs is None and best_of > n:
        ask.names = {**ask.names, "logprobs": "best_of"}
    if prompt_logprobs is None and ask.prompt_logprobs is not None:
        ask.names = {**ask.names, "prompt_logprobs": "echo"}
    fields.text("request_id", 512)
    fields.flag("add_special_tokens", True)
    shape = Shape(
        prompts, n, best_of, logprobs is not None, prompt_logprobs is not None,
        fields.flag("return_tokens_as_token_ids"), echo, nothing, stream,
    )  # fmt: skip
    if stream.stream and prompt_logprobs is not None:
        raise fields.unsupported("prompt_logprobs", "it is not part of a stream")
    return ask, shape, parameters.check_rest(fields, KNOWN)


def _limit(fields: Fields, echo: bool) -> tuple[int | None, bool]:
    """The most tokens, and whether none are wanted: scoring a prompt asks for its echo and nothing else.

    Without a limit OpenAI generates 16 tokens here; so does vLLM.
    """
    limit = fields.integer("max_tokens", 0, parameters.MOST_TOKENS)
    other = fields.integer("max_completion_tokens", 1, parameters.MOST_TOKENS)
    if limit == 0:
        if not echo:
            raise InvalidInput(
                "Invalid 'max_tokens': integer below minimum value. Expected a value >= 1, but got 0 instead.",
                parameter="max_tokens", problem="integer_below_min_value",
            )  # fmt: skip
        return 1, True
    return limit or other or 16, False
