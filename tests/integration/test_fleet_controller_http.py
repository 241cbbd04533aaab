"""The controller's process and its HTTP API, with replicas in memory."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, text

from penstock.fleet.controller import alone
from penstock.fleet.controller.status import FIGURES

KEY = "a-key-of-some-length"
DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"


class Process:
    """`python -m penstock.fleet.controller`."""

    def __init__(self, state: Path, *flags: str, driver: str = "memory") -> None:
        self.state = state
        command = [sys.executable, "-m", "penstock.fleet.controller", "--state", str(state), "--driver", driver]
        self.process = subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True)

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(30)
        finally:
            assert self.process.stderr is not None
            self.process.stderr.close()


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    running: list[Process] = []

    def starts(*flags: str, **more: Any) -> Process:
        running.append(Process(tmp_path / "state", *flags, **more))
        return running[-1]

    yield starts
    for one in running:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        if one.process.stderr is not None:
            one.process.stderr.close()


class Api:
    """Calls over the Unix socket, or over TCP when a URL is given."""

    def __init__(self, state: Path) -> None:
        connector = aiohttp.UnixConnector(str(state / "fleet.sock"))
        self.session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(20))
        self.url = "http://controller"

    async def __call__(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        data = json.dumps(body) if body is not None and not isinstance(body, bytes) else body
        if data is not None and "content-type" not in sent:
            sent["content-type"] = "application/json"
        async with self.session.request(method, self.url + path, data=data, headers=sent) as answer:
            text = await answer.text()
            try:
                return answer.status, json.loads(text)
            except json.JSONDecodeError:
                return answer.status, text

    async def until(
        self, holds: Callable[[Any], bool], path: str = "/api/v1/deployments/m", within_s: float = 20.0
    ) -> Any:
        by = time.monotonic() + within_s
        while True:
            _, document = await self("GET", path)
            if isinstance(document, dict) and holds(document):
                return document
            assert time.monotonic() < by, document
            await asyncio.sleep(0.02)


async def connected(state: Path) -> Api:
    api = Api(state)
    by = time.monotonic() + 30
    while True:
        try:
            status, _ = await api("GET", "/healthz")
            assert status == 200
            return api
        except (aiohttp.ClientError, OSError):
            assert time.monotonic() < by
            await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    running = Process(tmp_path_factory.mktemp("controller") / "state")

    async def answers() -> None:
        await (await connected(running.state)).session.close()

    asyncio.run(answers())
    yield running
    assert running.stop() == 0


@pytest.fixture
async def api(shared: Process) -> AsyncIterator[Api]:
    made = await connected(shared.state)
    yield made
    _, listed = await made("GET", "/api/v1/deployments")
    for one in listed["deployments"]:
        await made("DELETE", f"/api/v1/deployments/{one['name']}")
    for router in (await made("GET", "/healthz"))[1]["routers"]:  # of the test: they would be waited for
        await made("POST", "/internal/reports", {"router": router, "table_version": 2**60, "seconds": 0.1})
    await made.until(lambda document: not document["deployments"], "/api/v1/deployments")
    await made.session.close()


def ready(document: Any) -> bool:
    return bool(document.get("phase") == "ready")


async def test_one_deployment_from_wish_to_its_end(api: Api) -> None:
    status, dry = await api("PUT", "/api/v1/deployments/m?dry_run=1", {"model": "/a", "replicas": 2})
    assert (status, dry["generation"], dry["revision"]) == (200, 1, 1)
    assert (await api("GET", "/api/v1/deployments/m"))[0] == 404
    status, made = await api("PUT", "/api/v1/deployments/m", {"model": "/a", "replicas": 2})
    assert (status, made["revision"]) == (200, 1)
    document = await api.until(ready)
    assert document["wish"]["replicas"]["minimum"] == 2
    assert [one["state"] for one in document["replicas"]] == ["ready", "ready"]
    assert document["arms"][0] | {"reason": ""} == {
        "revision": 1, "weight": 1.0, "phase": "ready", "shadow": False, "replicas_ready": 2, "replicas_wished": 2,
        "requests": 0, "errors": 0, "error_rate": None, "p50_ms": None, "p99_ms": None, "rewards": 0,
        "mean_reward": None, "reason": "",
    }  # fmt: skip
    await api("PUT", "/api/v1/deployments/m", {"model": "/b", "replicas": 2})
    await api.until(lambda one: ready(one) and one["stable"] == 2)
    began = time.monotonic()
    status, back = await api("POST", "/api/v1/deployments/m/rollback")
    assert (status, back["revision"]) == (200, 1)
    await api.until(lambda one: one["stable"] == 1)
    assert time.monotonic() - began < 5.0  # 0.1 s on a machine that has time
    status, revisions = await api("GET", "/api/v1/deployments/m/revisions")
    assert [one["number"] for one in revisions["revisions"]] == [1, 2]
    status, events = await api("GET", "/api/v1/deployments/m/events")
    assert {"created", "revision", "rollback", "switched"} <= {one["kind"] for one in events["events"]}
    last = events["events"][-1]["id"]
    assert (await api("GET", f"/api/v1/deployments/m/events?after={last}"))[1] == {"events": []}
    status, text = await api("GET", "/api/v1/deployments/m/logs")
    assert (status, text.startswith("m-1-")) == (200, True)
    assert (await api("DELETE", "/api/v1/deployments/m"))[0] == 202
    await api.until(lambda one: not one["deployments"], "/api/v1/deployments")


async def test_update_that_fails_is_told_with_its_reason(api: Api) -> None:
    await api("PUT", "/api/v1/deployments/m", {"model": "/a"})
    await api.until(ready)
    # The memory driver fails nothing by itself here: no machine has so many cores.
    await api("PUT", "/api/v1/deployments/m", {"model": "/b", "cpu": 1e9, "rollout": {"ready_timeout_s": 0.5}})
    document = await api.until(lambda one: one["phase"] == "degraded")
    assert "revision 2 failed, revision 1 serves" in document["message"]
    assert "cores" in document["revisions"][1]["reason"]
    assert [one["revision"] for one in document["arms"] if one["weight"] > 0] == [1]


async def test_output_of_replicas_that_are_gone_can_be_read(api: Api) -> None:
    await api("PUT", "/api/v1/deployments/m", {"model": "/a"})
    await api.until(ready)
    await api("PUT", "/api/v1/deployments/m", {"model": "/b", "rollout": {"keep_previous_s": 0}})
    document = await api.until(lambda one: [replica["revision"] for replica in one["replicas"]] == [2])
    status, text = await api("GET", "/api/v1/deployments/m/logs?revision=1")
    assert (status, text.startswith("m-1-")) == (200, True)
    status, text = await api("GET", "/api/v1/deployments/m/logs")
    assert text.startswith(document["replicas"][0]["id"]), "where nobody asks for one, the one that serves"
    assert (await api("GET", "/api/v1/deployments/m/logs?revision=3"))[0] == 404


async def test_traffic_is_set_by_weights_policy_promotion_and_pause(api: Api) -> None:
    await api("PUT", "/api/v1/deployments/m", {"model": "/a", "traffic": "split"})
    await api.until(ready)
    await api("PUT", "/api/v1/deployments/m", {"model": "/b", "traffic": "split"})
    await api.until(lambda one: len([arm for arm in one["arms"] if arm["weight"] > 0]) == 2)
    status, _ = await api("PUT", "/api/v1/deployments/m/traffic", {"weights": {"1": 90, "2": 10}})
    assert status == 200
    await api.until(lambda one: [round(arm["weight"], 3) for arm in one["arms"]] == [0.9, 0.1])
    status, changed = await api("PUT", "/api/v1/deployments/m/traffic", {"policy": "thompson"})
    assert [one["key"] for one in changed["changed"]] == [
        "traffic.policy",
        "traffic.options.weights.1",
        "traffic.options.weights.2",
    ]
    await api.until(lambda one: one["policy"] == "thompson" and one["arms"][0]["weight"] == pytest.approx(0.5))
    await api("PUT", "/api/v1/deployments/m/traffic", {"weights": {"1": 1, "2": 3}})
    await api.until(lambda one: one["paused"] and one["arms"][1]["weight"] == 0.75)
    assert (await api("PUT", "/api/v1/deployments/m/traffic", {"pause": False}))[0] == 200
    await api.until(lambda one: not one["paused"] and one["arms"][1]["weight"] != 0.75)
    assert (await api("PUT", "/api/v1/deployments/m/traffic", {"promote": 2}))[0] == 200
    await api.until(lambda one: one["stable"] == 2 and len(one["arms"]) == 1)
    for wrong in ({}, {"weights": {}}, {"weights": {"1": -1}}, {"weights": {"x": 1}}, {"promote": "2"}, {"retire": 2},
                  {"pause": 1}, {"pause": True, "promote": 2}, {"policy": "cannary"}, {"wieghts": {"1": 1}},
                  {"sticky": {"by": "ip", "name": "a"}}, {"shadow": {"revision": 2, "share": 5}}):  # fmt: skip
        status, document = await api("PUT", "/api/v1/deployments/m/traffic", wrong)
        assert status in (400, 404), (wrong, document)
    assert (await api("PUT", "/api/v1/deployments/m/traffic", {"pause": True}))[0] == 200, "nothing wrong was kept"


async def test_long_poll_answers_when_something_changed(api: Api) -> None:
    await api("PUT", "/api/v1/deployments/m", {"model": "/a"})
    await api.until(ready)
    for _ in range(20):  # what followed from the deployment may still come in
        _, listed = await api("GET", "/api/v1/deployments")
        began = time.monotonic()
        _, same = await api("GET", f"/api/v1/deployments?after={listed['version']}&timeout_s=0.3")
        if same["version"] == listed["version"]:
            break
    assert same["version"] == listed["version"]
    assert time.monotonic() - began >= 0.3
    waiting = asyncio.create_task(api("GET", f"/api/v1/deployments?after={listed['version']}&timeout_s=20"))
    await asyncio.sleep(0.05)
    await api("PUT", "/api/v1/deployments/m", {"model": "/a", "replicas": 2})
    _, later = await asyncio.wait_for(waiting, 5)
    assert later["version"] > listed["version"]


async def test_routers_poll_for_the_table_and_report(api: Api) -> None:
    await api("PUT", "/api/v1/deployments/m", {"model": "/a", "replicas": "0..2"})
    await api.until(ready)
    _, table = await api("GET", "/internal/routes?router=r1")
    assert table["endpoints"][0]["arms"][0]["upstreams"][0]["http"].startswith("127.0.0.1:")
    assert (await api("GET", f"/internal/routes?after={table['version']}&router=r1&timeout_s=0.1"))[0] == 304
    assert "r1" in (await api("GET", "/healthz"))[1]["routers"]
    report = {"router": "r1", "table_version": table["version"], "seconds": 1.0,
              "loads": [{"deployment": "m", "revision": 1, "concurrency": 2.0, "requests": 7, "queue_wait_s": 0.0, "waiting": 3}]}  # fmt: skip
    assert (await api("POST", "/internal/reports", report)) == (
        200,
        {"exhausted": {}, "shares": {}, "tokens_exhausted": {}},
    )
    await api.until(lambda one: one["waiting"] == 3 and one["concurrency"] == 2.0)
    waiting = asyncio.create_task(api("GET", f"/internal/routes?after={table['version']}&router=r1"))
    await asyncio.sleep(0.05)
    await api("PUT", "/api/v1/deployments/m", {"model": "/b"})
    _, newer = await asyncio.wait_for(waiting, 10)
    assert newer["version"] > table["version"]
    for wrong in ({}, {"router": "", "table_version": 1, "seconds": 1}, []):
        assert (await api("POST", "/internal/reports", wrong))[0] == 400
    assert (await api("GET", "/internal/routes"))[0] == 400


async def test_tenants_are_made_with_a_key_that_is_shown_once(api: Api) -> None:
    status, made = await api("PUT", "/api/v1/tenants/acme", {"rate": 5, "quota": 2, "quota_period_s": 3600})
    assert status == 200
    assert len(made["key"]) > 30
    status, again = await api("PUT", "/api/v1/tenants/acme", {"rate": 6, "quota": 2, "quota_period_s": 3600})
    assert "key" not in again
    _, listed = await api("GET", "/api/v1/tenants")
    assert [one["rate"] for one in listed["tenants"]] == [6]
    assert made["key"] not in json.dumps(listed)
    assert "sha256" not in json.dumps(listed)
    _, table = await api("GET", "/internal/routes?router=r2")
    report = {"router": "r2", "table_version": table["version"], "seconds": 1.0, "quota_used": {"acme": 2, "ghost": 1}}
    _, reply = await api("POST", "/internal/reports", report)
    assert reply["exhausted"]["acme"] > time.time()
    for wrong in ({"rate": 0}, {"burst": 0}, {"weight": 0}, {"quota": -1}, {"rates": 1}, {"deployments": "m"}):
        assert (await api("PUT", "/api/v1/tenants/other", wrong))[0] == 400
    assert (await api("PUT", "/api/v1/tenants/No%20Name", {}))[0] == 400
    assert (await api("DELETE", "/api/v1/tenants/acme"))[0] == 200
    assert (await api("DELETE", "/api/v1/tenants/acme"))[0] == 404


async def test_wrong_calls_are_refused_and_say_why(api: Api) -> None:
    cases = [
        ("PUT", "/api/v1/deployments/m", {"model": "/a", "replcas": 1}, 400, "replicas"),
        ("PUT", "/api/v1/deployments/m", {"model": "a"}, 400, "absolute"),
        ("PUT", "/api/v1/deployments/m", {"model": "/a", "traffic": "cannary"}, 400, "canary"),
        (
            "PUT",
            "/api/v1/deployments/m",
            {"model": "/a", "scaling": {"policy": "rps", "options": {"targt": 1}}},
            400,
            "target",
        ),
        ("PUT", "/api/v1/deployments/M%20x", {"model": "/a"}, 400, "name"),
        ("PUT", "/api/v1/deployments/m", {"model": "/a", "name": "other"}, 400, "other"),
        ("PUT", "/api/v1/deployments/m", b"[1]", 400, "object"),
        ("PUT", "/api/v1/deployments/m", b"{", 400, "JSON"),
        ("PUT", "/api/v1/deployments/m", b"[" * 100_000, 400, "JSON"),
        ("PUT", "/api/v1/deployments/m", b" " * (5 << 20), 413, "bytes"),
        ("GET", "/api/v1/deployments/none", None, 404, "no deployment"),
        ("DELETE", "/api/v1/deployments/none", None, 404, "no deployment"),
        ("POST", "/api/v1/deployments/none/rollback", {}, 404, "no deployment"),
        ("POST", "/api/v1/deployments/m/rollback", {"too": 1}, 400, "to"),
        ("GET", "/api/v1/deployments?after=x", None, 400, "after"),
        ("GET", "/api/v2/deployments", None, 404, "/api/v2"),
        ("POST", "/api/v1/deployments", {}, 405, "GET"),
    ]
    for method, path, body, status, word in cases:
        got, document = await api(method, path, body)
        assert (got, word in document["error"]) == (status, True), (method, path, got, document)


async def test_web_pages_are_kept_out(api: Api) -> None:
    body = {"model": "/a"}
    for headers in (
        {"Origin": "http://evil.example"}, {"Sec_Fetch_Site": "cross-site"}, {"Origin": "null"},
    ):  # fmt: skip
        status, _ = await api("PUT", "/api/v1/deployments/m", body, **headers)
        assert status == 403, headers
    status, _ = await api("PUT", "/api/v1/deployments/m", json.dumps(body).encode(), **{"content-type": "text/plain"})
    assert status == 400  # a form cannot send JSON's own type
    assert (await api("GET", "/api/v1/deployments/m"))[0] == 404


async def test_metrics_are_those_of_the_docs(api: Api) -> None:
    await api("PUT", "/api/v1/deployments/m", {"model": "/a"})
    await api.until(ready)
    _, text = await api("GET", "/metrics")
    assert 'penstock_fleet_replicas{deployment="m",state="ready"} 1.0' in text
    assert 'penstock_fleet_revision_share{deployment="m",revision="1"} 1.0' in text
    given = set(re.findall(r"^# TYPE (penstock_\w+)", text, re.M))
    assert given == {row.name for row in FIGURES}
    docs = DOCS.read_text()
    for row in FIGURES:
        assert f"| `{row.name}` | {row.kind} | " in docs, row.name


async def test_feedback_counts_for_the_decision_of_its_token(api: Api, shared: Process) -> None:
    status, document = await api("POST", "/api/v1/deployments/none/feedback", {"token": "x", "reward": 1})
    assert status == 404
    await api("PUT", "/api/v1/deployments/m", {"model": "/a", "traffic": "thompson"})
    document = await api.until(ready)
    from penstock.fleet.feedback.token import sign
    from penstock.fleet.store.batch import Decision

    _, table = await api("GET", "/internal/routes?router=r3")
    made = Decision("0123456789abcdef", "m", document["experiment"], 1, 1.0, time.time())
    token = sign(made, table["secret"])
    status, answer = await api("POST", "/api/v1/deployments/m/feedback", {"token": token, "reward": 0.25})
    assert (status, answer["reward"]) == (200, 0.25)
    status, _ = await api("POST", "/api/v1/deployments/m/feedback", {"token": token, "reward": 1})
    assert status == 409
    await api.until(lambda one: one["arms"][0]["rewards"] == 1 and one["arms"][0]["mean_reward"] == 0.25)
    assert (await api("GET", "/api/v1/deployments/m/comparison"))[1] == {"shadow": None, "comparisons": []}
    assert (await api("GET", "/api/v1/deployments/m/decisions"))[0] == 200


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
_KEYS = st.sampled_from(
    ["model", "replicas", "scaling", "traffic", "rollout", "requests", "routes", "env", "cpu", "secrets"]
)


@given(document=st.dictionaries(_KEYS | st.text(max_size=8), _VALUES, max_size=4) | _VALUES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_document_is_an_internal_error(shared: Process, document: object) -> None:
    import http.client
    import socket

    connection = http.client.HTTPConnection("controller", timeout=20)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(shared.state / "fleet.sock"))
    for method, path in (
        ("PUT", "/api/v1/deployments/f?dry_run=1"),
        ("PUT", "/api/v1/deployments/f/traffic"),
        ("PUT", "/api/v1/tenants/x"),
    ):
        if path.endswith("x") and not document:
            continue  # a tenant without limits is one
        connection.request(method, path, json.dumps(document), {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        assert answer.status in (200, 400, 404), (answer.status, path)
    connection.close()


async def test_socket_is_its_owners_and_the_port_needs_the_key(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    before = os.umask(0)
    try:
        process = start("--admin-port", "0", "--admin-key-file", str(file))
    finally:
        os.umask(before)
    api = await connected(process.state)
    assert stat.S_IMODE((process.state / "fleet.sock").stat().st_mode) == 0o600
    assert stat.S_IMODE(process.state.stat().st_mode) == 0o700
    port = (await api("GET", "/healthz"))[1]["admin_port"]
    await api.session.close()
    api.session, api.url = aiohttp.ClientSession(), f"http://127.0.0.1:{port}"
    assert (await api("GET", "/healthz"))[0] == 200
    assert (await api("GET", "/api/v1/deployments"))[0] == 401
    assert (await api("GET", "/api/v1/deployments", Authorization="Bearer wrong"))[0] == 401
    assert (await api("GET", "/api/v1/deployments", Authorization=f"Bearer {KEY}"))[0] == 200
    # Routers and the supervisor are on this machine: their calls, with digests and the secret, are not on the port.
    assert (await api("GET", "/internal/routes?router=x", Authorization=f"Bearer {KEY}"))[0] == 404
    assert (await api("POST", "/internal/shutdown", Authorization=f"Bearer {KEY}"))[0] == 404
    await api.session.close()
    assert process.stop() == 0


def test_port_without_a_key_is_refused(start: Start) -> None:
    process = start("--admin-port", "0")
    assert process.process.wait(30) == 2
    assert process.process.stderr is not None
    assert "--admin-key-file" in process.process.stderr.read()


async def test_second_controller_of_a_state_never_acts(start: Start) -> None:
    first = start()
    api = await connected(first.state)
    second = start()
    assert await asyncio.to_thread(second.process.wait, 30) == 2
    assert (await api("GET", "/healthz"))[0] == 200
    await api.session.close()
    assert first.stop() == 0


async def test_second_controller_of_a_postgresql_never_acts(
    start: Start, postgres: Callable[[], str], tmp_path: Path
) -> None:
    url = postgres()
    first = start("--database", url)
    api = await connected(first.state)
    await api("PUT", "/api/v1/deployments/m", {"model": "/a"})
    await api.until(ready)
    second = Process(tmp_path / "other", "--database", url)
    try:
        assert await asyncio.to_thread(second.process.wait, 30) == 2
    finally:
        second.stop(signal.SIGKILL)
    first.stop(signal.SIGKILL)  # the lock goes with the connection
    await api.session.close()
    third = start("--database", url)
    api = await connected(third.state)
    _, document = await api("GET", "/api/v1/deployments/m")
    assert document["generation"] == 1
    await api.session.close()
    assert third.stop() == 0


async def test_controller_that_lost_its_database_holds_it_again_or_ends(
    start: Start, postgres: Callable[[], str]
) -> None:
    """The lock goes with its connection, and whoever has it acts."""
    url = postgres()
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT")
    locks = (
        "from pg_locks join pg_stat_activity using (pid) where locktype = 'advisory' and datname = current_database()"
    )
    process = start("--database", url)
    api = await connected(process.state)
    with engine.connect() as admin, engine.connect() as other:

        async def until(count: int, which: str) -> None:
            by = time.monotonic() + 20
            while admin.execute(text(f"select count(*) {locks} and {which}")).scalar() != count:
                assert time.monotonic() < by, which
                await asyncio.sleep(0.02)

        def lose() -> None:
            assert admin.execute(text(f"select pg_terminate_backend(pid) {locks} and granted")).scalar()

        await until(1, "granted")
        lose()
        await until(1, "granted")
        await api("PUT", "/api/v1/deployments/m", {"model": "/a"})
        await api.until(ready)
        await api.session.close()
        # Who waits for the lock has it first.
        waiting = asyncio.create_task(
            asyncio.to_thread(other.execute, text("select pg_advisory_lock(:key)"), {"key": alone.ADVISORY})
        )
        await until(1, "not granted")
        lose()
        await waiting
        assert await asyncio.to_thread(process.process.wait, 30) == 2
    engine.dispose()


async def test_state_survives_kill_9_in_the_middle_of_changes(start: Start) -> None:
    version, accepted = 0, 0
    for round_ in range(3):
        process = start()
        api = await connected(process.state)
        health = (await api("GET", "/healthz"))[1]
        assert health["version"] >= version
        stop = threading.Timer(0.3, process.process.kill)
        stop.start()
        try:
            for number in range(1000):
                status, _ = await api("PUT", f"/api/v1/deployments/d{number % 5}", {"model": f"/{round_}/{number}"})
                assert status == 200
                accepted += 1
                version = (await api("GET", "/healthz"))[1]["version"]
        except (aiohttp.ClientError, OSError):
            pass
        stop.join()
        await api.session.close()
        process.stop(signal.SIGKILL)
    assert accepted > 5
    process = start()
    api = await connected(process.state)
    await api.until(lambda one: all(map(ready, one["deployments"])), "/api/v1/deployments")
    _, listed = await api("GET", "/api/v1/deployments")
    assert sum(one["generation"] for one in listed["deployments"]) >= accepted  # what was accepted is there
    await api.session.close()
    assert process.stop() == 0


async def test_shutdown_stops_replicas_and_ends_the_process(start: Start) -> None:
    process = start()
    api = await connected(process.state)
    await api("PUT", "/api/v1/deployments/m", {"model": "/a", "replicas": 2})
    await api.until(ready)
    assert await api("POST", "/internal/shutdown?grace_s=1") == (200, {"replicas": 0})
    await api.session.close()
    assert await asyncio.to_thread(process.process.wait, 30) == 0
