"""The controller's process with real replicas: `penstock serve` processes of the local driver."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from test_fleet_controller_http import Api, Process, connected, ready

from penstock.fleet.local.process import identity

MODEL = """
import penstock

@penstock.model(inputs={"x": "f4[n, 1]"}, outputs={"y": "f4[n, 1]"})
def model(x):
    return {"y": x + %s}
"""


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "state"


def model(folder: Path, name: str, adds: str) -> str:
    (folder / f"{name}.py").write_text(MODEL % adds)
    return f"{folder / name}.py:model"


def running(pids: list[int]) -> list[int]:
    """Those that have not ended; whether their parent has taken note of that is not ours."""
    return [pid for pid in pids if identity(pid) is not None]


async def asked(http: str) -> float:
    """One answer of a replica."""
    body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}]}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://{http}/v2/models/m/infer", json=body) as answer,
    ):
        document = await answer.json()
        assert answer.status == 200, document
        return float(document["outputs"][0]["data"][0])


async def serving(api: Api) -> list[dict[str, Any]]:
    """The replicas in the route table."""
    _, table = await api("GET", "/internal/routes?router=test")
    return [one for end in table["endpoints"] for arm in end["arms"] if arm["weight"] > 0 for one in arm["upstreams"]]


async def test_real_replicas_through_update_kill_and_rollback(
    tmp_path: Path, state: Path, figure: Callable[..., None]
) -> None:
    first, second, bad = model(tmp_path, "one", "1"), model(tmp_path, "two", "2"), model(tmp_path, "bad", "None +")
    process = Process(state, driver="local")
    try:
        api = await connected(state)
        status, refused = await api("PUT", "/api/v1/deployments/m", {"model": str(tmp_path / "none.py") + ":model"})
        assert (status, "no file" in refused["error"]) == (400, True)
        await api("PUT", "/api/v1/deployments/m", {"model": first})
        await api.until(ready, within_s=40)
        (one,) = await serving(api)
        assert await asked(one["http"]) == 2.0

        # A replica that dies is replaced, and is out of the table at once.
        _, document = await api("GET", "/api/v1/deployments/m")
        pid = document["replicas"][0]["pid"]
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        # For a moment there may be none: the dead one is gone, and the next one not yet wished for.
        await api.until(lambda now: [one for one in now["replicas"] if one["pid"] not in (pid, None)])
        assert time.monotonic() - began < 10  # 1 s on a machine that has time
        await api.until(ready, within_s=40)

        # A bad revision leaves the old one alone.
        before = await serving(api)
        await api("PUT", "/api/v1/deployments/m", {"model": bad})
        document = await api.until(
            lambda now: now["phase"] == "degraded" and "revision 2 failed" in now["message"], within_s=50
        )
        assert await serving(api) == before
        assert "bad.py" in document["message"]

        # The controller is killed while a good one comes up: the next one finishes that, with the same replicas.
        await api("PUT", "/api/v1/deployments/m", {"model": second})
        await api.session.close()
        process.stop(signal.SIGKILL)
        process = Process(state, driver="local")
        api = await connected(state)
        document = await api.until(lambda now: now.get("stable") == 3, within_s=40)
        (two,) = await serving(api)
        assert await asked(two["http"]) == 3.0
        assert before[0]["id"] in {one["id"] for one in document["replicas"]}

        # Back: the old one is warm.
        began = time.monotonic()
        await api("POST", "/api/v1/deployments/m/rollback")
        await api.until(lambda now: now["stable"] == 1)
        seconds = time.monotonic() - began
        assert await serving(api) == before
        figure("F15", "rollback to a warm revision, until it has all requests", seconds, "s", goal="≤ 1 s")
        assert seconds < 5.0  # 1 s on a machine that has time
        assert await asked(before[0]["http"]) == 2.0

        # The same path with other content is another revision.
        (tmp_path / "one.py").write_text(MODEL % "10")
        _, changed = await api("PUT", "/api/v1/deployments/m", {"model": first})
        assert [one["key"] for one in changed["changed"]] == ["content"]
        await api.until(lambda now: now["stable"] == 4, within_s=40)
        (four,) = await serving(api)
        assert await asked(four["http"]) == 11.0

        # Under its number a revision serves nothing else, whatever becomes of its files.
        (tmp_path / "one.py").write_text(MODEL % "20")
        os.kill((await api("GET", "/api/v1/deployments/m"))[1]["replicas"][-1]["pid"], signal.SIGKILL)
        document = await api.until(lambda now: "deploy again" in now["message"], within_s=40)
        assert (document["phase"], await serving(api)) == ("degraded", [])
        (tmp_path / "one.py").write_text(MODEL % "10")
        await api.until(ready, within_s=40)
        (again,) = await serving(api)
        assert await asked(again["http"]) == 11.0

        pids = [one["pid"] for one in (await api("GET", "/api/v1/deployments/m"))[1]["replicas"]]
        assert (await api("POST", "/internal/shutdown?grace_s=5"))[0] == 200
        await api.session.close()
        assert process.process.wait(30) == 0
        assert running(pids) == []
    finally:
        if process.process.poll() is None:  # stop what it runs, then itself
            stopper = threading.Timer(20, process.process.kill)
            stopper.start()
            api = await connected(state)
            await api("POST", "/internal/shutdown?grace_s=0")
            await api.session.close()
            process.process.wait(30)
            stopper.cancel()
        process.stop(signal.SIGKILL)
