"""Which generations begin, in which order, and which are refused."""

from __future__ import annotations

import asyncio
import time

import pytest

from penstock.core.errors import DeadlineExceeded, Overloaded
from penstock.runtime.language.admission import Admission, Admitted


class Crowd:
    """Generations that run until they are told to end."""

    def __init__(self, gate: Admission) -> None:
        self.gate = gate
        self.order: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, asyncio.Event] = {}

    async def come(
        self, name: str, caller: str = "", prompt: int = 10, most: int = 10, priority: int = 0, left_s: float = 60.0
    ) -> None:
        self._ends[name] = asyncio.Event()

        async def run() -> None:
            deadline = time.monotonic() + left_s
            async with self.gate.admitted(caller, prompt, most, priority=priority, deadline=deadline):
                self.order.append(name)
                await self._ends[name].wait()

        self.tasks[name] = asyncio.create_task(run())
        await self.settle()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await self.tasks[name]
        await self.settle()

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def end_all(self) -> None:
        while running := [name for name in self.order if not self.tasks[name].done()]:
            await self.end(running[0])


def empty(gate: Admission) -> bool:
    return (gate.running, gate.running_tokens, gate.waiting, gate.waiting_tokens) == (0, 0, 0, 0)


async def test_no_more_tokens_run_than_fit() -> None:
    crowd = Crowd(Admission(50, 100, 1000))
    for name in "abc":
        await crowd.come(name)
    assert crowd.order == ["a", "b"]
    assert crowd.gate.running_tokens == 40
    await crowd.end("a")
    assert crowd.order == ["a", "b", "c"]
    await crowd.end_all()
    assert empty(crowd.gate)


async def test_no_more_sequences_run_than_the_engine_takes() -> None:
    crowd = Crowd(Admission(0, 2, 1000))
    for name in "abc":
        await crowd.come(name)
    assert crowd.order == ["a", "b"]
    await crowd.end_all()
    assert empty(crowd.gate)


async def test_one_larger_than_everything_runs_alone_and_is_not_overtaken() -> None:
    crowd = Crowd(Admission(50, 100, 10_000))
    await crowd.come("small")
    await crowd.come("huge", prompt=500)
    await crowd.come("late")
    assert crowd.order == ["small"]
    await crowd.end("small")
    assert crowd.order == ["small", "huge"]
    await crowd.end("huge")
    assert crowd.order[-1] == "late"
    await crowd.end_all()
    assert empty(crowd.gate)


async def test_urgent_ones_go_first_and_callers_take_turns() -> None:
    crowd = Crowd(Admission(0, 1, 10_000))
    await crowd.come("first")
    for number in range(3):
        await crowd.come(f"flood-{number}", "flood")
    await crowd.come("mouse-0", "mouse")
    await crowd.come("urgent", "mouse", priority=1)
    await crowd.end_all()
    assert crowd.order == ["first", "urgent", "flood-0", "mouse-0", "flood-1", "flood-2"]


async def test_turns_count_tokens_not_requests() -> None:
    crowd = Crowd(Admission(0, 1, 100_000))
    await crowd.come("first")
    for number in range(2):
        await crowd.come(f"big-{number}", "big", prompt=90)
    for number in range(8):
        await crowd.come(f"small-{number}", "small", prompt=10)
    await crowd.end_all()
    # While one large request is served, five small ones of half a tenth each are worth as much.
    assert [name[:3] for name in crowd.order[1:8]] == ["big", "sma", "sma", "sma", "sma", "sma", "big"]


async def test_a_flood_is_refused_and_keeps_nobody_out() -> None:
    crowd = Crowd(Admission(0, 1, 100))
    await crowd.come("first")
    for number in range(9):
        await crowd.come(f"flood-{number}", "flood")
    refused = [name for name, task in crowd.tasks.items() if task.done()]
    assert refused == [f"flood-{number}" for number in range(5, 9)]
    for name in refused:
        with pytest.raises(Overloaded, match="max_queued_tokens is 100") as caught:
            await crowd.tasks[name]
        assert caught.value.retry_after_s is not None
    await crowd.come("mouse", "mouse")
    assert not crowd.tasks["mouse"].done()
    with pytest.raises(Overloaded):  # the flood's newest made room
        await crowd.tasks["flood-4"]
    await crowd.end_all()
    assert empty(crowd.gate)


async def test_who_leaves_or_is_late_frees_its_place() -> None:
    crowd = Crowd(Admission(0, 1, 1000))
    await crowd.come("first")
    await crowd.come("leaves")
    await crowd.come("late", left_s=0.01)
    await crowd.come("next")
    crowd.tasks["leaves"].cancel()
    with pytest.raises(DeadlineExceeded):
        await crowd.tasks["late"]
    await crowd.settle()
    assert crowd.gate.waiting == 1
    await crowd.end("first")
    assert crowd.order == ["first", "next"]
    await crowd.end_all()
    assert empty(crowd.gate)


async def test_cancelled_at_the_moment_of_being_let_in() -> None:
    crowd = Crowd(Admission(0, 1, 1000))
    await crowd.come("first")
    await crowd.come("unlucky")
    await crowd.come("next")
    crowd._ends["first"].set()
    await crowd.tasks["first"]  # its end has let the unlucky one in, which has not run yet
    crowd.tasks["unlucky"].cancel()
    await crowd.settle()
    assert "next" in crowd.order
    await crowd.end_all()
    assert empty(crowd.gate)


async def test_expected_output_is_learned() -> None:
    gate = Admission(0, 10, 1000)
    assert gate.cost(10, 100) == 110
    assert gate.cost(10, 8000) == 10 + 512
    for _ in range(200):
        async with gate.admitted("", 10, 8000) as admitted:
            assert isinstance(admitted, Admitted)
            admitted.generated = 20
    assert 10 + 40 <= gate.cost(10, 8000) <= 10 + 42
