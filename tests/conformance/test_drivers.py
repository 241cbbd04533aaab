"""What every driver owes, whichever kind of place it starts replicas in: one file in `fleet/drivers`, one run of this."""

from __future__ import annotations

import asyncio
import os
import pkgutil
from collections.abc import AsyncIterator
from importlib import import_module
from pathlib import Path

import pytest
import pytest_asyncio

from penstock.core.errors import NotFound
from penstock.fleet import drivers
from penstock.fleet.drivers import Driver, Launch, Settings
from penstock.fleet.spec import Run
from penstock.fleet.state import Replica, ReplicaState

NAMES = [module.name for module in pkgutil.iter_modules(drivers.__path__)]
MODEL = """
import penstock
@penstock.model(inputs={"x": "f4[n]"}, outputs={"y": "f4[n]"})
def double(x):
    return {"y": x * 2}
"""


@pytest_asyncio.fixture(params=NAMES)
async def driver(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Driver]:
    made: Driver = import_module(f"penstock.fleet.drivers.{request.param}").plug(
        Settings(tmp_path / "state", f"conformance-{os.getpid()}")
    )
    await made.adopt()
    yield made
    for one in made.replicas():
        await made.stop(one.id, 0.0)
    await until(made, lambda left: all(one.state is ReplicaState.FAILED for one in left))
    await made.close()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "model.py").write_text(MODEL)
    return Run(model=f"{tmp_path / 'model.py'}:double")


async def until(driver: Driver, holds) -> tuple[Replica, ...]:
    """The replicas once it holds; the driver has to tell of each change."""
    async with asyncio.timeout(40):
        while not holds(now := tuple(driver.replicas())):
            await driver.changed.wait()
            driver.changed.clear()
    return now


async def test_replica_lives_from_start_to_stop(driver: Driver, run: Run) -> None:
    assert not driver.replicas()
    await driver.prepare(run)
    await driver.prepare(run)
    launch = Launch("fraud-1-abc", "fraud", 7, run, (await driver.places())[0].name)
    await driver.start(launch)
    await driver.start(launch)
    (ready,) = await until(driver, lambda all_: [one.state for one in all_] == [ReplicaState.READY])
    assert (ready.id, ready.deployment, ready.revision, ready.place) == (launch.id, "fraud", 7, launch.place)
    assert ready.http and ready.ready_at is not None and ready.started_at <= ready.ready_at
    driver.forget(launch.id)  # only those that failed
    assert len(driver.replicas()) == 1
    assert [line async for line in driver.logs(launch.id, 10, False)]
    await driver.stop(launch.id, 5.0)
    await driver.stop(launch.id, 5.0)
    await until(driver, lambda all_: not all_)
    await driver.stop(launch.id, 5.0)
    assert [(one.id, one.revision) for one in await driver.gone("fraud")] == [(launch.id, 7)]
    assert await driver.gone("other") == []
    assert [line async for line in driver.logs(launch.id, 10, False)], "its output can still be read"


async def test_places_have_something_and_names_of_their_own(driver: Driver) -> None:
    places = await driver.places()
    assert places and len({one.name for one in places}) == len(places)
    assert all(one.cpu > 0 and one.memory_bytes > 0 and one.gpus >= 0 for one in places)


async def test_unknown_replica_has_no_log_and_can_be_stopped_and_forgotten(driver: Driver) -> None:
    await driver.stop("none", 1.0)
    driver.forget("none")
    for id in ("none", "../none", ""):
        with pytest.raises(NotFound):
            [line async for line in driver.logs(id, 10, True)]
