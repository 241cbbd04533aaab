"""What becomes of batches and responses whose server ended: time, damage and repeated ends."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.core.batches import WINDOW_S, Batch, LineAnswer, LineUsage
from penstock.core.errors import Overloaded
from penstock.core.responses import Step, StoredResponse, Wish
from penstock.runtime.language.batch_lines import Line, entry, written
from penstock.runtime.language.batches import Answer, BatchRunner
from penstock.runtime.language.kept import Kept
from penstock.runtime.language.kept_files import Bounds, KeptFiles
from penstock.runtime.language.shelves import MemoryShelf, NoJournal
from penstock.runtime.language.state import StateFolder

CONTENT = b"".join(
    json.dumps({"custom_id": f"r{at}", "method": "POST", "url": "/x", "body": {"at": at}}).encode() + b"\n"
    for at in range(40)
)
# A line's answer in the journal, of whichever the test has not let be answered.
LAST_LINE = entry(True, LineUsage(1, 0, 2, 0), written("batch_req_0", Line("last", b"{}"), LineAnswer(200, b"{}")))


class Answers:
    """Answers lines and wishes, as many as it is let."""

    def __init__(self) -> None:
        self.let = asyncio.Semaphore(0)
        self.asked: list[int] = []
        self.begun = 0

    async def line(self, endpoint: str, body: bytes, caller: str, deadline: float) -> LineAnswer:
        self.asked.append(json.loads(body)["at"])
        await self.let.acquire()
        return LineAnswer(200, b'{"ok":true}', usage=LineUsage(1, 0, 2, 0))

    async def steps(self, wish: Wish, caller: str, deadline: float) -> AsyncIterator[Step]:
        self.begun += 1
        yield Step("in_progress", wish.document)
        await self.let.acquire()
        yield Step("completed", b'{"done":1}')

    def cut(self, document: bytes, status: str, message: str, events: int) -> Step:
        return Step(status, json.dumps({"cut": message}).encode(), b"event")

    def let_all(self) -> None:
        for _ in range(1000):
            self.let.release()


Open = Callable[[], Awaitable[tuple[Kept, Answers]]]


@pytest.fixture
async def clock() -> list[float]:
    return [1_700_000_000.0]


@pytest.fixture
async def opened(tmp_path: Path, clock: list[float]) -> AsyncIterator[Open]:
    """Closes the server before, and starts the next one on the same folder."""
    running: list[Kept] = []

    async def start() -> tuple[Kept, Answers]:
        if running:
            await running.pop().close()
        answers = Answers()
        state = StateFolder.open(str(tmp_path / "state"))
        kept = Kept(answers.line, answers, state, lambda: clock[0])
        running.append(kept)
        await kept.restore()
        await kept.resume()
        return kept, answers

    yield start
    for kept in running:
        await kept.close()


async def until(look: Callable[[], Awaitable[Any]], enough: Callable[[Any], bool]) -> Any:
    for _ in range(5000):
        if enough(found := await look()):
            return found
        await asyncio.sleep(0.002)
    raise AssertionError(found)


async def ended(kept: Kept, id: str) -> Batch:
    found = await until(
        lambda: kept.batches.batch("me", id), lambda one: one.status in ("completed", "failed", "expired")
    )
    assert isinstance(found, Batch)
    return found


async def begun(kept: Kept, answers: Answers, let: int) -> str:
    file = await kept.batches.add_file("me", "in.jsonl", CONTENT)
    batch = await kept.batches.create("me", "/x", file.id, {})
    for _ in range(let):
        answers.let.release()
    await until(lambda: kept.batches.batch("me", batch.id), lambda one: one.answered == let)
    return batch.id


async def names(kept: Kept, id: str | None) -> list[str]:
    assert id is not None
    return [json.loads(line)["custom_id"] for line in (await kept.batches.content("me", id)).splitlines()]


async def test_only_lines_without_an_answer_are_asked_again(opened: Open) -> None:
    kept, answers = await opened()
    id = await begun(kept, answers, 12)
    kept, answers = await opened()
    assert (await kept.batches.batch("me", id)).answered == 12
    answers.let_all()
    batch = await ended(kept, id)
    assert len(answers.asked) == len(set(answers.asked)) == 40 - 12
    assert (batch.status, batch.total, batch.answered, batch.refused) == ("completed", 40, 40, 0)
    assert batch.usage == LineUsage(40, 0, 80, 0)
    assert sorted(await names(kept, batch.output_file)) == sorted(f"r{at}" for at in range(40))


async def test_a_window_that_passed_meanwhile_has_expired_with_every_line_told(
    opened: Open, clock: list[float]
) -> None:
    kept, answers = await opened()
    id = await begun(kept, answers, 12)
    clock[0] += WINDOW_S + 1
    kept, answers = await opened()
    batch = await ended(kept, id)
    assert batch.status == "expired" and batch.answered == 12 and batch.refused == 28
    good, bad = await names(kept, batch.output_file), await names(kept, batch.error_file)
    assert sorted(good + bad) == sorted(f"r{at}" for at in range(40)) and len(good) == 12


async def test_a_damaged_journal_ends_a_batch_with_what_is_whole(opened: Open, tmp_path: Path) -> None:
    kept, answers = await opened()
    id = await begun(kept, answers, 12)
    await kept.close()
    place = tmp_path / "state" / "batches" / f"{id}.lines"
    lines = place.read_bytes().splitlines(keepends=True)
    place.write_bytes(b"".join([*lines[:4], lines[4].replace(b"200", b"201"), *lines[5:]]))
    kept, answers = await opened()
    answers.let_all()
    batch = await ended(kept, id)
    assert batch.status == "failed" and not answers.asked
    assert "damaged from number 5" in batch.faults[0].message and len(await names(kept, batch.output_file)) == 4


async def test_a_damaged_input_file_ends_a_batch(opened: Open, tmp_path: Path) -> None:
    kept, answers = await opened()
    id = await begun(kept, answers, 5)
    await kept.close()
    file = tmp_path / "state" / "files" / (await kept.batches.batch("me", id)).input_file
    file.write_bytes(file.read_bytes().replace(b'"r7"', b'"r8"'))
    kept, answers = await opened()
    answers.let_all()
    batch = await ended(kept, id)
    assert batch.status == "failed" and not answers.asked and "damaged" in batch.faults[0].message
    assert len(await names(kept, batch.output_file)) == 5


async def test_an_end_that_was_half_written_makes_no_second_files(opened: Open, tmp_path: Path) -> None:
    """The files of the answers were written, and the batch's own record not yet."""
    kept, answers = await opened()
    id = await begun(kept, answers, 39)
    before = {place: place.read_bytes() for place in (tmp_path / "state" / "batches").iterdir()}
    assert len(before) == 2
    answers.let_all()
    first = await ended(kept, id)
    await kept.close()
    for place, content in before.items():
        place.write_bytes(content)
    kept, answers = await opened()
    assert (await kept.batches.batch("me", id)).status == "in_progress"
    answers.let_all()
    again = await ended(kept, id)
    assert again.output_file == first.output_file and len(await kept.batches.files("me")) == 2
    assert len(await names(kept, again.output_file)) == 40 and len(answers.asked) == 1


