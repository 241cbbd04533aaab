"""What llama.cpp's server is sent for a generation, and what it answers: the `/completion` of its own API.

Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from penstock.core.errors import InvalidInput, Overloaded, PenstockError, ServableError, TooLarge
from penstock.core.language import Generation, TokenLogprob

LEAST_LOGPROB = -9999.0  # stands for minus infinity, which JSON cannot write
# In the order in which vLLM and transformers apply them; llama.cpp's own has the temperature last.
_SAMPLERS = ("penalties", "temperature", "min_p", "top_k", "top_p")


class Progress(msgspec.Struct):
    """How much of the prompt has been computed, and how much of it was found in the cache."""

    cache: int = 0


class Likely(msgspec.Struct):
    """A token and its log-probability; None is minus infinity."""

    id: int
    logprob: float | None = None
    top_logprobs: list[Likely] = []


class Fault(msgspec.Struct):
    """An error, as its server says it."""

    message: str = ""
    type: str = ""
    code: int = 500


class Part(msgspec.Struct):
    """One message of a stream."""

    content: str = ""
    tokens: list[int] = []
    tokens_predicted: int = 0
    stop: bool = False
    stop_type: str = ""
    prompt_progress: Progress | None = None
    completion_probabilities: list[Likely] = []
    error: Fault | None = None


class _Said(Fault):
    """A fault, bare or wrapped."""

    error: Fault | None = None


decode_part = msgspec.json.Decoder(Part).decode
_decode_said = msgspec.json.Decoder(_Said).decode


def decode_fault(text: bytes) -> Fault:
    """The fault in a message that is nothing else. Raises: ValueError."""
    said = _decode_said(text)
    return said.error or said


def request(generation: Generation, adapters: Mapping[str, int], *, prefix_cache: bool) -> dict[str, object]:
    """The body for a generation. Unset sampling is plain sampling: temperature 1, nothing cut off."""
    sampling = generation.sampling
    whole = len(generation.token_ids) + generation.max_tokens
    body: dict[str, object] = {
        "prompt": generation.token_ids, "n_predict": generation.max_tokens, "stream": True, "return_tokens": True,
        "return_progress": True, "cache_prompt": prefix_cache, "samplers": _SAMPLERS,
        "temperature": _or(sampling.temperature, 1.0), "top_p": _or(sampling.top_p, 1.0),
        "top_k": _or(sampling.top_k, 0), "min_p": _or(sampling.min_p, 0.0),
        "presence_penalty": sampling.presence_penalty, "frequency_penalty": sampling.frequency_penalty,
        "repeat_penalty": _or(sampling.repetition_penalty, 1.0), "repeat_last_n": whole,
        "ignore_eos": sampling.ignore_eos,
    }  # fmt: skip
    if sampling.seed is not None:
        body["seed"] = sampling.seed % 0xFFFFFFFF  # the largest means a random one
    if sampling.logit_bias:
        body["logit_bias"] = [[token, bias] for token, bias in sampling.logit_bias.items()]
    if generation.logprobs is not None:
        body["n_probs"] = max(generation.logprobs, 1)
    if generation.grammar is not None:
        body["grammar"] = generation.grammar.text
    if adapters:
        body["lora"] = [
            {"id": at, "scale": 1.0 if name == generation.adapter else 0.0} for name, at in adapters.items()
        ]
    return body


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def logprob(likely: Likely, count: int) -> TokenLogprob:
    """A token's log-probability, with the `count` likeliest."""
    top = tuple((other.id, _number(other.logprob)) for other in likely.top_logprobs[:count])
    return TokenLogprob(likely.id, _number(likely.logprob), top)


def _number(value: float | None) -> float:
    return LEAST_LOGPROB if value is None else value


def error_of(fault: Fault) -> PenstockError:
    """The error that a fault is to a caller."""
    told = f"llama.cpp says: {fault.message}"
    if fault.type == "exceed_context_size_error":
        return TooLarge(told)
    if 400 <= fault.code < 500:
        return InvalidInput(told)
    return Overloaded(told) if fault.code == 503 else ServableError(told)


def read_fault(body: bytes, status: int) -> PenstockError:
    """The error that a refusal is to a caller."""
    try:
        fault = decode_part(body).error
    except msgspec.DecodeError:
        fault = None
    return error_of(fault or Fault(f"status {status}", code=status))
