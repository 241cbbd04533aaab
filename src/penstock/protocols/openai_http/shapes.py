"""Parts of answers that several routes share: heads, usage, log-probabilities."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from penstock.core.language import Card, TextToken, Usage

DONE: Final = b"data: [DONE]\n\n"

# JSON has no infinity; vLLM's own floor for tokens that cannot come.
_LEAST_LOGPROB: Final = -9999.0


@dataclass(frozen=True, slots=True)
class Head:
    """What every object of one answer begins with. `created` is in seconds since the epoch."""

    id: str
    created: int
    model: str
    fingerprint: str

    def rendered(self, kind: str) -> bytes:
        """The members, as JSON without its braces."""
        members = {
            "id": self.id, "object": kind, "created": self.created, "model": self.model,
            "system_fingerprint": self.fingerprint,
        }  # fmt: skip
        return orjson.dumps(members)[1:-1]


def fingerprint(card: Card) -> str:
    """Equal as long as the same version runs on the same engine in the same precision, on whatever replica."""
    info = card.info
    parts = "\0".join((card.name, card.version, info.engine, info.engine_version, info.precision))
    return f"fp_{hashlib.sha256(parts.encode()).hexdigest()[:12]}"


def usage_object(usage: Usage) -> dict[str, object]:
    """Tokens of a request, as OpenAI counts them. What was cached is left out where nobody knows it."""
    cached = {} if usage.cached_tokens < 0 else {"prompt_tokens_details": {"cached_tokens": usage.cached_tokens}}
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        **cached,
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def running_usage(prompt_tokens: int, completion_tokens: int) -> bytes:
    """Tokens so far, as JSON."""
    return b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}' % (
        prompt_tokens, completion_tokens, prompt_tokens + completion_tokens,
    )  # fmt: skip


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return logprob if math.isfinite(logprob) and logprob > _LEAST_LOGPROB else _LEAST_LOGPROB


def chat_logprobs(tokens: Sequence[TextToken], as_ids: bool = False) -> list[dict[str, object]]:
    """`logprobs.content` of chat completions. `as_ids`: vLLM's `return_tokens_as_token_ids`."""

    def one(token_id: int, text: str, raw: bytes, logprob: float) -> dict[str, object]:
        token = f"token_id:{token_id}" if as_ids else text
        return {"token": token, "logprob": finite(logprob), "bytes": list(raw)}

    return [
        {
            **one(token.token_id, token.text, token.raw, token.logprob),
            "top_logprobs": [one(*likely) for likely in token.top],
        }
        for token in tokens
    ]


def prompt_logprobs(tokens: Sequence[TextToken]) -> list[dict[str, object] | None]:
    """vLLM's `prompt_logprobs`: for each token of the prompt its likeliest by id, None for the first, which nothing
    precedes."""
    found: list[dict[str, object] | None] = []
    for at, token in enumerate(tokens):
        if at == 0 or math.isnan(token.logprob):
            found.append(None)
            continue
        entry: dict[str, object] = {}
        for rank, (token_id, text, _, logprob) in enumerate(token.top, 1):
            entry[str(token_id)] = {"logprob": finite(logprob), "rank": rank, "decoded_token": text}
        entry.setdefault(
            str(token.token_id), {"logprob": finite(token.logprob), "rank": None, "decoded_token": token.text}
        )
        found.append(entry)
    return found


class OldLogprobs:
    """`logprobs` of text completions: four lists, of all tokens or of those since the last piece."""

    def __init__(self, as_ids: bool = False) -> None:
        self._as_ids = as_ids
        self._offset = 0  # characters of the text so far
        self.tokens: list[str] = []
        self.logprobs: list[float | None] = []
        self.top: list[dict[str, float] | None] = []
        self.offsets: list[int] = []

    def add(self, text: str, tokens: Sequence[TextToken], prompt: bool = False) -> None:
        """`text` is what the tokens made visible: less or more than theirs, where a character is cut in two."""
        at, end = self._offset, self._offset + len(text)
        for token in tokens:
            first = prompt and not self.tokens
            self.tokens.append(self._name(token.token_id, token.text, token.raw))
            self.logprobs.append(None if first or math.isnan(token.logprob) else finite(token.logprob))
            self.top.append(None if first else {self._name(*one[:3]): finite(one[3]) for one in token.top} or None)
            self.offsets.append(min(at, end))
            at += len(token.text)
        self._offset = end

    def take(self) -> dict[str, object]:
        """The lists, which are empty afterwards."""
        found = {
            "tokens": self.tokens, "token_logprobs": self.logprobs, "top_logprobs": self.top,
            "text_offset": self.offsets,
        }  # fmt: skip
        self.tokens, self.logprobs, self.top, self.offsets = [], [], [], []
        return found

    def _name(self, token_id: int, text: str, raw: bytes) -> str:
        """Half a character as OpenAI writes it: `bytes:\\xe2\\x80`."""
        if self._as_ids:
            return f"token_id:{token_id}"
        try:
            return raw.decode() if raw else text
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