async def test_a_batch_goes_on_though_the_time_of_its_file_is_over(opened: Open, clock: list[float]) -> None:
    kept, answers = await opened()
    ids = []
    for _ in range(2):
        file = await kept.batches.add_file("me", "in.jsonl", CONTENT, 10.0)
        ids.append((await kept.batches.create("me", "/x", file.id, {})).id)
    await until(lambda: asyncio.sleep(0, len(answers.asked)), lambda asked: asked >= 16)
    clock[0] += 20
    await kept.stop()
    assert len(await kept.batches.files("me")) == 2  # for the next process
    kept, answers = await opened()
    answers.let_all()
    for id in ids:
        batch = await ended(kept, id)
        assert (batch.status, batch.answered, batch.faults) == ("completed", 40, [])


async def test_a_batch_whose_end_only_is_missing_needs_no_file(
    opened: Open, clock: list[float], tmp_path: Path
) -> None:
    kept, answers = await opened()
    id = await begun(kept, answers, 39)
    before = {place: place.read_bytes() for place in (tmp_path / "state" / "batches").iterdir()}
    input_file = (await kept.batches.batch("me", id)).input_file
    answers.let_all()
    await until(
        lambda: asyncio.sleep(0, (tmp_path / "state" / "batches" / f"{id}.lines").exists()), lambda one: not one
    )
    await kept.close()
    for place, content in before.items():
        if place.suffix:
            content += b"%08x %b\n" % (zlib.crc32(LAST_LINE), LAST_LINE)
        place.write_bytes(content)
    (tmp_path / "state" / "files" / input_file).unlink()
    clock[0] += WINDOW_S + 1
    kept, answers = await opened()
    batch = await ended(kept, id)
    assert (batch.status, batch.answered, batch.faults) == ("completed", 40, []) and not answers.asked


