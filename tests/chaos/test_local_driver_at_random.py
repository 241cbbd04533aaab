"""Starts, stops, kills and controllers that come and go, in any order: what the driver says is what is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal

import pytest
from local_driver import Fleet, eventually, replicas

from penstock.fleet.drivers import Launch
from penstock.fleet.local import groups, process
from penstock.fleet.state import ReplicaState

__all__ = ["replicas"]


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(3))
async def test_driver_is_right_whatever_happens(replicas: Fleet, seed: int) -> None:
    draw = random.Random(seed)
    wished: set[str] = set()
    killed: set[str] = set()
    for step in range(60):
        running = [one for one in replicas.driver.replicas() if one.pid is not None]
        match draw.choice(["start", "start", "stop", "kill", "freeze", "next", "wait"]):
            case "start" if len(wished) < 6:
                id = f"r{step}"
                wished.add(id)
                await replicas.driver.start(Launch(id, "deployed", 1, replicas.run(draw.choice(["double", "Parent"]))))
            case "stop" if wished:
                id = draw.choice(sorted(wished))
                wished.discard(id)
                await replicas.driver.stop(id, draw.choice([0.0, 0.3, 5.0]))
            case ("kill" | "freeze") as what if running:
                one = draw.choice(running)
                with contextlib.suppress(ProcessLookupError):
                    if process.identity(one.pid or 0) is not None:
                        os.kill(one.pid or 0, signal.SIGKILL if what == "kill" else signal.SIGSTOP)
                if what == "kill":
                    killed.add(one.id)
                else:
                    await replicas.driver.stop(one.id, 0.2)
                    wished.discard(one.id)
            case "next":
                await (await replicas.next()).adopt()
            case _:
                await asyncio.sleep(draw.random() * 0.5)
    # A controller that died at the start of one may have ended it: it is wished, and nobody has heard of it again.
    settled = (ReplicaState.READY, ReplicaState.FAILED)
    await eventually(lambda: all(one.state in settled for one in replicas.driver.replicas()), "all has settled", 120)
    for one in replicas.driver.replicas():
        if one.state is ReplicaState.READY:
            assert one.id in wished and one.id not in killed
            assert one.pid is not None and process.identity(one.pid) is not None
        else:
            assert one.id in killed, one
            replicas.driver.forget(one.id)
    alive = {marker.split(":")[1] for _, marker in process.carriers(f"{replicas.settings.fleet}:")}
    assert alive == {one.id for one in replicas.driver.replicas()}
    made = {one.name.rpartition(".")[2] for one in groups.leftovers(f"penstock.{replicas.settings.fleet}.")}
    assert made <= alive
