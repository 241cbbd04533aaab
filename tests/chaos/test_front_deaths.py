"""F8 and F9: a front or the core dies, or stops. The others serve, nothing is left over, the counters stay true."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import server_processes as processes

import penstock
from penstock import ledger
from penstock.core.errors import PenstockError

MODEL = """
import penstock

@penstock.model(inputs={"x": "f8[n, 4]"}, outputs={"y": "f8[n, 4]"})
def triple(x):
    return {"y": 3 * x}
"""
Factory = Callable[..., Any]


@pytest.fixture
def served(server: Factory, tmp_path: Path) -> Callable[..., Any]:
    (tmp_path / "triple.py").write_text(MODEL)
    return lambda **options: server({"m": {"path": f"{tmp_path}/triple.py:triple", "workers": 2}}, **options)


def answered(text: str) -> int:
    """Answers with a status of 2xx that the server has counted, over all fronts."""
    found = re.findall(r"^penstock_responses_total\{(.*)\} (\S+)$", text, re.MULTILINE)
    return sum(int(float(number)) for labels, number in found if '"2xx"' in labels)


@pytest.mark.parametrize(
    ("seconds", "every_s"), [(2.4, 1.0), pytest.param(120.0, 3.0, marks=[pytest.mark.chaos, pytest.mark.timeout(300)])]
)
async def test_killed_front_costs_its_open_connections_and_nothing_else(
    served: Callable[..., Any], figure: Callable[..., None], seconds: float, every_s: float
) -> None:
    running = served(fronts=2)
    killed: list[int] = []

    def kill_front() -> None:
        found = processes.fronts(running.pid)
        if found:
            killed.append(found[0])
            processes.kill(found[:1], signal.SIGKILL)

    times = [at * every_s for at in range(1, int((seconds - 0.5) / every_s) + 1)]
    plan = ledger.Plan(
        phases=(ledger.Phase(seconds, 150.0),), deadline_s=2.0, grpc_share=0.3, slack_s=0.5,
        faults=tuple(ledger.Fault(at, "kill a front", call=kill_front) for at in times),
        allowed=ledger.ALLOWED | {"cut"},
    )  # fmt: skip
    report = await ledger.run(ledger.Target(running.http, "m", grpc=running.grpc), plan)
    summary = report.summary()
    assert len(killed) >= len(times) // 2, "no front came back to be killed again"
    # A gRPC channel tells of its lost connection by UNAVAILABLE, with no word of ours.
    cut = [one for one in report.entries if one.outcome == "cut" or (one.outcome == "unavailable" and one.protocol == "grpc")]  # fmt: skip
    assert [str(one) for one in report.violations if one.kind != "miscounted"] == []
    in_time = [at for one in cut for at in times if one.ended is not None and -0.2 < one.ended - at < 1.5]
    assert len(in_time) >= len(cut), f"cut at other moments than the deaths: {cut[:3]}"
    assert summary.outcomes["ok"] > 0.9 * summary.sent, summary.outcomes
    processes.until(lambda: processes.fronts(running.pid), 10, "the front is replaced")
    figure("F8", "requests cut by each death of one of two fronts, at 150 req/s", len(cut) / len(killed), "requests")


async def test_counters_never_fall_when_a_front_is_killed(served: Callable[..., Any]) -> None:
    running = served(fronts=2)
    url = f"{running.http}/v2/models/m/infer"
    async with penstock.AsyncClient(running.http) as client:
        address = urlsplit(url)
        body = b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP64","data":[1,2,3,4]}]}'
        head = f"POST {address.path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        for _ in range(40):  # each on a connection of its own, so that both fronts answer some
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            writer.write(head.encode() + body)
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            writer.close()
        before = 0
        for _ in range(100):  # a front reports four times a second
            before = answered(await client.metrics())
            if before >= 40:
                break
            await asyncio.sleep(0.05)
        (victim,) = processes.fronts(running.pid)
        processes.kill([victim], signal.SIGKILL)
        processes.until(lambda: processes.fronts(running.pid) not in ([], [victim]), 10, "the front is replaced")
    async with penstock.AsyncClient(running.http) as client:
        assert answered(await client.metrics()) >= 40 <= before


@pytest.mark.chaos
async def test_stopped_front_is_replaced(served: Callable[..., Any]) -> None:
    running = served(fronts=2)
    (victim,) = processes.fronts(running.pid)
    processes.kill([victim], signal.SIGSTOP)
    processes.until(lambda: processes.fronts(running.pid) not in ([], [victim]), 15, "the front is replaced")
    assert "front_stuck" in running.log.read_text()
    assert processes.alive([victim]) == []


@pytest.mark.chaos
def test_stopped_front_does_not_hold_up_a_stop(served: Callable[..., Any]) -> None:
    running = served(fronts=2, grace_s=1.0)
    (victim,) = processes.fronts(running.pid)
    processes.kill([victim], signal.SIGSTOP)
    began = time.monotonic()
    assert running.stop() == 0
    assert time.monotonic() - began < 1.0 + 4.0
    assert processes.alive([victim]) == []


@pytest.mark.parametrize("fronts", [2, pytest.param(1, marks=pytest.mark.chaos)])
async def test_killed_core_leaves_no_process_and_its_successor_takes_its_ports(
    served: Callable[..., Any], figure: Callable[..., None], fronts: int
) -> None:
    running = served(fronts=fronts)
    children = processes.workers(running.pid) + processes.fronts(running.pid)
    assert len(children) == 2 + fronts - 1
    ports = {"http_port": urlsplit(running.http).port, "grpc_port": int(running.grpc.rpartition(":")[2])}
    took: list[float] = []

    def kill_core() -> None:
        processes.kill([running.pid], signal.SIGKILL)
        died = time.monotonic()
        processes.until(lambda: not processes.alive(children), 5, "workers and fronts end with the core")
        took.append(time.monotonic() - died)
        served(fronts=fronts, **ports)
        took.append(time.monotonic() - died)

    plan = ledger.Plan(
        phases=(ledger.Phase(3.0, 100.0),), grpc_share=0.3, slack_s=0.5,
        faults=(ledger.Fault(0.5, "kill the core", call=kill_core),), allowed=ledger.ALLOWED | {"cut", "refused"},
    )  # fmt: skip
    report = await ledger.run(ledger.Target(running.http, "m", grpc=running.grpc), plan)
    unequal = [str(one) for one in report.violations if one.kind != "miscounted"]  # the successor counts from 0
    assert unequal == [], "cut or refused, but never without an end"
    figure("F9", "after the core was killed, its workers and fronts are gone after", took[0] * 1e3, "ms")
    figure("F9", "a killed server serves again on its ports after its restart", took[1], "s")


async def test_front_that_cannot_be_started_does_not_hang_the_start(tmp_path: Path) -> None:
    """A front whose start the system refuses (no more processes) fails the first start, and is tried again later."""
    from penstock.runtime.fronts.supervisor import Fronts
    from penstock.runtime.options import ServerOptions

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.executable", str(tmp_path / "nowhere"))
        with pytest.raises(PenstockError, match="cannot be started"):
            async with asyncio.timeout(5):
                await Fronts(None, ServerOptions(fronts=2), (), 1, None).start()  # type: ignore[arg-type]  # no engine: it fails before
