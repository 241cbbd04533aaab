"""A language model whose engine takes whole conversations (an upstream): asks go to it, and its events come back."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing

from penstock.core.door import Door, ModelDescription
from penstock.core.errors import Cancelled, InvalidInput, PenstockError, TooLarge, Unsupported
from penstock.core.language import (
    Ask,
    Card,
    EngineInfo,
    EngineLoad,
    Event,
    Finished,
    Generation,
    Scores,
    Usage,
    Vectors,
)
from penstock.core.language_json import decode_event, encode_ask
from penstock.core.messages import NO_DEADLINE, Request, Timings
from penstock.runtime.language import wire
from penstock.runtime.language.figures import Gaps, Spoken

_MOST_TEXTS = 2048  # in one call, as OpenAI's API has it
_MOST_TEXT_BYTES = 8 << 20


class Relay:
    """`core.language.LanguageModel` of one version whose engine chats. What the upstream refuses, it refuses."""

    def __init__(
        self, door: Door, described: ModelDescription, info: EngineInfo, observe: Callable[[Spoken], None]
    ) -> None:
        self._door = door
        self._observe = observe
        timeout_s = described.config.get("timeout_s")
        self._timeout_s = float(timeout_s) if isinstance(timeout_s, int | float) else 600.0
        self.card = Card(described.name, str(described.version), info, 0, chat=True, tools=True, reasons=False)

    def ask(self, ask: Ask) -> AsyncIterator[Event]:
        """See `core.language.LanguageModel.ask`."""
        return self._ask(ask, time.monotonic())

    async def _ask(self, ask: Ask, received: float) -> AsyncIterator[Event]:
        deadline = ask.deadline if ask.deadline != NO_DEADLINE else received + self._timeout_s
        ask = dataclasses.replace(ask, deadline=deadline)
        generation = Generation(
            ask.id, (), ask.max_tokens or 1, adapter=ask.adapter, priority=ask.priority, deadline=deadline,
            ask=encode_ask(ask),
        )  # fmt: skip
        inputs, parameters = wire.ask(generation)
        request = Request(
            self.card.name, inputs, self.card.version, ask.id, parameters, (), deadline, ask.priority,
            Timings(received=received), ask.trace, ask.caller, internal=True,
        )  # fmt: skip
        usage, outcome, first_s, gaps = Usage(0, 0), Cancelled.reason, -1.0, Gaps()
        queue_s = 0.0
        load: EngineLoad | None = None
        try:
            async with aclosing(self._door.stream(request)) as answers:  # type: ignore[type-var]  # a generator
                async for response in answers:
                    delta = wire.answered(response.outputs)
                    load = delta.load or load
                    if not delta.event:
                        continue
                    event, now = decode_event(delta.event), time.monotonic()
                    if first_s < 0:
                        first_s, queue_s = now - received, response.timings.dispatched - response.timings.submitted
                    if isinstance(event, Usage):
                        usage = event
                    elif isinstance(event, Finished):
                        outcome = event.reason
                    else:
                        gaps.add(now, getattr(event, "count", 0))
                    yield event
        except PenstockError as error:
            outcome = error.reason
            raise
        finally:
            self._observe(
                Spoken(
                    self.card.name, self.card.version, ask.caller, outcome, usage.prompt_tokens,
                    usage.completion_tokens, max(usage.cached_tokens, 0), queue_s, first_s, time.monotonic() - received,
                    gaps.counts, gaps.sum_s, load,
                )
            )  # fmt: skip

    async def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        raise self._elsewhere("tokenize")

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        raise self._elsewhere("detokenize")

    async def pieces(self, token_ids: Sequence[int]) -> list[str]:
        raise self._elsewhere("tokenize")

    async def render(self, ask: Ask) -> str:
        raise self._elsewhere("render messages")

    async def prompt_ids(self, ask: Ask) -> list[int]:
        raise self._elsewhere("render messages")

    async def embed(
        self, texts: Sequence[str | Sequence[int]], *, caller: str = "", deadline: float = NO_DEADLINE
    ) -> Vectors:
        """See `core.language.LanguageModel.embed`. How many tokens they took is known to the upstream only: 0."""
        if not self.card.info.embeds:
            raise Unsupported(f"model '{self.card.name}' gives no embeddings; set embeds = true in its file if it does")
        batch: list[bytes] = []
        for text in texts:
            if not isinstance(text, str):
                raise InvalidInput(f"model '{self.card.name}' is served elsewhere: send texts, not token ids")
            batch.append(text.encode())
        if not batch:
            return Vectors([], 0)
        if len(batch) > _MOST_TEXTS or sum(map(len, batch)) > _MOST_TEXT_BYTES:
            raise TooLarge(f"send at most {_MOST_TEXTS} texts of {_MOST_TEXT_BYTES >> 20} MiB together in one call")
        received = time.monotonic()
        inputs, parameters = wire.lists("embed", batch)
        request = Request(
            self.card.name, inputs, self.card.version, "", parameters, (),
            deadline if deadline != NO_DEADLINE else received + self._timeout_s, 0, Timings(received=received), None,
            caller, internal=True,
        )  # fmt: skip
        response = await self._door.submit(request)
        return Vectors(response.outputs["values"].tolist(), 0)

    async def score(
        self, pairs: Sequence[tuple[str, str]], *, caller: str = "", deadline: float = NO_DEADLINE
    ) -> Scores:
        raise self._elsewhere("score")

    async def classify(self, texts: Sequence[str], *, caller: str = "", deadline: float = NO_DEADLINE) -> Scores:
        raise self._elsewhere("classify")

    def _elsewhere(self, what: str) -> Unsupported:
        return Unsupported(f"model '{self.card.name}' is served elsewhere: this server cannot {what} for it")
