"""F4: a worker that wants more memory than it may have ends alone, everybody is told why, and it is replaced."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confined import confine, group, need_mounts

import penstock
from penstock.core.errors import PenstockError, WorkerLost
from penstock.runtime.workers.memory_group import MemoryGroup

pytestmark = pytest.mark.alone

__all__ = ["confine", "group"]  # fixtures

MODELS = """
import os, time
import penstock

PLAIN = {"inputs": {"mb": "f8[n]"}, "outputs": {"pid": "i8[n]"}}


@penstock.model(**PLAIN, batch=False)
def hungry(mb):
    eaten = bytearray(int(mb[0]) << 20)
    eaten[::4096] = b"x" * len(eaten[::4096])
    time.sleep(0.5 if mb[0] > 100 else 0.0)  # longer than between two looks of a server that watches by itself
    return {"pid": [os.getpid()] * len(mb)}


@penstock.model(**PLAIN)
def calm(mb):
    return {"pid": [os.getpid()] * len(mb)}
"""

LIMIT_MB = 160


def models(folder: Path, **options: object) -> dict[str, dict[str, object]]:
    file = folder / "hungry.py"
    file.write_text(MODELS)
    return {
        "hungry": {"path": f"{file}:hungry", "workers": 1, "warm_up": False, **options},
        "calm": {"path": f"{file}:calm", "workers": 1},
    }


def pid_of(client: penstock.Client, model: str, mb: float = 1.0) -> int:
    return int(client.infer(model, {"mb": np.array([mb], np.float64)}, timeout_s=30.0)["pid"][0])


def after_replacement(client: penstock.Client, model: str, seconds: float = 30.0) -> int:
    end = time.monotonic() + seconds
    while True:
        try:
            return pid_of(client, model)
        except PenstockError:
            assert time.monotonic() < end, "it was not replaced in time"
            time.sleep(0.05)


def causes(running: Any) -> list[str]:
    lines = [json.loads(line) for line in running.log.read_text().splitlines() if line.startswith("{")]
    return [line["cause"] for line in lines if line["event"] == "worker_ended"]


def ends_alone(running: Any, expected: str) -> None:
    with penstock.Client(running.http, retries=0, timeout_s=60.0) as client:
        hungry, calm = pid_of(client, "hungry"), pid_of(client, "calm")
        with pytest.raises(WorkerLost, match=expected):
            pid_of(client, "hungry", 2 * LIMIT_MB)
        assert pid_of(client, "calm") == calm
        assert after_replacement(client, "hungry") != hungry
        assert pid_of(client, "calm") == calm
    assert [cause for cause in causes(running) if expected in cause] == causes(running)
    assert len(causes(running)) == 1


def own_groups(pid: int) -> list[Path]:
    return list(Path("/sys/fs/cgroup").rglob(f"penstock-{pid}-*"))


def can_make_groups() -> bool:
    made = MemoryGroup.create(64 << 20)
    return made is not None and made.remove()


def test_worker_that_wants_more_memory_than_its_limit_ends_alone(server: Callable[..., Any], tmp_path: Path) -> None:
    running = server(models(tmp_path, max_memory_bytes=f"{LIMIT_MB}MiB"))
    if can_make_groups():  # then it is the kernel that watches
        ends_alone(running, f"the kernel killed it: it wanted more memory than {LIMIT_MB} MiB, its limit")
        assert len(own_groups(running.pid)) == 1
    else:
        ends_alone(running, "it had to be killed: it held")
    assert running.stop() == 0
    assert own_groups(running.pid) == []


def test_where_no_groups_can_be_made_the_server_looks_itself(
    server: Callable[..., Any], confine: Callable[..., None], tmp_path: Path
) -> None:
    need_mounts()
    confine("mount -t tmpfs none /sys/fs/cgroup", mounts=True)
    running = server(models(tmp_path, max_memory_bytes=f"{LIMIT_MB}MiB"))
    ends_alone(running, "it had to be killed: it held")


def test_without_a_limit_the_kernel_ends_a_worker_rather_than_the_server(
    server: Callable[..., Any], confine: Callable[..., None], group: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = group("memory")
    (folder / "memory.limit_in_bytes").write_text(str(300 << 20))
    confine(f"echo $$ > {folder}/cgroup.procs")
    running = server(models(tmp_path))
    ends_alone(running, "the kernel killed it: out of memory")


def test_kill_by_somebody_is_not_blamed_on_memory(server: Callable[..., Any], tmp_path: Path) -> None:
    running = server(models(tmp_path, max_memory_bytes=f"{LIMIT_MB}MiB"))
    with penstock.Client(running.http, retries=0) as client:
        hungry = pid_of(client, "hungry")
        os.kill(hungry, 9)
        assert after_replacement(client, "hungry") != hungry
    assert causes(running) == ["it was killed by SIGKILL (by someone, or by the kernel for memory)"]


def test_groups_of_servers_that_were_killed_are_removed_by_the_next(server: Callable[..., Any], tmp_path: Path) -> None:
    if not can_make_groups():
        pytest.skip("needs to make a control group for memory")
    limited = models(tmp_path, max_memory_bytes=f"{LIMIT_MB}MiB")
    killed = server(limited)
    assert len(own_groups(killed.pid)) == 1
    killed.stop(9)
    server(limited)
    assert own_groups(killed.pid) == []
