"""What a fuzz target is: a decoder that is handed any bytes, and examples of good ones to begin with."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from penstock.core.errors import Internal, LoadError, NotReady, PenstockError, ServableError, WorkerLost

T = TypeVar("T")

MESSAGE_CHARACTERS = 4000  # an error that repeats what was sent must not be as long as what was sent
OURS = (Internal, LoadError, ServableError, WorkerLost, NotReady)  # never the caller's fault


class Fault(AssertionError):
    """The decoder did what no bytes may make it do."""


@dataclass(frozen=True)
class Target:
    """`run` takes any bytes and says whether they were accepted; whatever it raises is a fault. `seeds` are valid."""

    name: str
    run: Callable[[bytes], bool]
    seeds: tuple[bytes, ...]


def check_refusal(error: PenstockError) -> None:
    """Raises Fault when a decoder's error blames us, or floods whoever reads it."""
    if isinstance(error, OURS):
        raise Fault(f"bytes of the caller end in {type(error).__name__}: {error}") from error
    if len(error.message) > MESSAGE_CHARACTERS:
        raise Fault(f"a {type(error).__name__} of {len(error.message)} characters")
    error.message.encode()  # it has to go onto a wire


class _Loop:
    """One event loop for all calls of a process."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        if self.loop is None or self.loop.is_closed():
            self.loop = asyncio.new_event_loop()
        return self.loop.run_until_complete(work)


run_on_loop = _Loop().run


@contextlib.contextmanager
def no_error_logged() -> Iterator[None]:
    """Turns what would be a traceback in a server's log into a Fault: some decoders may not raise, and log instead."""
    seen: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(self.format(record))

    handler = Handler(logging.ERROR)
    logger = logging.getLogger("penstock")
    logger.addHandler(handler)
    propagated, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated
    if seen:
        raise Fault("logged: " + seen[0])
