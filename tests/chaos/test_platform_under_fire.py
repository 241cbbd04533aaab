"""The ledger through the platform: updates, bad updates, rollbacks and kills of every kind of process, under load."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running_fleet import FleetFactory, RunningFleet, until

from penstock import ledger
from penstock.core.errors import LoadError
from penstock.ledger.book import ALLOWED, CUT, ERROR, OK, REFUSED

MODEL = """
import penstock

@penstock.model(inputs={"x": "f8[n, 4]"}, outputs={"y": "f8[n, 4]"})
def triple(x):
    return {"y": 3 * x}
"""


def deployed(running: RunningFleet, tmp_path: Path, replicas: int) -> str:
    (tmp_path / "triple.py").write_text(MODEL)
    running.fleet.deploy("m", f"{tmp_path}/triple.py:triple", replicas=replicas, requests={"idempotent": True})
    running.fleet.wait("m")
    ready = lambda: sum(one.state == "ready" for one in running.fleet.status("m").replicas) == replicas  # noqa: E731
    until(ready, f"{replicas} replicas")
    return f"{tmp_path}/triple.py:triple"


def updates(running: RunningFleet, tmp_path: Path, count: int) -> Iterator[str]:
    """Each step of rollouts: an update, an update that fails, a rollback; in turn."""
    platform = running.fleet
    for number in range(count):
        platform.deploy("m", env={"ROUND": str(number)})
        platform.wait("m")
        yield f"update {number}"
        if number % 3 == 1:
            (tmp_path / "broken.py").write_text("raise RuntimeError('does not load')\n")
            platform.deploy("m", f"{tmp_path}/broken.py:triple", rollout={"ready_timeout_s": 30.0})
            with pytest.raises(LoadError):
                platform.wait("m")
            platform.deploy("m", f"{tmp_path}/triple.py:triple")
            platform.wait("m")
            yield f"bad update {number}"
        if number % 3 == 2:
            platform.rollback("m")
            platform.wait("m")
            yield f"rollback {number}"


def kills(running: RunningFleet, what: str, count: int) -> Iterator[str]:
    for number in range(count):
        if what == "replica":
            victim = next(one for one in running.fleet.status("m").replicas if one.state == "ready")
            assert victim.pid is not None
            os.kill(victim.pid, signal.SIGKILL)
            gone = victim.id
            until(
                lambda gone=gone: (
                    [one.state for one in running.fleet.status("m").replicas if one.id != gone].count("ready") == 2
                ),
                "a replica in its place",
            )
        else:
            running.kill(what)
            until(lambda: running.fleet.status("m").phase == "ready", "a platform that is ready")
        yield f"kill {what} {number}"


# Kills of the controller and of routers have short forms in test_platform.py.
SHORT = [pytest.mark.timeout(300)]
LONG = [pytest.mark.chaos, pytest.mark.timeout(5400)]
CUT_OFF = ALLOWED | {CUT, REFUSED}  # a router takes with it what it holds


@pytest.mark.parametrize(
    ("what", "count", "rate", "allowed"),
    [
        pytest.param("update", 2, 100.0, ALLOWED, marks=SHORT),
        pytest.param("replica", 1, 100.0, ALLOWED, marks=SHORT),
        pytest.param("update", 100, 500.0, ALLOWED, marks=LONG),
        pytest.param("controller", 30, 500.0, ALLOWED, marks=LONG),
        pytest.param("router-1", 30, 500.0, CUT_OFF, marks=LONG),
        pytest.param("replica", 30, 500.0, ALLOWED, marks=LONG),
    ],
)
async def test_no_request_is_lost(
    fleet: FleetFactory, tmp_path: Path, figure: Callable[..., None],
    what: str, count: int, rate: float, allowed: frozenset[str],
) -> None:  # fmt: skip
    running = await asyncio.to_thread(fleet, "--routers", "2")
    await asyncio.to_thread(deployed, running, tmp_path, 2)
    steps = updates(running, tmp_path, count) if what == "update" else kills(running, what, count)
    done: list[str] = []
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def scenario() -> None:
        try:
            done.extend(steps)
        finally:
            loop.call_soon_threadsafe(stop.set)

    # The load lasts as long as the scenario, in pieces of some seconds, each of which is judged.
    work = asyncio.create_task(asyncio.to_thread(scenario))
    reports = []
    target = ledger.Target(running.http, "m", grpc=running.grpc)
    for number in itertools.count():
        plan = ledger.Plan(
            (ledger.Phase(5.0, rate),),
            deadline_s=10.0,
            grpc_share=0.1,
            allowed=allowed | {OK},
            seed=number,
            slack_s=1.0,
        )
        reports.append(await ledger.run(target, plan))
        if stop.is_set():
            break
    await work
    # Statistics are of the one replica that was asked for them; the platform's own counts have tests of their own.
    broken = [one for report in reports for one in report.violations if one.kind != "miscounted"]
    sent = sum(report.summary().sent for report in reports)
    outcomes: dict[str, int] = {}
    for report in reports:
        for outcome, number in report.summary().outcomes.items():
            outcomes[outcome] = outcomes.get(outcome, 0) + number
    assert len(done) >= count
    assert broken == [], outcomes
    assert outcomes.get(ERROR, 0) == 0
    # What was in flight on the killed process may be cut or refused; a router has about rate × latency of those.
    unanswered = sum(number for outcome, number in outcomes.items() if outcome != OK)
    assert unanswered <= (0 if what in ("update", "controller") else 40 * count), outcomes
    promise = {"update": "P3a", "controller": "F9", "router-1": "F8", "replica": "P2a"}[what]
    figure(promise, f"requests lost in {count} × {what} of the platform at {rate:.0f}/s", 0, "requests", goal="0")
    figure(promise, f"requests without a right answer in {count} × {what} of the platform", unanswered, f"of {sent}")
