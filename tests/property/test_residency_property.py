"""P14: many versions in less memory than they take. Races of requests, loads and evictions, on real queues."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.core.errors import LoadError, NotReady
from penstock.core.messages import Request
from penstock.core.servable import LoadContext
from penstock.core.tensor import parse_spec
from penstock.runtime import lifecycle, residency
from penstock.runtime.adapters import echo
from penstock.runtime.batching.batcher import Batcher
from penstock.runtime.batching.policy import BatchLimits
from penstock.runtime.checking import RequestCheck
from penstock.runtime.inference import Inference
from penstock.runtime.lifecycle import Resident
from penstock.runtime.options import ModelOptions
from penstock.runtime.residency import Residency
from penstock.runtime.sources import WishedModel, WishedVersion
from penstock.runtime.version import LoadedVersion
from penstock.runtime.workers.inline import InlineExecutor
from penstock.runtime.workers.pool import Pool
from penstock.telemetry.metrics import ModelMetrics

seeds = st.integers(0, 10_000)
residents = st.lists(
    st.tuples(st.integers(0, 50), st.floats(0, 100), st.booleans()), max_size=12
).map(lambda rows: [Resident(key, *row) for key, row in enumerate(rows)])  # fmt: skip


@given(residents, st.integers(0, 60), st.integers(1, 200))
def test_only_as_much_is_evicted_as_is_needed_least_recently_used_first(held, needed, budget):
    chosen = lifecycle.to_rest(held, needed, budget)
    free = budget - sum(one.size_bytes for one in held)
    idle_ones = [one for one in held if not one.busy]
    if chosen is None:
        assert free + sum(one.size_bytes for one in idle_ones) < needed
        return
    gone = [held[key] for key in chosen]
    assert not any(one.busy for one in gone)
    freed = sum(one.size_bytes for one in gone)
    assert free + freed >= needed
    assert all(free + freed - one.size_bytes < needed for one in gone), "one went that could have stayed"
    if needed <= free:
        assert not gone
    # Whatever stays although it was used less recently than one that went, was not needed beside it.
    for one in gone:
        spared = sum(o.size_bytes for o in idle_ones if o not in gone and o.last_used < one.last_used)
        assert free + freed - one.size_bytes + spared < needed or spared <= freed


class Bench:
    """Versions whose loads can be slow or fail, and that notice what must not be."""

    def __init__(self, sizes: list[int], budget: int | None, chance: random.Random, fail: float = 0.0) -> None:
        self.residency = Residency(budget, None, cores=2)
        self.budget, self.chance, self.fail = budget, chance, fail
        self.inference = Inference()
        self.loading: set[str] = set()
        self.loads = 0
        self.versions = [self._version(number, size) for number, size in enumerate(sizes)]

    def _version(self, number: int, size: int) -> LoadedVersion:
        name = f"m{number}"
        options = ModelOptions(name=name)
        version = LoadedVersion(
            WishedModel(options, "echo", {}), WishedVersion(1, Path("echo"), ""), ModelMetrics(name, "1")
        )
        context = LoadContext(
            name=name, version=1, inputs=(parse_spec("x", "f4[n, 2]"),), outputs=(parse_spec("x", "f4[n, 2]"),)
        )
        servable = echo.plug.load(Path("echo"), context)
        version.signature, version.check = servable.signature, RequestCheck(servable.signature)
        version.batcher = Batcher(name, "1", BatchLimits(8), joinable=True, max_queue=64, recorder=version.metrics)
        version.size_bytes = size
        version.inline = InlineExecutor(servable, context)

        async def revive() -> None:
            assert name not in self.loading, "two loads of one version at a time"
            self.loading.add(name)
            try:
                assert self.in_memory() + sum(self.versions[int(n[1:])].size_bytes for n in self.loading) <= (
                    self.budget or 1 << 40
                )
                await asyncio.sleep(self.chance.choice([0, 0, 0.001]))
                if self.chance.random() < self.fail:
                    raise LoadError("bad_alloc")
                version.inline = InlineExecutor(echo.plug.load(Path("echo"), context), context)
                version.resting = False
                version.use_current_executors()
                self.loads += 1
            finally:
                self.loading.discard(name)

        rest = version.rest

        def checked_rest():
            assert version.batcher.in_flight == 0, "evicted while in use"
            return rest()

        version.revive, version.rest = revive, checked_rest
        version.use_current_executors()
        self.residency.take_in(version)
        return version

    def in_memory(self) -> int:
        return sum(version.size_bytes for version in self.versions if not version.resting)

    async def ask(self, number: int, timeout_s: float = 5.0) -> None:
        version = self.versions[number]
        x = np.full((1, 2), number, "f4")
        request = Request(version.name, {"x": x}, deadline=time.monotonic() + timeout_s)
        response = await self.inference.submit(version, request)
        assert all((value == number).all() for value in response.outputs.values())
        assert self.budget is None or self.in_memory() <= self.budget


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(1, 10), min_size=2, max_size=12), st.integers(10, 30), seeds)
def test_every_request_is_answered_within_the_budget_whatever_comes_when(sizes, budget, seed):
    async def story() -> None:
        chance = random.Random(seed)
        bench = Bench(sizes, budget, chance)

        async def caller() -> None:
            for _ in range(10):
                await bench.ask(chance.randrange(len(sizes)))
                await asyncio.sleep(chance.choice([0, 0, 0.001]))

        await asyncio.wait_for(asyncio.gather(*(caller() for _ in range(6))), 30)
        assert bench.in_memory() <= budget
        figures = bench.residency.figures()
        assert figures.loads == bench.loads and figures.resident_bytes == bench.in_memory()
        await bench.residency.close()

    asyncio.run(story())


@settings(max_examples=5, deadline=None)
@given(seeds)
def test_loads_that_fail_fail_their_own_requests_and_no_resident(seed):
    async def story() -> None:
        chance = random.Random(seed)
        bench = Bench([5] * 6, 12, chance, fail=0.4)
        outcomes = {"answered": 0, "refused": 0}

        async def caller() -> None:
            for _ in range(10):
                try:
                    await bench.ask(chance.randrange(6))
                    outcomes["answered"] += 1
                except NotReady as error:
                    assert "bad_alloc" in error.message
                    outcomes["refused"] += 1

        await asyncio.wait_for(asyncio.gather(*(caller() for _ in range(4))), 30)
        assert sum(outcomes.values()) == 40
        assert bench.in_memory() <= 12
        bench.fail = 0.0
        resident = next(number for number, version in enumerate(bench.versions) if not version.resting) if any(
            not version.resting for version in bench.versions) else None  # fmt: skip
        if resident is not None:
            await bench.ask(resident)
        await bench.residency.close()

    asyncio.run(story())


async def test_a_version_is_loaded_once_however_many_wait():
    bench = Bench([6, 6], 6, random.Random(1))
    assert [version.resting for version in bench.versions] == [False, True]
    await asyncio.gather(*(bench.ask(1) for _ in range(50)))
    assert bench.loads == 1
    assert [version.resting for version in bench.versions] == [True, False]
    await bench.residency.close()


async def test_thrash_lets_everybody_get_on(figure):
    """A working set of 1.5 times the memory, everybody asking all the time: each gets its share, and none starves."""
    bench = Bench([2] * 12, 16, random.Random(2))
    answered = [0] * 12

    async def caller(number: int) -> None:
        until = asyncio.get_running_loop().time() + 1.0
        while asyncio.get_running_loop().time() < until:
            await bench.ask(number)
            answered[number] += 1

    await asyncio.gather(*(caller(number) for number in range(12)))
    figures = bench.residency.figures()
    figure("P14", "working set 1.5 × memory: fewest answers of a model, share of the mean",
           12 * min(answered) / sum(answered), "")  # fmt: skip
    assert min(answered) >= 3, answered
    assert figures.evictions["memory"] >= 12
    await bench.residency.close()


async def test_what_is_in_use_stays_and_the_newcomer_waits_inside_its_deadline():
    bench = Bench([6, 6], 6, random.Random(3))
    busy = bench.versions[0]
    busy.batcher.retain(Request("m0", {}, deadline=time.monotonic() + 5))  # as a request in pieces, between two of them
    with pytest.raises(Exception, match=r"deadline|late|time"):
        await bench.ask(1, timeout_s=0.2)
    assert not busy.resting and bench.versions[1].resting
    waiting = asyncio.ensure_future(bench.ask(1))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    busy.batcher.release()
    await asyncio.wait_for(waiting, 2)
    assert busy.resting
    await bench.residency.close()


async def test_idle_versions_rest_and_come_back():
    bench = Bench([5, 5], None, random.Random(4))
    bench.residency._idle_s = None
    idle = Residency(None, 0.1, cores=1)
    for version in bench.versions:
        idle.take_in(version)
    until = time.monotonic() + 5
    while not all(version.resting for version in bench.versions):
        assert time.monotonic() < until
        await asyncio.sleep(0.01)
    assert idle.figures().evictions == {"memory": 0, "idle": 2}
    await bench.ask(0)
    assert not bench.versions[0].resting
    await idle.close()


async def test_a_version_larger_than_all_memory_is_refused():
    with pytest.raises(LoadError, match=r"takes 7 bytes, and models_memory_bytes is 6"):
        Bench([7], 6, random.Random(5))


async def test_a_version_that_is_unloaded_while_it_is_woken_leaves_nothing_behind():
    bench = Bench([6, 6], 6, random.Random(6))
    version, started = bench.versions[1], asyncio.Event()
    quick = version.revive

    async def slow() -> None:
        started.set()
        await asyncio.sleep(0.3)
        await quick()

    version.revive = slow
    asked = asyncio.ensure_future(bench.ask(1))
    await started.wait()
    await version.close(0.05)
    bench.residency.let_go(version)
    with pytest.raises(NotReady, match="is unloaded"):
        await asked
    await asyncio.sleep(0.35)
    assert version.inline is None and version.resting
    await bench.ask(0)  # which the other had put to rest: its room is free again
    await bench.residency.close()


async def test_a_version_that_is_woken_and_unloaded_while_it_leaves_is_freed_to_the_end():
    bench = Bench([6], 6, random.Random(7))
    (version,) = bench.versions
    freed, let_go, quick = asyncio.Event(), asyncio.Event(), version.rest

    def slow_rest():
        free = quick()

        async def slow() -> None:
            await let_go.wait()
            await free
            freed.set()

        return slow()

    version.rest = slow_rest
    leaving = bench.residency._put_to_rest(next(iter(bench.residency._entries.values())))
    asked = asyncio.ensure_future(bench.ask(0))
    await asyncio.sleep(0.01)  # it is woken, and waits until it has left
    await version.close(0.0)
    bench.residency.let_go(version)
    with pytest.raises(NotReady, match="is unloaded"):
        await asked
    let_go.set()
    await asyncio.wait({leaving}, timeout=5)
    assert freed.is_set()
    await bench.residency.close()


async def test_a_version_whose_end_fails_comes_back_all_the_same(caplog):
    bench = Bench([6, 6], 6, random.Random(8))
    version, quick = bench.versions[0], bench.versions[0].rest

    def broken_rest():
        free = quick()

        async def broken() -> None:
            await free
            raise RuntimeError("the model's own close failed")

        return broken()

    version.rest = broken_rest
    await asyncio.gather(bench.ask(1), bench.ask(0))
    await asyncio.gather(bench.ask(1), bench.ask(0))
    assert "model_not_closed" in caplog.text
    await bench.residency.close()


async def test_a_version_that_has_outgrown_all_memory_says_so_at_once():
    bench = Bench([6, 6], 6, random.Random(9))
    await bench.ask(1)
    bench.versions[0].size_bytes = 7  # as one that moved to worker processes
    with pytest.raises(NotReady, match=r"takes 7 bytes, and models_memory_bytes is 6"):
        await bench.ask(0, timeout_s=5)
    assert "takes 7 bytes" in bench.versions[0].not_woken
    bench.versions[0].size_bytes = 6
    await asyncio.sleep(1.05)
    await bench.ask(0)
    assert bench.versions[0].not_woken == ""
    await bench.residency.close()


async def test_a_load_that_hangs_holds_no_other_up_for_long(monkeypatch):
    monkeypatch.setattr(residency, "_LONG_LOAD_S", 0.1)
    bench = Bench([3, 3, 6], 12, random.Random(10))
    for version in bench.versions[:2]:
        await bench.residency._put_to_rest(bench.residency._entries[bench.residency._places[version]])
    quick, hang = bench.versions[0].revive, asyncio.Event()

    async def hanging() -> None:
        await hang.wait()
        await quick()

    bench.versions[0].revive = hanging
    first = asyncio.ensure_future(bench.ask(0))
    await asyncio.sleep(0.01)
    await bench.ask(1, timeout_s=2)
    assert not first.done()
    hang.set()
    await first
    await asyncio.gather(*(bench.ask(number) for number in (0, 1, 2, 0, 1, 2)))
    assert bench.residency._loads._value == 1, "given back once"
    await bench.residency.close()


async def test_a_version_whose_workers_grew_comes_back_with_as_many_as_it_began_with():
    bench = Bench([6], 12, random.Random(11))
    (version,) = bench.versions
    version.inline = None
    version.pool = pool = Pool(
        lambda _: pytest.fail("nothing is started"), 2, load_timeout_s=1, timeout_s=1, hang_s=1, on_change=lambda: None
    )
    pool.size, version.size_bytes = 6, 12
    await version.rest()
    assert version.size_bytes == 4
    await bench.residency.close()


async def test_a_version_that_comes_back_larger_has_others_leave():
    bench = Bench([4, 4, 4], 12, random.Random(12))
    await bench.residency._put_to_rest(bench.residency._entries[bench.residency._places[bench.versions[0]]])
    quick = bench.versions[0].revive

    async def grown() -> None:
        await quick()
        bench.versions[0].size_bytes = 6

    bench.versions[0].revive = grown
    await bench.ask(0)
    assert bench.residency.figures().resident_bytes == 10
    assert [version.resting for version in bench.versions] == [False, True, False]
    await bench.residency.close()
