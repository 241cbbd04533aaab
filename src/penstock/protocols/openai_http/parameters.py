"""The parameters that chat and text completions share, and what becomes of those that we do not know.

Every parameter is in one of three places: read here (or in `chat`, `texts`), in `HARMLESS`, or in `REFUSED`. One that
is in none is taken for harmless and named in the answer's header `Penstock-Ignored`, unless it looks like a misspelt
one of ours: then it is refused, since nobody misspells what does not matter.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from penstock.core.errors import InvalidInput
from penstock.core.fields import Fields, shown
from penstock.core.language import Sampling

MOST_CHOICES: Final = 128  # OpenAI's own limit of `n`
MOST_STOPS: Final = 4  # OpenAI's own
LONGEST_STOP: Final = 1024  # characters
MOST_STOP_IDS: Final = 256
MOST_BIASES: Final = 1024
MOST_TOP_LOGPROBS: Final = 20  # OpenAI's own
MOST_TOKENS: Final = 1 << 31
LONGEST_TEMPLATE: Final = 256 << 10

# What changes no answer: bookkeeping at OpenAI's, hints that only make things faster, choices we have no part in.
HARMLESS: Final = frozenset({
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "prompt_cache_options", "prediction", "spaces_between_special_tokens", "guided_decoding_backend",
})  # fmt: skip

# What would change the answer, or promise what we do not keep; each with the values that ask for nothing.
REFUSED: Final[Mapping[str, tuple[object, ...]]] = {
    "audio": (), "modalities": (["text"],), "web_search_options": (), "verbosity": ("medium",),
    "use_beam_search": (False,), "length_penalty": (1, 1.0), "early_stopping": (False,), "bad_words": ([],),
    "truncate_prompt_tokens": (), "logits_processors": ([],), "mm_processor_kwargs": ({},),
    "media_io_kwargs": ({},), "kv_transfer_params": ({},), "vllm_xargs": ({},), "cache_salt": (),
    "guided_whitespace_pattern": (), "return_token_ids": (False,), "thinking_token_budget": (), "echo": (False,),
    "best_of": (1,), "suffix": ("",), "typical_p": (1, 1.0), "tfs_z": (1, 1.0), "top_a": (0, 0.0),
    "mirostat": (0,), "mirostat_mode": (0,), "dry_multiplier": (0, 0.0), "xtc_probability": (0, 0.0),
    "dynatemp_range": (0, 0.0), "allowed_token_ids": ([],), "return_hidden_states": (False,),
    "return_assistant_tokens_mask": (False,), "moderation": (),
}  # fmt: skip

# How an error calls what an engine lacks; the rest are called alike on both sides.
NAMES: Final[Mapping[str, str]] = {
    "format": "response_format", "reasoning": "reasoning_effort", "template": "chat_template",
    "template_arguments": "chat_template_kwargs", "continue_last": "continue_final_message",
    "include_stop": "include_stop_str_in_output", "adapter": "model",
    "sampling.no_repeat_ngram": "no_repeat_ngram_size",
    **{f"sampling.{name}": name for name in (
        "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "seed",
        "logit_bias", "min_tokens", "ignore_eos",
    )},
}  # fmt: skip

_CLOSE: Final = 0.8  # how like a known name an unknown one is taken for misspelt: `temprature`, not `request_tag`
_LONGEST_NAME: Final = 64
_MOST_UNKNOWN: Final = 64  # each is compared with every known one, on the loop
_MOST_IGNORED: Final = 32


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How an answer is sent."""

    stream: bool = False
    usage: bool = False  # one more chunk at the end
    running_usage: bool = False  # in every chunk (vLLM's `continuous_usage_stats`)


WHOLE: Final = StreamOptions()


def stream_options(fields: Fields) -> StreamOptions:
    """`stream` and `stream_options`. Raises: InvalidInput."""
    stream = fields.flag("stream")
    options = fields.inner("stream_options")
    if options is None:
        return StreamOptions(stream)
    if not stream:
        raise fields.refused("stream_options", "it only when 'stream' is true", "invalid_value")
    usage, running = options.flag("include_usage"), options.flag("continuous_usage_stats")
    options.flag("include_obfuscation")  # padding against listeners who count bytes: TLS's business
    check_rest(options, frozenset({"include_usage", "continuous_usage_stats", "include_obfuscation"}))
    return StreamOptions(stream, usage, usage and running)