def runner(answer: Answer, journal: NoJournal, clock: list[float], bounds: Bounds) -> BatchRunner:
    files = KeptFiles(bounds, lambda: clock[0], MemoryShelf())
    return BatchRunner(answer, files, MemoryShelf(), journal, lambda: clock[0], bounds=bounds)


async def test_answers_wait_for_room(clock: list[float]) -> None:
    answers = Answers()
    answers.let_all()
    batches = runner(answers.line, NoJournal(), clock, Bounds(caller_bytes=20_000))
    filler = await batches.add_file("me", "filler", b"x" * 16_000)
    file = await batches.add_file("me", "in.jsonl", CONTENT)
    batch = await batches.create("me", "/x", file.id, {})
    await until(lambda: batches.batch("me", batch.id), lambda one: one.status == "finalizing")
    await asyncio.sleep(0.2)
    assert (await batches.batch("me", batch.id)).status == "finalizing"
    await batches.remove_file("me", filler.id)
    done = await until(lambda: batches.batch("me", batch.id), lambda one: one.status in ("completed", "failed"))
    assert done.status == "completed" and len((await batches.content("me", done.output_file)).splitlines()) == 40
    await batches.close()


async def test_lines_that_wait_for_a_model_hold_no_failed_batch_up(clock: list[float]) -> None:
    class FullJournal(NoJournal):
        async def append(self, id: str, line: bytes) -> None:
            raise Overloaded("no room")

    async def answer(endpoint: str, body: bytes, caller: str, deadline: float) -> LineAnswer:
        if json.loads(body)["at"]:
            return LineAnswer(503, b"{}", again_s=0.01)
        await asyncio.sleep(0.01)  # until the others wait
        return LineAnswer(200, b"{}")

    batches = runner(answer, FullJournal(), clock, Bounds())
    file = await batches.add_file("me", "in.jsonl", CONTENT)
    batch = await batches.create("me", "/x", file.id, {})
    done = await until(lambda: batches.batch("me", batch.id), lambda one: one.status in ("completed", "failed"))
    assert done.status == "failed" and done.faults[0].code == "no_room"
    await batches.close()


async def test_what_was_kept_goes_when_its_time_is_over(opened: Open, clock: list[float], tmp_path: Path) -> None:
    kept, answers = await opened()
    answers.let_all()
    id = (await begun(kept, answers, 0)) and (await kept.batches.listed("me"))[0].id
    await ended(kept, id)
    assert await kept.responses.keep("me", f"resp_{1:032x}", "completed", b"{}", b"[]")
    clock[0] += 9 * 24 * 3600
    kept, _ = await opened()
    assert await kept.batches.listed("me") == [] and await kept.batches.files("me") == []
    await kept.close()
    assert [place for place in (tmp_path / "state").rglob("*") if place.is_file()] == [
        tmp_path / "state" / "serve.lock"
    ]


def wish(number: int, streamed: bool = False) -> Wish:
    return Wish(f"resp_{number:032x}", b'{"begun":1}', b"[1]", b"{}", streamed)


async def found_as(kept: Kept, status: str) -> None:
    await until(lambda: kept.responses.find("me", wish(1).id), lambda one: one.status == status)


async def test_a_response_in_the_background_is_begun_anew_after_each_stop(opened: Open) -> None:
    kept, answers = await opened()
    await kept.responses.begin("me", wish(1))
    await kept.responses.begin("me", wish(2, streamed=True))
    for _ in range(4):
        kept, answers = await opened()
        await found_as(kept, "in_progress")
        assert answers.begun == 1
        assert (await kept.responses.find("me", wish(2).id)).status == "failed"
    assert (await kept.responses.events("me", wish(2).id, 0)).ended


async def test_a_response_that_ended_is_not_made_again(opened: Open) -> None:
    kept, answers = await opened()
    await kept.responses.begin("me", wish(1))
    answers.let.release()
    await found_as(kept, "completed")
    kept, answers = await opened()
    found = await kept.responses.find("me", wish(1).id)
    assert found == StoredResponse(wish(1).id, "completed", b'{"done":1}', True) and answers.begun == 0
    assert await kept.responses.items("me", wish(1).id) == b"[1]"
    assert (await kept.responses.cancel("me", wish(1).id)).status == "completed"
