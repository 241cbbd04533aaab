"""A language model behind its name: whichever version is there when an ask begins, and another model for what it lacks.

Two things happen before the first event, and never after it. A version that was replaced while an ask was read and
tokenised is taken back: the ask begins anew with the one that is there now, whose tokens may be others. And an ask for
what the engine lacks goes to the model's `fallback_model`, if it has one; whoever asked sees the name that they gave,
and in a header who answered.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, Protocol, TypeVar, cast

from penstock.core.door import Door, ModelDescription
from penstock.core.errors import InvalidInput, NotFound, NotReady, Unsupported
from penstock.core.language import Ask, Began, Event, LanguageModel, Scores, Vectors
from penstock.core.messages import NO_DEADLINE
from penstock.runtime.language.fallback import fallback_of

ANSWERED_BY: Final = "Penstock-Answered-By"

_MOST_BEGINNINGS: Final = 4
_NEWS_S: Final = 0.25  # how long another front's table may be behind the process that holds the models

T = TypeVar("T")


class Opener(Protocol):
    """Where language models come from."""

    async def described(self, described: ModelDescription) -> LanguageModel:
        """The one version. Raises: NotReady, Unsupported."""
        ...

    async def open(self, model: str, version: str = "", passed: frozenset[str] = frozenset()) -> LanguageModel:
        """The model of a name. Raises: NotFound, NotReady, Unsupported."""
        ...


class Named:
    """`core.language.LanguageModel` of a name. `passed` are the models that could not do what this one is asked."""

    def __init__(
        self, door: Door, opener: Opener, version: str, described: ModelDescription, session: LanguageModel,
        passed: frozenset[str],
    ) -> None:  # fmt: skip
        self.card = session.card
        self.tokenize = session.tokenize
        self.detokenize = session.detokenize
        self.pieces = session.pieces
        self.render = session.render
        self.prompt_ids = session.prompt_ids
        self._door = door
        self._opener = opener
        self._version = version
        self._described = described
        self._session = session
        self._passed = passed

    def ask(self, ask: Ask) -> AsyncIterator[Event]:
        """See `core.language.LanguageModel.ask`."""
        return _Events(lambda: self._begin(ask))

    async def embed(
        self, texts: Sequence[str | Sequence[int]], *, caller: str = "", deadline: float = NO_DEADLINE
    ) -> Vectors:
        """See `core.language.LanguageModel.embed`."""
        return await self._of_current(lambda session: session.embed(texts, caller=caller, deadline=deadline))

    async def score(
        self, pairs: Sequence[tuple[str, str]], *, caller: str = "", deadline: float = NO_DEADLINE
    ) -> Scores:
        """See `core.language.LanguageModel.score`."""
        return await self._of_current(lambda session: session.score(pairs, caller=caller, deadline=deadline))

    async def classify(self, texts: Sequence[str], *, caller: str = "", deadline: float = NO_DEADLINE) -> Scores:
        """See `core.language.LanguageModel.classify`."""
        return await self._of_current(lambda session: session.classify(texts, caller=caller, deadline=deadline))

    async def _begin(self, ask: Ask) -> tuple[Event | None, AsyncGenerator[Event, None]]:
        """The first event of whoever answers, and the iterator of the others."""
        try:
            return await self._of_current(lambda session: _first(session, ask))
        except InvalidInput as error:
            fallback = fallback_of(self._described.config)
            if error.problem != "unsupported_parameter" or not fallback or fallback in self._passed:
                raise
            return await self._elsewhere(ask, fallback, error)

    async def _elsewhere(
        self, ask: Ask, fallback: str, lacks: InvalidInput
    ) -> tuple[Event | None, AsyncGenerator[Event, None]]:
        try:
            other = await self._opener.open(fallback, "", self._passed | {self.card.name})
        except (NotFound, NotReady, Unsupported) as error:
            raise NotReady(
                f"{lacks.message}; its fallback_model '{fallback}' cannot be asked now: {error.message}",
                retry_after_s=error.retry_after_s,
            ) from error
        try:
            first, rest = await _first(other, ask)
        except InvalidInput as error:
            if error.problem != "unsupported_parameter":
                raise
            raise InvalidInput(
                f"{lacks.message}; nor can its fallback_model '{fallback}': {error.message}",
                parameter=lacks.parameter, problem=lacks.problem,
            ) from error  # fmt: skip
        if not any(name == ANSWERED_BY for name, _ in ask.notes):  # else its own fallback has answered
            ask.notes.append((ANSWERED_BY, f"{other.card.name}:{other.card.version}"))
        if isinstance(first, Began):
            first = dataclasses.replace(first, model=self.card.name, version=self.card.version)
        return first, rest

    async def _of_current(self, work: Callable[[LanguageModel], Awaitable[T]]) -> T:
        """What `work` gives for the version that is there now, as often as it is replaced meanwhile."""
        for beginning in range(_MOST_BEGINNINGS):
            try:
                return await work(self._session)
            except (NotFound, NotReady):
                if beginning == _MOST_BEGINNINGS - 1 or not await self._replaced():
                    raise
        raise AssertionError("the last beginning raises")

    async def _replaced(self) -> bool:
        """Whether another version answers for the name by now, which is taken then. Raises: NotFound, NotReady."""
        change = self._door.next_change()
        described = self._door.describe(self._described.name, self._version)
        if described.serial == self._described.serial:
            await asyncio.wait({change}, timeout=_NEWS_S)
            described = self._door.describe(self._described.name, self._version)
            if described.serial == self._described.serial:
                return False
        self._described, self._session = described, await self._opener.described(described)
        return True


class _Events:
    """Events of one ask. Its first step finds out who answers; the others are that session's own, at no more cost than
    a call."""

    __slots__ = ("_begin", "_rest", "_step")

    def __init__(self, begin: Callable[[], Awaitable[tuple[Event | None, AsyncGenerator[Event, None]]]]) -> None:
        self._begin = begin
        self._rest: AsyncGenerator[Event, None] | None = None
        self._step: Callable[[], Awaitable[Event]] = self._first

    def __aiter__(self) -> _Events:
        return self

    def __anext__(self) -> Awaitable[Event]:
        return self._step()

    async def _first(self) -> Event:
        first, self._rest = await self._begin()
        self._step = self._rest.__anext__
        if first is None:
            raise StopAsyncIteration
        return first

    async def aclose(self) -> None:
        """Ends the ask, which frees its engine."""
        if self._rest is not None:
            await self._rest.aclose()


async def _first(model: LanguageModel, ask: Ask) -> tuple[Event | None, AsyncGenerator[Event, None]]:
    events = cast(AsyncGenerator[Event, None], model.ask(ask))
    return await anext(events, None), events
