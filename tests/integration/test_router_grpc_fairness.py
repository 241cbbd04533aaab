"""P16f through a real router: a flood of one tenant hardly moves what another one waits."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_front_harness import SERVICE, endpoint, peer, router_process

from penstock.fleet.routes import Table, Tenant
from penstock.fleet.spec import Requests

pytestmark = pytest.mark.alone

SLOTS = 8
SERVICE_S = 0.12
SPREAD = 0.5  # of the lognormal times of service


def tenant(name: str, weight: float) -> Tenant:
    return Tenant(name, hashlib.sha256(name.encode()).hexdigest(), weight=weight)


class Load:
    """Open-loop calls of both tenants; those of `high` are the same each time."""

    def __init__(self, address: str, seconds: float) -> None:
        self._channels = {
            name: grpc.aio.insecure_channel(address, options=[("name", name)]) for name in ("high", "low")
        }
        self._seconds = seconds

    async def run(self, flood: float) -> tuple[float, Counter[str]]:
        """The 99th percentile of high priority in seconds, and the outcomes of all calls."""
        outcomes: Counter[str] = Counter()
        latencies: list[float] = []
        rate = 0.5 * SLOTS / SERVICE_S  # half of what the replica can do

        async def call(name: str, service_s: float) -> None:
            began = time.perf_counter()
            work = self._channels[name].unary_unary(SERVICE + "Work")
            try:
                await work(b"%.4f" % service_s, metadata=(("penstock-endpoint", "m"), ("x-api-key", name)), timeout=30)
                outcomes[f"{name} OK"] += 1
                if name == "high":
                    latencies.append(time.perf_counter() - began)
            except grpc.aio.AioRpcError as error:
                outcomes[f"{name} {error.code().name}"] += 1

        async def send(name: str, rate: float) -> None:
            dice, began, at = random.Random(3), time.perf_counter(), 0.0
            async with asyncio.TaskGroup() as calls:
                while (at := at + dice.expovariate(rate)) < self._seconds:
                    await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
                    calls.create_task(call(name, SERVICE_S * dice.lognormvariate(-SPREAD * SPREAD / 2, SPREAD)))

        async with asyncio.TaskGroup() as tenants:
            tenants.create_task(send("high", rate))
            if flood:
                tenants.create_task(send("low", rate * flood))
        return sorted(latencies)[int(len(latencies) * 0.99)], outcomes

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()


@pytest.mark.parametrize(
    "seconds", [2.0, pytest.param(30.0, marks=[pytest.mark.chaos, pytest.mark.timeout(180)])], ids=["short", "long"]
)
async def test_a_flood_of_low_priority_moves_high_priority_by_a_fifth_at_most(
    seconds: float, tmp_path: Path, figure: Callable[..., None]
) -> None:
    requests = Requests(max_in_flight=SLOTS, max_waiting=100)
    async with peer() as replica:
        table = Table(
            1, (endpoint("m", replica.address, requests=requests),), (tenant("high", 10.0), tenant("low", 1.0))
        )
        async with router_process(tmp_path, table) as (_, address, _):
            load = Load(address, seconds)
            alone_s, before = await load.run(0.0)
            flooded_s, after = await load.run(10.0)
            await load.close()
    assert set(before) == {"high OK"} and after["high OK"] == before["high OK"]
    assert after["low OK"] > 0.3 * seconds * SLOTS / SERVICE_S  # low priority gets most of the other half
    assert after["low UNAVAILABLE"] > after["low OK"] and set(after) <= {"high OK", "low OK", "low UNAVAILABLE"}
    moved = flooded_s / alone_s - 1
    name = f"10x flood moves p99 of high priority, {SLOTS} places, through a router"
    figure("P16f", name, moved * 100, "%", goal="≤ 20 %")
    # In the short form the 99th percentile is the second of a hundred calls, on a machine that does other things too.
    # Without fair queueing all would wait behind 100 others: 1.5 s.
    assert moved <= 0.2 if seconds > 10 else flooded_s <= alone_s * 1.2 + 0.25
