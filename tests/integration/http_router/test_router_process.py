"""Router processes as a platform runs them: a real runtime behind, and a controller that comes, speaks and goes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from aiohttp import web
from router_harness import Caller, Replica, echo, endpoint, post, replicas, silent, until
from running_server import ServerFactory

from penstock.client import Client
from penstock.fleet.routes import Arm, Endpoint, Report, Table, Upstream
from penstock.fleet.spec import Requests

MODEL = "class Double:\n    def predict(self, x: list[float]) -> list[float]:\n        return [2 * one for one in x]\n"


@pytest.fixture
def state() -> Iterator[Path]:
    """A short path: that of a Unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="penstock-") as name:
        yield Path(name)


class RouterProcess:
    """One router. `port` is free, or that of `listening`."""

    def __init__(self, state: Path, *arguments: str, listening: socket.socket | None = None, id: str = "r1") -> None:
        if listening is None:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = int(free.getsockname()[1])
            where, fds = ["--port", str(self.port)], ()
        else:
            self.port = int(listening.getsockname()[1])
            where, fds = ["--fd", str(listening.fileno())], (listening.fileno(),)
        self.log = state / f"{id}.log"
        with self.log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "penstock.fleet.router", "--state", str(state), "--id", id, *where, *arguments],
                stderr=errors, stdout=errors, pass_fds=fds,
            )  # fmt: skip

    async def until_ready(self) -> None:
        by = time.monotonic() + 30
        while time.monotonic() < by:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                caller = await self.caller()
                caller.send(b"GET /v2/health/ready HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                if (await caller.answer()).status == 200:
                    return
            await asyncio.sleep(0.02)
        raise AssertionError("the router is not ready:\n" + self.log.read_text())

    async def caller(self) -> Caller:
        return Caller(*await asyncio.open_connection("127.0.0.1", self.port))

    async def ended(self) -> int:
        async with asyncio.timeout(20):
            return await asyncio.to_thread(self.process.wait)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def running(*routers: RouterProcess) -> Iterator[None]:
    try:
        yield
    finally:
        for router in routers:
            router.kill()


def write_table(state: Path, *endpoints: Endpoint, version: int = 1) -> None:
    (state / "routes.json").write_bytes(msgspec.json.encode(Table(version, endpoints)))


class Controller:
    """The controller's side of the two calls, on a real socket."""

    def __init__(self, state: Path) -> None:
        self.table = Table(0)
        self.reports: list[Report] = []
        self.asked: list[tuple[int, str]] = []
        self._changed = asyncio.Event()
        self._state = state
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.add_routes([web.get("/internal/routes", self._routes), web.post("/internal/reports", self._report)])
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.UnixSite(self._runner, str(self._state / "fleet.sock")).start()

    async def die(self) -> None:
        assert self._runner is not None
        self._changed.set()
        await self._runner.cleanup()

    def publish(self, *endpoints: Endpoint, version: int) -> None:
        self.table = Table(version, endpoints)
        self._changed.set()
        self._changed = asyncio.Event()

    async def _routes(self, request: web.Request) -> web.Response:
        after = int(request.query["after"])
        self.asked.append((after, request.query["router"]))
        if self.table.version <= after:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(float(request.query["timeout_s"])):
                    await self._changed.wait()
        if self.table.version <= after:
            return web.Response(status=304)
        return web.Response(body=msgspec.json.encode(self.table), content_type="application/json")

    async def _report(self, request: web.Request) -> web.Response:
        self.reports.append(msgspec.json.decode(await request.read(), type=Report))
        return web.Response(body=b"{}", content_type="application/json")


async def test_without_a_controller_the_last_table_serves_a_real_model(
    state: Path, server: ServerFactory, tmp_path: Path
) -> None:
    (tmp_path / "model.py").write_text(MODEL)
    runtime = server({"double": str(tmp_path / "model.py") + ":Double"})
    write_table(state, endpoint(Upstream("a", runtime.http.removeprefix("http://")), name="double"))
    router = RouterProcess(state)
    with running(router):
        await router.until_ready()

        def predict() -> object:
            with Client(f"http://127.0.0.1:{router.port}") as client:
                return client.infer("double", {"x": [1.0, 2.0]})

        answer = await asyncio.to_thread(predict)
        assert "4." in str(answer)
        caller = await router.caller()
        caller.send(b"GET /v2/models/double/ready HTTP/1.1\r\nHost: a\r\n\r\n")
        ready = await caller.answer()
        assert json.loads(ready.body) == {"name": "double", "ready": True} and ready.headers["penstock-revision"] == "1"
        router.process.send_signal(signal.SIGTERM)
        assert await router.ended() == 0


async def test_sigterm_answers_what_is_on_its_way_and_a_second_one_does_not_wait(state: Path) -> None:
    async with replicas(Replica(silent)) as (replica,):
        write_table(state, endpoint(replica))
        for twice in (False, True):
            router = RouterProcess(state, "--grace-s", "20")
            with running(router):
                await router.until_ready()
                caller = await router.caller()
                caller.send(post(b"{}", "Penstock-Timeout-Ms: 800" if not twice else "X: 1"))
                seen = len(replica.seen)
                await until(lambda seen=seen: len(replica.seen) > seen)  # type: ignore[misc]
                router.process.send_signal(signal.SIGTERM)
                if twice:
                    await asyncio.sleep(0.1)
                    router.process.send_signal(signal.SIGTERM)
                    assert await router.ended() == 1
                else:
                    assert (await caller.answer()).status == 504, "it was waited for"
                    assert await router.ended() == 0


async def test_the_table_is_followed_kept_and_survives_the_controller(state: Path) -> None:
    controller = Controller(state)
    async with replicas(Replica(echo)) as (replica,):
        router = RouterProcess(state)
        with running(router):
            await controller.start()
            controller.publish(endpoint(replica), version=7)
            await router.until_ready()
            caller = await router.caller()
            caller.send(post(b"one"))
            assert (await caller.answer()).body == b"one"
            await until(lambda: any(report.table_version == 7 for report in controller.reports))
            cache = state / "routes.json"
            await until(cache.exists)
            assert stat.S_IMODE(cache.stat().st_mode) == 0o600
            await controller.die()
            for _ in range(20):
                caller.send(post(b"two"))
                assert (await caller.answer()).body == b"two"
            again = Controller(state)
            await again.start()
            again.publish(endpoint(replica, name="other"), version=9)
            await until(lambda: any(report.table_version == 9 for report in again.reports))
            assert (7, "r1") in again.asked
            caller.send(post(b"three") + post(b"four", path="/predict/other"))
            assert [(await caller.answer()).status for _ in range(2)] == [404, 200]
            await until(lambda: msgspec.json.decode(cache.read_bytes(), type=Table).version == 9)
            await again.die()


async def test_a_router_starts_from_its_cache_and_without_one_that_can_be_read(state: Path) -> None:
    async with replicas(Replica(echo)) as (replica,):
        write_table(state, endpoint(replica))
        router = RouterProcess(state)
        with running(router):
            await router.until_ready()
            caller = await router.caller()
            caller.send(post(b"abc"))
            assert (await caller.answer()).body == b"abc"
        (state / "routes.json").write_text("{broken")
        router = RouterProcess(state)
        with running(router):
            await until(lambda: "cached_routes_unusable" in router.log.read_text())
            assert router.process.poll() is None


@pytest.mark.alone
async def test_waking_is_told_at_once_and_the_load_each_second(state: Path) -> None:
    controller = Controller(state)
    await controller.start()
    controller.publish(Endpoint("fraud", (), 1, waking=True, requests=Requests()), version=1)
    async with replicas(Replica(echo)) as (replica,):
        router = RouterProcess(state)
        with running(router):
            await router.until_ready()
            callers = [await router.caller() for _ in range(5)]
            await until(lambda: len(controller.reports) > 0)
            await asyncio.sleep(0.2)
            before = time.monotonic()
            for caller in callers:
                caller.send(post(b"abc"))
            await until(lambda: any(load.waiting for report in controller.reports for load in report.loads))
            assert time.monotonic() - before < 0.7, "at once, not with the next report"
            await until(lambda: controller.reports[-1].loads != () and controller.reports[-1].loads[0].waiting == 5)
            (load,) = controller.reports[-1].loads
            assert (load.deployment, load.revision) == ("fraud", 0)
            controller.publish(endpoint(replica), version=2)
            for caller in callers:
                assert (await caller.answer()).body == b"abc"
            await until(
                lambda: any(
                    load.revision == 1 and load.queue_wait_s > 0.0
                    for report in controller.reports
                    for load in report.loads
                )
            )
            arrived = sum(load.requests for report in controller.reports for load in report.loads)
            assert arrived == 5, "each request is counted once"
    await controller.die()


async def test_failing_replicas_are_reported(state: Path) -> None:
    controller = Controller(state)
    await controller.start()
    async with replicas(Replica(echo)) as (replica,):
        controller.publish(endpoint(Upstream("dead", "127.0.0.1:1"), replica), version=1)
        router = RouterProcess(state)
        with running(router):
            await router.until_ready()
            caller = await router.caller()
            for _ in range(20):
                caller.send(post(b"abc"))
                assert (await caller.answer()).body == b"abc"
            await until(lambda: any("dead" in report.failing for report in controller.reports))
    await controller.die()


async def test_several_routers_accept_from_one_socket(state: Path) -> None:
    async with replicas(Replica(echo)) as (replica,):
        write_table(state, endpoint(replica))
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen(1000)
            os.set_inheritable(listening.fileno(), True)
            one = RouterProcess(state, listening=listening, id="r1")
            two = RouterProcess(state, listening=listening, id="r2")
            with running(one, two):
                await one.until_ready()
                await until(lambda: "router_serving" in two.log.read_text())
                one.kill()
                for _ in range(5):
                    caller = await two.caller()
                    caller.send(post(b"abc"))
                    assert (await caller.answer()).body == b"abc"
                    caller.close()


async def test_without_tenants_only_this_machine_is_let_in(state: Path) -> None:
    async with replicas(Replica(echo)) as (replica,):
        write_table(state, Endpoint("fraud", (Arm(1, 1.0, (replica.upstream,)),), 1))
        router = RouterProcess(state, "--host", "0.0.0.0")
        with running(router):
            await router.until_ready()
            caller = await router.caller()
            caller.send(post(b"abc"))
            assert (await caller.answer()).status == 401


def test_what_cannot_be_had_is_said(state: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for arguments, text in ((["--port", str(port)], "cannot listen"), (["--id", "a b"], "--id")):
            done = subprocess.run(
                [sys.executable, "-m", "penstock.fleet.router", "--state", str(state), *arguments],
                capture_output=True, text=True, timeout=30, check=False,
            )  # fmt: skip
            assert done.returncode == 2 and text in done.stderr