def sampling(fields: Fields) -> Sampling:
    """How the next token is chosen. Raises: InvalidInput."""
    top_k = fields.integer("top_k", -1, 1 << 31)
    return Sampling(
        temperature=fields.number("temperature", 0, 2),
        top_p=fields.number("top_p", 0, 1),
        top_k=0 if top_k == -1 else top_k,
        min_p=fields.number("min_p", 0, 1),
        presence_penalty=fields.number("presence_penalty", -2, 2) or 0.0,
        frequency_penalty=fields.number("frequency_penalty", -2, 2) or 0.0,
        repetition_penalty=_repetition_penalty(fields),
        no_repeat_ngram=fields.integer("no_repeat_ngram_size", 0, 1 << 16) or 0,
        seed=fields.integer("seed", -(1 << 63), (1 << 63) - 1),
        logit_bias=_logit_bias(fields),
        min_tokens=fields.integer("min_tokens", 0, MOST_TOKENS) or 0,
        ignore_eos=fields.flag("ignore_eos"),
    )


def _repetition_penalty(fields: Fields) -> float | None:
    value = fields.number("repetition_penalty", 0, 1e6)
    if value == 0:
        raise fields.refused("repetition_penalty", "a decimal above 0", "decimal_below_min_value")
    return value


def _logit_bias(fields: Fields) -> dict[int, float]:
    given = fields.members("logit_bias") or {}
    if len(given) > MOST_BIASES:
        raise fields.refused(
            "logit_bias", f"at most {MOST_BIASES} tokens, but got {len(given)}", "object_above_max_properties"
        )
    biases: dict[int, float] = {}
    inner = Fields(given, fields.path("logit_bias"))
    for key in given:
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise fields.refused("logit_bias", f"token ids as names, but got {shown(key)}", "invalid_value")
        bias = inner.number(key, -100, 100)
        if bias is not None:
            biases[int(key)] = bias
    return biases


def stops(fields: Fields) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Stop strings and stop token ids. Raises: InvalidInput."""
    texts = tuple(text for text in fields.texts("stop", MOST_STOPS, LONGEST_STOP) if text)
    return texts, fields.token_ids("stop_token_ids", MOST_STOP_IDS)


def priority(fields: Fields) -> int:
    """0 is the default, 1 the highest."""
    return fields.integer("priority", 0, 1 << 15) or 0


def check_rest(fields: Fields, known: frozenset[str]) -> list[str]:
    """The members that nobody read and that are taken for harmless. Raises: InvalidInput for the others."""
    ignored = []
    rest = fields.rest()
    if len(rest) > _MOST_UNKNOWN:
        raise fields.refused(rest[0][:_LONGEST_NAME], f"at most {_MOST_UNKNOWN} members that nobody knows, but got "
                             f"{len(rest)}", "unknown_parameter")  # fmt: skip
    for name in rest:
        if name in HARMLESS:
            continue
        if name in REFUSED:
            value = fields.take(name)
            if any(type(value) is type(neutral) and value == neutral for neutral in REFUSED[name]):
                continue
            raise fields.unsupported(name, f"{shown(value)} is not supported here; leave it out")
        close = difflib.get_close_matches(name, known, 1, _CLOSE) if len(name) <= _LONGEST_NAME else []
        if close:
            path = fields.path(name)
            raise InvalidInput(
                f"Unrecognized request argument supplied: {shown(path)}; did you mean '{close[0]}'?",
                parameter=path[:_LONGEST_NAME], problem="unknown_parameter",
            )  # fmt: skip
        ignored.append(name[:_LONGEST_NAME])
    return ignored[:_MOST_IGNORED]


def ignored_header(ignored: list[str]) -> tuple[tuple[str, str], ...]:
    """The header that says which members had no effect."""
    return (("Penstock-Ignored", ", ".join(ignored)),) if ignored else ()
