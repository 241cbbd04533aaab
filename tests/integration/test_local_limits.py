"""Limits of replicas: memory and processors, by control groups and without them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path

import pytest
from local_driver import Fleet, eventually, infer, replicas

from penstock.fleet.drivers import Launch
from penstock.fleet.local import groups
from penstock.fleet.state import ReplicaState

__all__ = ["replicas"]

MIB = 1 << 20


def groups_can_be_made() -> bool:
    made = groups.make(f"penstock.test-{os.getpid()}", groups.Limits(1.0, 64 * MIB))
    groups.remove(made.folders)
    return made.cpu and made.memory


needs_groups = pytest.mark.skipif(
    "not __import__('test_local_limits').groups_can_be_made()", reason="no control groups"
)


@needs_groups
async def test_replica_over_its_memory_fails_alone_and_says_why(replicas: Fleet) -> None:
    other = await replicas.start("other", "hungry", options={"warm_up": False})
    await replicas.start("one", "hungry", memory_bytes=256 * MIB, options={"warm_up": False})
    one = replicas.replica("one")
    assert one is not None
    folders = _groups_of("one", replicas)
    assert folders
    with contextlib.suppress(OSError):
        await asyncio.to_thread(infer, one, 600.0)
    failed = await _until_failed(replicas, "one")
    assert "memory" in failed and "256 MiB" in failed, failed
    assert await asyncio.to_thread(infer, other, 3.0) == [9.0]
    replicas.driver.forget("one")
    await eventually(lambda: not _groups_of("one", replicas), "its groups are taken away")


@needs_groups
async def test_model_that_needs_more_memory_than_it_has_is_never_ready(replicas: Fleet) -> None:
    await replicas.driver.start(Launch("one", "deployed", 1, replicas.run("double", memory_bytes=24 * MIB)))
    assert "24 MiB" in await _until_failed(replicas, "one")


@needs_groups
async def test_processor_share_is_kept_and_seen_by_the_replica(replicas: Fleet) -> None:
    await replicas.start("one", "double", cpu=0.25)
    folder = next(folder for folder in _groups_of("one", replicas) if (folder / "cpu.stat").exists())
    busy = replicas.processes("one")
    assert set(busy) <= groups.pids([folder]), "workers are in it as well"
    if (folder / "cpu.max").exists():
        quota, period = map(int, (folder / "cpu.max").read_text().split())
    else:
        quota, period = (int((folder / f"cpu.cfs_{one}_us").read_text()) for one in ("quota", "period"))
    assert quota / period == 0.25
    version2 = (folder / "cgroup.controllers").exists()
    membership = replicas.folder / "membership"
    at = folder.relative_to(groups.ROOT if version2 else groups.ROOT / "cpu")
    membership.write_text(f"0::/{at}\n" if version2 else f"1:cpu:/{at}\n")
    assert groups.cpu_limit(membership=membership) == 0.25


@needs_groups
async def test_small_share_begins_once_the_replica_is_ready(replicas: Fleet) -> None:
    await replicas.driver.start(Launch("one", "deployed", 1, replicas.run("double", cpu=0.2)))
    await eventually(lambda: _quotas("one", replicas) == [100_000], "it starts with one processor")
    await replicas.until("one", ReplicaState.READY)
    assert _quotas("one", replicas) == [20_000]


async def test_without_control_groups_memory_is_watched(
    replicas: Fleet, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setattr(groups, "make", lambda *_: groups.Made())
    options = {"warm_up": False, "max_memory_bytes": "4GiB"}  # else its worker would see it first
    one = await replicas.start("one", "hungry", cpu=1.0, memory_bytes=300 * MIB, options=options)
    assert {len(os.sched_getaffinity(pid)) for pid in replicas.processes("one")} == {1}
    assert sum("limits_without_control_groups" in line.message for line in caplog.records) == 1

    async def eat() -> None:
        with contextlib.suppress(OSError):
            await asyncio.to_thread(infer, one, 1500.0)

    eating = asyncio.create_task(eat())
    failed = await _until_failed(replicas, "one", again=lambda: eating.done() and not eating.cancelled())
    await eating
    assert "its limit is 300 MiB" in failed
    await eventually(lambda: not replicas.processes("one"), "it is gone with its workers")


def _groups_of(id: str, fleet: Fleet) -> list[Path]:
    return [
        folder for folder in groups.leftovers(f"penstock.{fleet.settings.fleet}.") if folder.name.endswith(f".{id}")
    ]


def _quotas(id: str, fleet: Fleet) -> list[int]:
    files = [folder / file for folder in _groups_of(id, fleet) for file in ("cpu.max", "cpu.cfs_quota_us")]
    return [int(file.read_text().split()[0]) for file in files if file.exists()]


async def _until_failed(fleet: Fleet, id: str, again=lambda: False) -> str:
    by = time.monotonic() + 40
    while True:
        one = fleet.replica(id)
        if one is not None and one.state is ReplicaState.FAILED:
            return one.reason
        assert time.monotonic() < by and not again(), f"{id} did not fail"
        await asyncio.sleep(0.02)
