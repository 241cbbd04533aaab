"""What storms, defects and closed connections leave behind: nothing."""

from __future__ import annotations

import asyncio
import gc
import os
from collections import Counter

import numpy as np
from http_harness import get, infer, post, serving, until
from uploads import still_serves


async def test_connections_over_the_limit_are_told_to_come_back() -> None:
    async with serving(max_connections=3) as it:
        held = [await it.connect() for _ in range(3)]
        for client in held:
            await client.ask(get("/health"))
        for _ in range(5):
            extra = await it.connect()
            await extra.send(get("/health"))
            answer = await extra.answer()
            assert (answer.status, answer.headers["retry-after"], answer.headers["connection"]) == (503, "1", "close")
            await extra.close()
        assert it.listener.counters.refused == {"connections": 5}
        assert (await held[0].ask(get("/health"))).status == 200
        await held[0].close()
        await until(lambda: it.listener.counters.connections_open == 2)
        await still_serves(it)


async def test_a_storm_of_probes_leaves_no_handle_behind() -> None:
    async with serving() as it:

        def handles() -> int:
            return len(os.listdir("/proc/self/fd"))

        async def probe() -> None:
            client = await it.connect()
            assert (await client.ask(get("/health"))).status == 200
            await client.close()

        await probe()
        await until(lambda: it.listener.counters.connections_open == 0)
        gc.collect()  # what tests before this one left to the collector is not to go in between
        before = handles()
        for _ in range(20):
            await asyncio.gather(*(probe() for _ in range(50)))
        await until(lambda: it.listener.counters.connections_open == 0)
        gc.collect()
        assert handles() == before
        assert len(asyncio.all_tasks()) == 1


async def test_closed_connections_are_freed_without_the_collector() -> None:
    from penstock.runtime.listeners.connection import Connection

    async with serving() as it:
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                await still_serves(it)
            await until(lambda: it.listener.counters.connections_open == 0)
            await asyncio.sleep(0)
            assert sum(isinstance(thing, Connection) for thing in gc.get_objects()) <= 1
        finally:
            gc.enable()


async def test_requests_and_their_errors_leave_nothing_for_the_collector() -> None:
    async with serving() as it:
        client = await it.connect()

        async def some() -> None:
            for request in (
                infer([1]),
                infer([1], model="unknown"),
                infer([1], model="full"),
                infer([1], model="broken"),
                post("/models/double/infer", b"{"),
                get("/nowhere"),
                get("/health"),
                post("/upload", bytes(100_000)),
            ):
                await client.ask(request)

        await some()
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                await some()
            kinds = Counter(type(thing).__name__ for thing in garbage())
            ours = {name: count for name, count in kinds.items() if name in ("Turn", "HttpRequest", "Request", "Found")}
            assert not ours
        finally:
            gc.enable()


def garbage() -> list[object]:
    """What only the collector would have freed."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        return list(gc.garbage)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


async def test_a_defect_while_encoding_an_answer_is_a_500_and_nothing_more() -> None:
    async with serving() as it:
        client = await it.connect()
        it.door.gate.clear()
        await client.send(infer([1], id="a"))
        await until(lambda: "a" in it.door.waiting)
        it.door.requests[-1].model = "unencodable"
        future = it.door.waiting["a"]
        from penstock.core.messages import Response

        future.set_result(Response("double", "1", {"y": np.zeros(1)}))
        assert (await client.answer()).status == 500
        it.door.gate.set()
        assert (await client.ask(infer([1]))).status == 200


async def test_a_future_cancelled_by_the_door_is_answered() -> None:
    async with serving() as it:
        client = await it.connect()
        it.door.gate.clear()
        await client.send(infer([1], id="a"))
        await until(lambda: "a" in it.door.waiting)
        it.door.waiting["a"].cancel()
        assert (await client.answer()).status == 499
