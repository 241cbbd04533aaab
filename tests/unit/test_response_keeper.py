"""What a server keeps of responses in the background: room, ends, restarts and callers who leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from penstock.core.errors import Internal, NotFound, Overloaded, PenstockError, QuotaExceeded
from penstock.core.responses import Step, Wish
from penstock.runtime.language.kept_responses import KEEP_S, ResponseBounds
from penstock.runtime.language.response_keeper import ResponseKeeper
from penstock.runtime.language.shelves import MemoryShelf

LAST = b"the last event"


def wish(number: int, streamed: bool = False, size: int = 3) -> Wish:
    return Wish(f"resp_{number:032x}", b'{"begun":1}', b"[" + b"1" * (size - 2) + b"]", b"{}", streamed)


class Answers:
    """Begins to answer when `begins`, tells `events`, and ends when `let`."""

    def __init__(self) -> None:
        self.begins = True
        self.events: list[bytes] = []
        self.let = asyncio.Event()
        self.leaving = asyncio.Event()  # a step that is cancelled ends once this is set
        self.leaving.set()
        self.begun: list[str] = []

    async def steps(self, wish: Wish, caller: str, deadline: float) -> AsyncIterator[Step]:
        if not self.begins:
            yield Step(again_s=60.0)
        self.begun.append(wish.id)
        yield Step("in_progress", wish.document)
        for event in self.events:
            yield Step(event=event)
        try:
            await self.let.wait()
        finally:
            await self.leaving.wait()
        yield Step("completed", b'{"done":1}', LAST)

    def cut(self, document: bytes, status: str, message: str, events: int) -> Step:
        cut = {**json.loads(document), "status": status, "cut": message}
        return Step(status, json.dumps(cut).encode(), b"%d:%b" % (events, LAST))


class LastingShelf(MemoryShelf):
    """Its things are there for the next keeper; `lost` bodies are not."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, bytes] = {}
        self.lost: set[str] = set()

    async def put(self, id: str, head: bytes, body: bytes) -> None:
        await asyncio.sleep(0)
        self.kept[id] = head
        await super().put(id, head, body)

    async def body(self, id: str) -> bytes:
        await asyncio.sleep(0)
        if id in self.lost:
            raise Internal("what was kept is damaged")
        return await super().body(id)

    def discard(self, id: str) -> None:
        self.kept.pop(id, None)
        super().discard(id)

    async def heads(self) -> dict[str, bytes]:
        return dict(self.kept)


class Server:
    """Keepers one after another on the same shelf."""

    def __init__(self) -> None:
        self.shelf = LastingShelf()
        self.now = [1_700_000_000.0]
        self.answers = Answers()
        self.bounds = ResponseBounds()
        self.keepers: list[ResponseKeeper] = []

    async def restored(self) -> ResponseKeeper:
        keeper = ResponseKeeper(self.answers, self.shelf, lambda: self.now[0], self.bounds)
        self.keepers.append(keeper)
        await keeper.restore()
        return keeper

    async def started(self) -> ResponseKeeper:
        keeper = await self.restored()
        await keeper.resume()
        return keeper

    async def stop(self) -> None:
        await self.keepers[-1].close()

    def kill(self) -> None:
        """What is on the shelf stays as it is now."""
        old, self.shelf = self.shelf, LastingShelf()
        self.shelf.kept, self.shelf._bodies = dict(old.kept), dict(old._bodies)

    async def becomes(self, number: int, *statuses: str) -> Any:
        for _ in range(5000):
            found = await self.keepers[-1].find("me", wish(number).id)
            if found.status in statuses:
                return found
            await asyncio.sleep(0.001)
        raise AssertionError(found)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    found = Server()
    yield found
    found.answers.leaving.set()
    for keeper in found.keepers:
        await keeper.close()


async def whole(keeper: ResponseKeeper, number: int, after: int = 0) -> list[bytes]:
    found: list[bytes] = []
    while True:
        part = await keeper.events("me", wish(number).id, after + len(found))
        found += part.events
        if part.ended:
            return found


async def until(look: Callable[[], bool]) -> None:
    for _ in range(5000):
        if look():
            return
        await asyncio.sleep(0.001)
    raise AssertionError


async def test_what_is_being_made_takes_no_more_than_its_room(server: Server) -> None:
    server.bounds = ResponseBounds(caller_bytes=1000, all_bytes=1500)
    keeper = await server.started()
    await keeper.keep("you", wish(90).id, "completed", b"{}", b"[]")
    await keeper.begin("me", wish(1, size=700))
    for refused in (
        keeper.begin("me", wish(2, size=700)),
        keeper.keep("me", wish(3).id, "completed", b"{}", b"0" * 700),
    ):
        with pytest.raises(QuotaExceeded):
            await refused
    with pytest.raises(Overloaded):
        await keeper.begin("you", wish(4, size=900))
    assert (await keeper.find("you", wish(90).id)).status == "completed"
    server.answers.let.set()
    await server.becomes(1, "completed")
    await keeper.begin("me", wish(2, size=700))


