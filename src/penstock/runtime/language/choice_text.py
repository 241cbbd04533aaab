"""One choice of an answer: the tokens of its engine become text, thoughts and tool calls, up to what ends it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from penstock.core.language import (
    Delta,
    Event,
    Finished,
    FinishReason,
    Reasoning,
    Text,
    TextToken,
    TokenLogprob,
    ToolCallPart,
)
from penstock.language.detokenise import Detokeniser
from penstock.language.stop import StopStrings
from penstock.language.tokenizer import Tokenizer
from penstock.runtime.language.reading import Reader


class ChoiceText:
    """Deltas in, events out. `ended` once its Finished was given: what still comes is nobody's."""

    def __init__(
        self,
        choice: int,
        tokenizer: Tokenizer,
        *,
        ends: frozenset[int],
        stop: Sequence[str] = (),
        stop_ids: frozenset[int] = frozenset(),
        include_stop: bool = False,
        skip_special: bool = True,
        shown: frozenset[int] = frozenset(),
        continues: bool = False,
        logprobs: bool = False,
        reader: Reader | None = None,
    ) -> None:
        self.choice = choice
        self.ended = False
        self.tokens = 0
        self.text_parts: list[str] = []  # of the visible text, for whoever checks it whole
        self.reasoning_tokens = 0
        self._tokenizer = tokenizer
        self._detokeniser = Detokeniser(tokenizer, skip_special, shown=shown, continues=continues)
        self._stops = StopStrings(stop, include_stop)
        self._ends = ends
        self._stop_ids = stop_ids
        self._include_stop = include_stop
        self.reader = reader
        self._uncounted = 0  # tokens since the last event
        self._logprobs = logprobs
        self._plain = reader is None and not logprobs and not self._stops.any
        self._spelt = 0  # characters that were made of tokens
        self._let_through = 0  # of these, those that no stop string can be of
        self._waiting: deque[tuple[int, int, TextToken]] = deque()  # tokens with where their text begins and ends

    def feed(self, delta: Delta) -> list[Event]:
        """The events of one delta."""
        if self._plain and not delta.finish_reason:  # nearly every token of nearly every answer
            count = len(delta.token_ids)
            self.tokens += count
            self._uncounted += count
            text = self._detokeniser.feed_all(delta.token_ids)
            if not text:
                return []
            count, self._uncounted = self._uncounted, 0
            self.text_parts.append(text)
            return [Text(self.choice, text, (), False, count)]
        if self._stops.any and len(delta.token_ids) > 1:
            return self._feed_by_token(delta)
        return self._feed(delta)

    def _feed_by_token(self, delta: Delta) -> list[Event]:
        """Tokens that come after the one with which a stop string is complete are no part of the answer."""
        events: list[Event] = []
        ids, logprobs = delta.token_ids, delta.logprobs
        for at, token in enumerate(ids):
            reason = delta.finish_reason if at + 1 == len(ids) else ""
            events += self._feed(Delta((token,), logprobs[at : at + 1], finish_reason=reason))
            if self.ended:
                break
        return events

    def _feed(self, delta: Delta) -> list[Event]:
        ids = delta.token_ids
        self.tokens += len(ids)
        reason = delta.finish_reason
        met: int | None = None
        if reason == "stop" and ids and ids[-1] in self._stop_ids:
            met = ids[-1]
        if reason == "stop" and ids and ids[-1] in self._ends and not self._include_stop:
            ids = ids[:-1]
        text = self._spell(ids, delta.logprobs) if self._logprobs else self._detokeniser.feed_all(ids)
        if reason:
            text += self._detokeniser.finish()
        shown = self._stops.feed(text) if text else ""
        stopped = self._stops.met
        if reason and stopped is None:
            shown += self._stops.finish()
        self._let_through += len(shown)
        final = bool(reason) or stopped is not None
        self._uncounted += len(delta.token_ids)
        events = self._read(shown, final)
        if final:
            self.ended = True
            how: FinishReason = "stop" if stopped is not None else reason  # type: ignore[assignment]
            if self.reader is not None and self.reader.called and how == "stop":
                how = "tool_calls" if stopped is None or self.reader.complete else "stop"
            events.append(Finished(self.choice, how, stopped if stopped is not None else met))
        return events

    def _read(self, shown: str, final: bool) -> list[Event]:
        reader = self.reader
        if reader is None:
            events: list[Event] = [Text(self.choice, shown)] if shown else []
        else:
            events = reader.feed(shown)
            if final:
                events += reader.finish()
        if self._logprobs:
            self._give_tokens(events, self._ready(final))
        if events:
            self._count(events)
        return events

    def _give_tokens(self, events: list[Event], tokens: tuple[TextToken, ...]) -> None:
        """Tokens go with the visible text; those of thoughts and calls with nothing, as in the OpenAI API."""
        for place, event in enumerate(events):
            if isinstance(event, Text):
                events[place] = replace(event, tokens=tokens)
                return
        if tokens and not events and self.reader is None:
            events.append(Text(self.choice, "", tokens))

    def _count(self, events: list[Event]) -> None:
        """The first event is said to be of all tokens that came since the last one."""
        first = events[0]
        if isinstance(first, Text):
            events[0] = Text(first.choice, first.text, first.tokens, first.prompt, self._uncounted)
        elif isinstance(first, Reasoning):
            events[0] = Reasoning(first.choice, first.text, self._uncounted)
            self.reasoning_tokens += self._uncounted
        elif isinstance(first, ToolCallPart):
            events[0] = replace(first, count=self._uncounted)
        self._uncounted = 0
        self.text_parts += [event.text for event in events if isinstance(event, Text)]

    def _spell(self, ids: Sequence[int], logprobs: Sequence[TokenLogprob]) -> str:
        texts = []
        for place, token in enumerate(ids):
            text = self._detokeniser.feed(token)
            texts.append(text)
            begin, self._spelt = self._spelt, self._spelt + len(text)
            if place < len(logprobs):
                self._waiting.append((begin, self._spelt, text_token(self._detokeniser, logprobs[place])))
        return "".join(texts)

    def _ready(self, final: bool) -> tuple[TextToken, ...]:
        """Tokens whose text was let through; at the end, all but those that begin beyond the stop string."""
        ready = []
        waiting = self._waiting
        while waiting and waiting[0][1] <= self._let_through:
            ready.append(waiting.popleft()[2])
        if final:
            ready += [token for begin, _, token in waiting if begin < self._let_through]  # the stop begins inside
            waiting.clear()
        return tuple(ready)


def text_token(detokeniser: Detokeniser, found: TokenLogprob) -> TextToken:
    """A token with its log-probabilities, spelt."""
    text, raw = detokeniser.spell(found.token_id)
    return TextToken(
        found.token_id, text, raw, found.logprob,
        tuple((token, *detokeniser.spell(token), logprob) for token, logprob in found.top),
    )  # fmt: skip
