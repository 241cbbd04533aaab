"""One suite for both clients: `Driver` calls the asyncio one as if it were the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import uvloop
from v2_peer import V2Server, serving

from penstock.client import AsyncClient, Client


class Driver:
    """A client of either kind. `call` makes a method's call, `listed` runs a stream to its end."""

    def __init__(self, kind: str, runner: asyncio.Runner, url: str, **options: Any) -> None:
        self.kind = kind
        self._runner = runner
        self.client: Client | AsyncClient = Client(url, **options) if kind == "sync" else AsyncClient(url, **options)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        result = getattr(self.client, method)(*args, **kwargs)
        return result if self.kind == "sync" else self._runner.run(result)

    def listed(self, *args: Any, first: int | None = None, **kwargs: Any) -> list[Any]:
        """The stream's answers; with `first`, only so many, and then it is closed."""
        items: list[Any] = []
        iterator = self.client.stream(*args, **kwargs)
        if isinstance(iterator, AsyncIterator):
            return self._runner.run(_listed(iterator, first))
        for item in iterator:
            items.append(item)
            if len(items) == first:
                iterator.close()  # type: ignore[attr-defined]  # it is a generator
                break
        return items

    def close(self) -> None:
        self.call("close")


async def _listed(iterator: AsyncIterator[Any], first: int | None) -> list[Any]:
    items: list[Any] = []
    async for item in iterator:
        items.append(item)
        if len(items) == first:
            await iterator.aclose()  # type: ignore[attr-defined]  # it is a generator
            break
    return items


Connect = Callable[..., Driver]


@pytest.fixture(params=["sync", "asyncio", "uvloop"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Makes clients of one kind, which are closed at the end."""
    made: list[Driver] = []
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if request.param == "uvloop" else None) as runner:

        def make(url: str, **options: Any) -> Driver:
            made.append(Driver(request.param, runner, url, **options))
            return made[-1]

        yield make
        for driver in made:
            driver.close()


@pytest.fixture
def peer() -> Iterator[V2Server]:
    with serving() as server:
        yield server
