"""The short way of a delta: from the message that brought it to whoever writes its events, without waking a task.

The long way is the session's iterator, through which the first delta goes and the last one, and every one that cannot
be written at once. The two never overtake each other: the short one is open only while the whole iterator sleeps and
has passed on all before (`core.messages.Request.push`). A delta that was read and turns out to be for the long way has
its events waiting here when it arrives there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from penstock.core.language import Delta, Event
from penstock.runtime.language import wire
from penstock.runtime.language.choice_text import ChoiceText


class Pusher:
    """One choice's. `note` is told of each delta, and when it came."""

    def __init__(
        self,
        choice: ChoiceText,
        note: Callable[[Delta, float], None],
        take: Callable[[Sequence[Event]], bool] | None,
    ) -> None:
        self.begun = False  # the first delta has gone the long way
        self._choice = choice
        self._note = note
        self._take = take
        self._left: list[Event] | Exception | None = None

    def push(self, count: int, piece: bytes) -> bool:
        """See `core.messages.Request.push`."""
        if not self.begun or self._take is None:
            return False
        try:
            delta = wire.delta(piece)
            self._note(delta, time.monotonic())
            events = self._choice.feed(delta)
            if not self._choice.ended and (not events or self._take(events)):
                return True
        except Exception as error:  # for whoever reads the iterator, as if it had happened there
            self._left = error
        else:
            self._left = events
        return False

    def left(self) -> list[Event] | None:
        """The events of the delta that has just come the long way, if it was read before. Raises: what reading did."""
        left, self._left = self._left, None
        if isinstance(left, Exception):
            raise left
        return left
