"""The next token of one sequence: the one place where everything that a Sampling asks for happens.

`generate` of transformers draws with the process's one random generator and knows no grammars, so the choice is made in
a logits processor: what it gives back leaves one token only, which `generate` then takes. Order as in vLLM: grammar,
bias, least length, penalties, temperature, min_p, top_k, top_p. Log-probabilities are of the model's own distribution.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from penstock.core.errors import DeadlineExceeded, InvalidInput
from penstock.core.language import Delta, Generation, TokenLogprob
from penstock.language.grammars.masker import Masker

Finish = Literal["", "stop", "length"]


class Chooser:
    """One sequence's. Called by `generate` with the ids so far, (1, n) int64, and logits, (1, vocabulary).

    `emit` gets a Delta for each token; `done` is set with the last one, and by `stop` from another thread.
    """

    def __init__(
        self, generation: Generation, defaults: Mapping[str, float], ends: tuple[int, ...], masker: Masker | None,
        stop: threading.Event, emit: Callable[[Delta], None], device: str,
    ) -> None:  # fmt: skip
        import torch
        import transformers

        self._generation, self._ends, self._masker = generation, ends, masker
        self._stop, self._emit = stop, emit
        self._count = 0
        self._first: dict[str, Any] = {}
        self.done = False
        asked = generation.sampling
        temperature = _first(asked.temperature, defaults.get("temperature"), 1.0)
        self._greedy = temperature == 0
        self._random = torch.Generator(device)
        self._random.manual_seed(secrets.randbits(63) if asked.seed is None else asked.seed)
        repetition = _first(asked.repetition_penalty, defaults.get("repetition_penalty"), 1.0)
        self._shaping: list[Any] = []
        if repetition != 1.0:
            self._shaping.append(transformers.RepetitionPenaltyLogitsProcessor(float(repetition)))
        if asked.no_repeat_ngram:
            self._shaping.append(transformers.NoRepeatNGramLogitsProcessor(asked.no_repeat_ngram))
        self._cutting: list[Any] = []
        if not self._greedy:
            self._cutting = _cuts(
                float(temperature), _first(asked.min_p, defaults.get("min_p"), 0.0),
                int(_first(asked.top_k, defaults.get("top_k"), 0)), _first(asked.top_p, defaults.get("top_p"), 1.0),
            )  # fmt: skip
        bias = asked.logit_bias
        self._biased = torch.tensor(list(bias), dtype=torch.long, device=device)
        self._bias = torch.tensor(list(bias.values()), dtype=torch.float32, device=device)
        self._penalised = bool(asked.presence_penalty or asked.frequency_penalty)
        self._counts: Any = None
        self._not_yet = torch.tensor([*ends, *generation.stop_token_ids], dtype=torch.long, device=device)

    def first(self, **values: Any) -> None:
        """What the first Delta says besides its token."""
        self._first = values

    def __call__(self, input_ids: Any, logits: Any) -> Any:
        """Logits that leave the chosen token only. Raises: DeadlineExceeded, InvalidInput."""
        import torch

        if self._stop.is_set():
            self.done = True
            return logits
        if time.monotonic() > self._generation.deadline:
            raise DeadlineExceeded("the deadline passed while the answer was generated")
        raw = logits.float()
        token = self._choose(input_ids, raw.clone())
        self._count += 1
        if self._counts is not None:
            self._counts[token] += 1
        reason = self._advance(token)
        self.done = bool(reason)
        logprobs = () if self._generation.logprobs is None else (likely(raw[0], token, self._generation.logprobs),)
        self._emit(Delta((token,), logprobs, finish_reason=reason, **self._first))
        self._first = {}
        only = torch.full_like(logits, -torch.inf)
        only[0, token] = 0
        return only

    def stopped(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        """A criterion for `generate`: (1,) bool."""
        import torch

        return torch.full((1,), self.done or self._stop.is_set(), dtype=torch.bool, device=input_ids.device)

    def _choose(self, input_ids: Any, scores: Any) -> int:
        import torch

        if self._masker is not None:
            scores = _masked(scores, self._masker)
        if len(self._bias):
            scores[0, self._biased] += self._bias
        asked = self._generation.sampling
        if self._count < asked.min_tokens and len(self._not_yet):
            later = scores.clone()
            later[0, self._not_yet] = -torch.inf
            # A grammar that can only end now ends: there is nothing else that it allows.
            scores = later if torch.isfinite(later).any() else scores
        for shape in self._shaping:
            scores = shape(input_ids, scores)
        if self._penalised:
            if self._counts is None:
                self._counts = torch.zeros_like(scores[0])
            scores[0] -= asked.frequency_penalty * self._counts + asked.presence_penalty * (self._counts > 0)
        if self._greedy:
            return int(scores[0].argmax())
        for cut in self._cutting:
            scores = cut(input_ids, scores)
        return int(torch.multinomial(torch.softmax(scores[0], -1), 1, generator=self._random))

    def _advance(self, token: int) -> Finish:
        generation = self._generation
        over = token in self._ends and (not generation.sampling.ignore_eos or self._masker is not None)
        if over or token in generation.stop_token_ids:
            return "stop"
        if self._masker is not None and not self._masker.advance(token):
            raise InvalidInput("the grammar allows no token here")
        return "length" if self._count >= generation.max_tokens else ""


def likely(logits: Any, token: int, count: int) -> TokenLogprob:
    """How likely a token was under logits of (vocabulary,), and the `count` likeliest."""
    import torch

    values = torch.log_softmax(logits, -1)
    top: tuple[tuple[int, float], ...] = ()
    if count:
        best = values.topk(min(count, len(values)))
        top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return TokenLogprob(token, float(values[token]), top)


def _masked(scores: Any, masker: Masker) -> Any:
    import numpy as np
    import torch

    bits = np.unpackbits(masker.mask().view(np.uint8), bitorder="little")
    allowed = np.zeros(scores.shape[-1], bool)
    allowed[: min(len(bits), len(allowed))] = bits[: len(allowed)]
    if not allowed.any():
        raise InvalidInput("the grammar allows no token here")
    return scores.masked_fill(~torch.from_numpy(allowed).to(scores.device), -torch.inf)


def _cuts(temperature: float, min_p: float, top_k: int, top_p: float) -> list[Any]:
    import transformers

    found: list[Any] = []
    if temperature != 1.0:
        found.append(transformers.TemperatureLogitsWarper(temperature))
    if min_p > 0:
        found.append(transformers.MinPLogitsWarper(min_p))
    if top_k > 0:
        found.append(transformers.TopKLogitsWarper(top_k))
    if top_p < 1:
        found.append(transformers.TopPLogitsWarper(max(float(top_p), 0.0)))
    return found


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
