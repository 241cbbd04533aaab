"""Grammars are compiled in threads of their own, as many at once as may wait, and each once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from penstock.core.errors import DeadlineExceeded, InvalidInput, Overloaded
from penstock.core.language import Format
from penstock.language.grammars import Compiled, Compiler
from penstock.language.grammars.compiling import Wanted
from penstock.runtime.language.compiles import Compiles

PATIENCE_S = 10


class Held(Compiler):
    """One that compiles nothing before it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may = threading.Event()
        self.made: list[str] = []

    def make(self, wanted: Wanted) -> Compiled:
        assert self.may.wait(PATIENCE_S)
        self.made.append(wanted.format.text)
        return super().make(wanted)


def asked(compiles: Compiles, text: str, in_s: float = PATIENCE_S) -> Coroutine[Any, Any, Compiled | None]:
    return compiles.compile_format(Format("regex", text=text), deadline=time.monotonic() + in_s)


async def until_waiting(compiles: Compiles, count: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while compiles.waiting != count:  # noqa: ASYNC110  # what is waited for is the state itself
            await asyncio.sleep(0.001)


def test_the_threads_of_everything_else_stay_free() -> None:
    async def run() -> None:
        held = Held()
        compiles = Compiles(held)
        tasks = [asyncio.create_task(asked(compiles, "a" * (at + 1))) for at in range(40)]
        await until_waiting(compiles, 40)
        try:
            assert await asyncio.wait_for(asyncio.to_thread(int, "7"), PATIENCE_S / 2) == 7
        finally:
            held.may.set()
        assert all(found is not None and found.grammar is not None for found in await asyncio.gather(*tasks))
        compiles.close()

    asyncio.run(run())


def test_beyond_those_that_may_wait_requests_are_sent_away_for_the_moment() -> None:
    async def run() -> None:
        held = Held()
        compiles = Compiles(held, threads=1, most_waiting=2)
        tasks = [asyncio.create_task(asked(compiles, text)) for text in "abc"]
        await until_waiting(compiles, 3)
        again = asyncio.create_task(asked(compiles, "c"))  # the same as one that waits
        with pytest.raises(Overloaded) as caught:
            await asked(compiles, "d")
        assert caught.value.retry_after_s
        held.may.set()
        first, *_, last = await asyncio.gather(*tasks, again)
        assert sorted(held.made) == ["a", "b", "c"]
        assert await asked(compiles, "a") is first and await asked(compiles, "c") is last
        assert sorted(held.made) == ["a", "b", "c"], "remembered ones need no thread"
        assert await asked(compiles, "d")
        compiles.close()

    asyncio.run(run())


def test_what_nobody_waits_for_any_more_is_not_compiled() -> None:
    async def run() -> None:
        held = Held()
        compiles = Compiles(held, threads=1)
        first, left = (asyncio.create_task(asked(compiles, text)) for text in "ab")
        await until_waiting(compiles, 2)
        with pytest.raises(DeadlineExceeded):
            await asked(compiles, "c", in_s=0.01)
        left.cancel()
        await asyncio.wait((left,))
        assert left.cancelled()
        await until_waiting(compiles, 1)
        last = asyncio.create_task(asked(compiles, "d"))
        held.may.set()
        await asyncio.gather(first, last)
        assert held.made == ["a", "d"]
        compiles.close()
        with pytest.raises(Overloaded):
            await asked(compiles, "e")

    asyncio.run(run())


def test_a_refusal_is_remembered_with_all_that_it_says() -> None:
    compiler = Compiler(entries=2)
    formats = [Format("regex", text=f"[a-z]*a[a-z]{{{300 + at}}}") for at in range(3)]
    for format in formats:
        with pytest.raises(InvalidInput) as first:
            compiler.compile_format(format, where="guided_regex")
    for format in formats[1:]:
        wanted = compiler.wanted(format, where="guided_regex")
        assert wanted is not None
        with pytest.raises(InvalidInput) as again:
            compiler.kept(wanted)
        assert (type(again.value), str(again.value)) == (type(first.value), str(first.value))
        assert again.value.__traceback__ is not None and again.value.__context__ is None
    oldest = compiler.wanted(formats[0], where="guided_regex")
    assert oldest is not None and compiler.kept(oldest) is None, "as many are remembered as grammars are"