async def test_events_that_nobody_has_read_count_too(server: Server) -> None:
    server.bounds = ResponseBounds(caller_bytes=1000)
    server.answers.events = [b"e" * 90] * 20
    keeper = await server.started()
    await keeper.keep("me", wish(90).id, "completed", b"{}", b"0" * 200)
    await keeper.begin("me", wish(1, streamed=True))
    failed = await server.becomes(1, "failed")
    assert b"that are not finished" in failed.document and (await whole(keeper, 1))[-1].endswith(LAST)


@pytest.mark.parametrize("remove", [True, False])
async def test_a_caller_who_leaves_has_ended_it_all_the_same(server: Server, remove: bool) -> None:
    keeper = await server.started()
    await keeper.begin("me", wish(1))
    await server.becomes(1, "in_progress")
    server.answers.leaving.clear()
    work = keeper.remove if remove else keeper.cancel
    call = asyncio.create_task(work("me", wish(1).id))  # type: ignore[arg-type]
    for _ in range(20):
        await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait({call})
    server.answers.leaving.set()
    if remove:
        await until(lambda: not server.shelf.kept)
        with pytest.raises(NotFound):
            await keeper.find("me", wish(1).id)
    else:
        await server.becomes(1, "cancelled")


async def test_what_waits_for_the_models_can_be_read_cancelled_and_removed(server: Server) -> None:
    keeper = await server.started()
    for number in (1, 2, 3, 4):
        await keeper.begin("me", wish(number, streamed=number == 4))
    await server.stop()
    server.answers.begun.clear()
    keeper = await server.restored()
    assert (await keeper.find("me", wish(1).id)).status == "queued"
    assert (await keeper.cancel("me", wish(1).id)).status == "cancelled"
    assert (await whole(keeper, 4))[-1].endswith(LAST)
    await asyncio.gather(keeper.resume(), keeper.remove("me", wish(2).id))
    await until(lambda: wish(3).id in server.answers.begun)
    assert (await keeper.find("me", wish(1).id)).status == "cancelled" and wish(1).id not in server.answers.begun
    await until(lambda: wish(2).id not in server.shelf.kept)


async def test_one_that_is_damaged_fails_and_holds_nothing_up(server: Server) -> None:
    keeper = await server.started()
    await keeper.begin("me", wish(1))
    await server.stop()
    server.shelf.lost.add(wish(1).id)
    keeper = await server.started()
    server.shelf.lost.clear()
    failed = await keeper.find("me", wish(1).id)
    assert failed.status == "failed" and json.loads(failed.document)["id"] == wish(1).id
    assert b"damaged" in failed.document


async def test_an_old_unfinished_one_keeps_no_other_from_going(server: Server) -> None:
    keeper = await server.started()
    await keeper.begin("me", wish(1))
    await keeper.keep("me", wish(2).id, "completed", b"{}", b"[]")
    server.now[0] += KEEP_S + 1
    keeper.forget_old()
    assert set(server.shelf.kept) == {wish(1).id}


async def test_only_starts_that_began_to_answer_and_were_killed_count(server: Server) -> None:
    keeper = await server.started()
    await keeper.begin("me", wish(1))
    await server.becomes(1, "in_progress")
    for _ in range(5):
        await server.stop()
        await server.started()
        await server.becomes(1, "in_progress")
    server.answers.begins = False
    for _ in range(5):
        server.kill()
        await server.started()
        await asyncio.sleep(0.01)
    server.answers.begins = True
    for _ in range(2):
        server.kill()
        await server.started()
        await server.becomes(1, "in_progress")
    server.kill()
    await server.started()
    failed = await server.becomes(1, "failed", "in_progress")
    assert failed.status == "in_progress"  # it began anew three times
    server.kill()
    await server.started()
    assert b"4 times" in (await server.becomes(1, "failed")).document


async def test_one_that_is_too_large_ends_with_a_last_event_for_every_reader(server: Server) -> None:
    server.bounds = ResponseBounds(one_bytes=400)
    server.answers.events = [b"e" * 90] * 20
    keeper = await server.started()
    await keeper.begin("me", wish(1, streamed=True))
    assert (await server.becomes(1, "failed")).status == "failed"
    await until(lambda: b"failed" in server.shelf.kept[wish(1).id])
    for after in range(5):
        assert (await whole(keeper, 1, after))[-1:] == [b"4:" + LAST]
    assert await whole(keeper, 1, 5) == []


async def test_an_end_that_the_shelf_refuses_is_told_until_it_is_too_old(server: Server) -> None:
    keeper = await server.started()
    await keeper.begin("me", wish(1))
    await server.becomes(1, "in_progress")
    put = server.shelf.put

    async def full(id: str, head: bytes, body: bytes) -> None:
        raise Overloaded("no room")

    server.shelf.put = full  # type: ignore[method-assign]
    server.answers.let.set()
    assert (await server.becomes(1, "completed")).document == b'{"done":1}'
    server.shelf.put = put  # type: ignore[method-assign]
    server.now[0] += KEEP_S + 1
    keeper.forget_old()
    with pytest.raises(PenstockError):
        await keeper.find("me", wish(1).id)
