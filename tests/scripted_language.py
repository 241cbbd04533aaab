"""A door with one language model that answers every ask with given events: for protocols, without an engine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy_door import NumpyDoor, NumpyModel

from penstock.core.errors import NotFound, PenstockError, Unsupported
from penstock.core.language import Ask, Began, Card, EngineInfo, Event, Finished, Scores, Text, Usage, Vectors
from penstock.protocols import HttpResponse, HttpStream

INFO = EngineInfo(
    engine="script", engine_version="1", context_tokens=64, vocabulary=256, embeds=True, embedding_size=4,
    adapter_names=("polite",), labels=("bad", "good"),
)  # fmt: skip
CARD = Card("m", "3", INFO, 1_700_000_000, chat=True, tools=True, reasons=False)

# An answer with what must be escaped in JSON, and a count of every kind.
BEGAN = Began(5, "m", "3")
USAGE = Usage(5, 2, cached_tokens=3, reasoning_tokens=1)
HELLO: list[Event | PenstockError] = [BEGAN, Text(0, "Hé"), Text(0, '"llo'), Finished(0, "stop"), USAGE]


@dataclass
class Script:
    """`core.language.LanguageModel`. Each ask gets the next of `answers`, the last one again and again; an error among
    the events is raised in its place."""

    answers: list[Sequence[Event | PenstockError]] = field(default_factory=list)
    card: Card = CARD
    asks: list[Ask] = field(default_factory=list)
    closed: int = 0

    async def ask(self, ask: Ask) -> AsyncIterator[Event]:
        self.asks.append(ask)
        try:
            for event in self.answers[min(len(self.asks), len(self.answers)) - 1]:
                if isinstance(event, PenstockError):
                    raise event
                yield event
        finally:
            self.closed += 1

    async def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        return [1] * special + list(text.encode())

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode("utf-8", "replace")

    async def pieces(self, token_ids: Sequence[int]) -> list[str]:
        return [chr(token) for token in token_ids]

    async def render(self, ask: Ask) -> str:
        self.asks.append(ask)
        return "|".join(f"{message.role}:{message.content}" for message in ask.messages or ())

    async def prompt_ids(self, ask: Ask) -> list[int]:
        return await self.tokenize(await self.render(ask), special=False)

    async def embed(self, texts: Sequence[str | Sequence[int]], **_: Any) -> Vectors:
        return Vectors([[0.6, 0.0, 0.8, 0.0]] * len(texts), sum(map(len, texts)))

    async def score(self, pairs: Sequence[tuple[str, str]], **_: Any) -> Scores:
        return Scores([[len(second) / 10] for _, second in pairs], sum(len(a) + len(b) for a, b in pairs))

    async def classify(self, texts: Sequence[str], **_: Any) -> Scores:
        return Scores([[0.25, 0.75] for _ in texts], sum(map(len, texts)))


class ScriptDoor(NumpyDoor):
    """A door over one script, called `m`, and models of other kinds."""

    def __init__(self, script: Script, others: dict[str, NumpyModel] | None = None) -> None:
        super().__init__(others or {})
        self.script = script

    async def language(self, model: str, version: str = "") -> Script:
        if model == "m" and version in ("", "3", "stable"):
            return self.script
        if model in self.served:
            self.describe(model)
            raise Unsupported(f"'{model}' is no language model")
        raise NotFound(f"model '{model}' does not exist")

    def models(self) -> list[str]:
        return sorted([*super().models(), "m"])


async def pieces_of(answer: HttpResponse | HttpStream) -> bytes:
    """All that a stream sends, its error as the listener writes it."""
    assert isinstance(answer, HttpStream), answer
    sent = b""
    try:
        async for piece in answer.pieces:
            sent += piece
    except PenstockError as error:
        assert sent, f"an error before the first piece is an ordinary answer: {error}"
        sent += answer.encode_error(error)
    return sent
