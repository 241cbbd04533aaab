"""F24: the wall clock jumps. Deadlines, keep-alive, polling, watchdogs and backoff go by the monotonic clock."""

from __future__ import annotations

import ast
import http.client
import os
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from libc_faults import Faults
from server_processes import workers
from versions_under_load import add, ask, eventually, traffic_to

import penstock
from penstock.core.errors import DeadlineExceeded

Factory = Callable[..., Any]
SOURCES = Path(penstock.__file__).parent
HOUR_S = 3600

# Where the time of day is meant: dates for people and other machines, and in the platform times that outlive a process,
# in its database. No request's time depends on it.
_LASTS = "times of the platform's state outlive the process that wrote them"
WALL_CLOCK = {
    ("fleet/controller/deployments_api.py", "time"): _LASTS,
    ("fleet/controller/loop.py", "time"): _LASTS,
    ("fleet/controller/traffic_api.py", "time"): _LASTS,
    ("fleet/drivers/local.py", "time"): _LASTS,
    ("fleet/drivers/memory.py", "time"): _LASTS,
    ("fleet/local/leftovers.py", "time"): _LASTS,
    ("fleet/local/life.py", "time"): _LASTS,
    ("fleet/router/decision.py", "time"): "decisions are logged with their time, and tokens have an age",
    ("fleet/router/feedback.py", "time"): "tokens have an age",
    ("fleet/router/grpc_pass.py", "time"): "quotas are per day of the calendar",
    ("fleet/router/main.py", "time"): "quotas are per day of the calendar",
    ("fleet/router/mirror.py", "time"): "examples of a comparison have their time",
    ("fleet/router/own.py", "time"): "quotas are per day of the calendar",
    ("fleet/router/recorder.py", "time"): _LASTS,
    ("fleet/store/rows.py", "time"): _LASTS,
    ("client/calls.py", "now"): "Retry-After may be a date",
    ("protocols/openai_http/answering.py", "time"): "answers say when they were made",
    ("runtime/engines/remote/__init__.py", "time"): "Retry-After may be a date",
    ("runtime/language/kept.py", "time"): "files, batches and answers say when they were made, and are kept for days",
    ("runtime/language/texts.py", "time"): "chat templates may say today's date",
    ("runtime/listeners/heads.py", "time"): "the Date header",
    ("telemetry/otlp.py", "time_ns"): "spans say when they began",
    ("telemetry/metrics.py", "time"): "the time of the last inference, in V2's statistics",
}


def wall_clock_calls(file: Path) -> set[str]:
    """Names of the functions of the time of day that a module uses, called or handed on."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module, name = node.value.id, node.attr
            if (module == "time" and name in {"time", "time_ns", "ctime", "localtime", "CLOCK_REALTIME"}) or (
                module in ("datetime", "date") and name in {"now", "utcnow", "today"}
            ):
                found.add(name)
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            found |= {alias.name for alias in node.names} & {"time", "time_ns", "ctime", "localtime"}
    return found


def test_the_wall_clock_is_read_only_where_the_time_of_day_is_meant() -> None:
    used = {(str(file.relative_to(SOURCES)), name) for file in SOURCES.rglob("*.py") for name in wall_clock_calls(file)}
    assert used == set(WALL_CLOCK)


def date_of(running: Any) -> datetime:
    connection = http.client.HTTPConnection(running.http.removeprefix("http://"), timeout=10)
    connection.request("GET", "/v2/health/live")
    response = connection.getresponse()
    response.read()
    connection.close()
    return parsedate_to_datetime(str(response.getheader("date")))


@pytest.mark.parametrize("jumps", [2, pytest.param(20, marks=[pytest.mark.chaos, pytest.mark.timeout(300)])])
def test_jumps_of_an_hour_time_nothing_out_and_delay_nothing(
    server: Factory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jumps: int
) -> None:
    faults = Faults(tmp_path, tmp_path / "nowhere", monkeypatch)
    folder = tmp_path / "m"
    add(folder, 1)
    add(tmp_path / "slow", 1, wait_s=1.0)
    running = server(
        {
            "m": {"path": str(folder), "timeout_s": 20.0, "hang_s": 5.0, "keep_previous_s": 600.0},
            "slow": {"path": str(tmp_path / "slow"), "warm_up": False, "workers": 2, "batch": False},
        },
        poll_s=0.2, keep_alive_s=60.0, fronts=2,
    )  # fmt: skip
    kept = http.client.HTTPConnection(running.http.removeprefix("http://"), timeout=10)
    kept.request("GET", "/v2/health/live")
    kept.getresponse().read()
    x = {"x": np.ones((1, 2), "f4")}
    with traffic_to(running, "m") as traffic, penstock.Client(running.http, retries=0, timeout_s=30.0) as client:
        for turn in range(jumps):
            jump_s = HOUR_S if turn % 2 == 0 else -HOUR_S
            before = sum(traffic.answers.values())
            faults.set(clock_s=jump_s)
            eventually(lambda jump_s=jump_s: abs((date_of(running) - datetime.now(UTC)).total_seconds() - jump_s) < 30)
            began = time.monotonic()
            with pytest.raises(DeadlineExceeded):  # its deadline holds, neither at once nor in an hour
                client.infer("slow", x, timeout_s=0.5)
            assert 0.4 < time.monotonic() - began < 10.0
            assert client.infer("slow", x, timeout_s=20.0).version == "1"
            number = 2 * turn + 3
            add(folder, number)  # is polled, settles, is warmed
            eventually(partial(lambda number: ask(running, "m")[0] == str(number), number))
            kept.request("GET", "/v2/health/ready")
            assert kept.getresponse().read() is not None  # the connection was kept over the jump
            assert sum(traffic.answers.values()) > before
        assert running.log is not None
        assert "worker_replaced" not in running.log.read_text()
        victim = ask(running, "m")[2]
    faults.set(clock_s=-HOUR_S)
    os.kill(victim, signal.SIGKILL)  # with no traffic: what a worker holds is lost, truthfully
    eventually(lambda: victim not in workers(running.pid))
    eventually(lambda: ask(running, "m")[2] != victim)
    log = running.log.read_text()
    assert "worker_stuck" not in log
    assert "front_stuck" not in log
    began = time.monotonic()
    assert running.stop() == 0
    assert time.monotonic() - began < 20.0
