"""A real platform, started as a user starts it: `penstock up` in a process of its own, on free ports."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

if TYPE_CHECKING:  # KServe's part runs in an environment without penstock
    from penstock import Client, Fleet

START_S = 90.0
STOP_S = 90.0
T = TypeVar("T")


@dataclass
class RunningFleet:
    """One platform. `http` is its routers' base URL, `grpc` their address, `state` its folder."""

    http: str
    grpc: str
    state: Path
    process: subprocess.Popen[str]
    log: Path
    flags: tuple[str, ...] = ()
    lines: list[str] = field(default_factory=list)

    @property
    def fleet(self) -> Fleet:
        """A client of its controller."""
        from penstock import Fleet

        return Fleet(str(self.state))

    @property
    def client(self) -> Client:
        """A client of its models."""
        from penstock import Client

        return Client(self.http)

    def pid(self, name: str) -> int:
        """The process of `controller`, `router-1`, … as the platform itself names it."""
        rows = json.loads((self.state / "up.json").read_text())["processes"]
        return next(int(row["pid"]) for row in rows if row["name"] == name)

    def kill(self, name: str) -> None:
        """SIGKILL, and gone: returns once another process has the name."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGKILL)
        until(lambda: self.pid(name) != pid, f"another {name}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """The exit status after a signal."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(STOP_S)


FleetFactory = Callable[..., RunningFleet]


def until(found: Callable[[], T], what: str, within_s: float = 60.0) -> T:
    """What `found` gives, once that is true. Fails naming `what`; errors of `found` count as not yet."""
    from penstock.core.errors import PenstockError

    by = time.monotonic() + within_s
    last: object = None
    while time.monotonic() < by:
        try:
            last = found()
            if last:
                return last
        except (OSError, StopIteration, ValueError, PenstockError) as error:
            last = error
        time.sleep(0.05)
    pytest.fail(f"no {what} within {within_s:g} s; at the end: {last!r}")


def start(state: Path, *flags: str, http_port: int = 0, grpc_port: int = 0) -> RunningFleet:
    """Starts a platform and returns when it is up. Raises with its log when it does not come up."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = state / "up.log"
    command = [sys.executable, "-m", "penstock.cli", "up", "--state", str(state), "--log-format", "json"]
    command += ["--http-port", str(http_port), "--grpc-port", str(grpc_port), *flags]
    with log.open("a") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    assert process.stdout is not None
    killer = threading.Timer(START_S, process.kill)
    killer.start()
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line)
            with contextlib.suppress(json.JSONDecodeError):
                event = json.loads(line)
                if event.get("event") == "up":
                    threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True).start()
                    return RunningFleet(event["http"], event["grpc"], state, process, log, flags, lines)
    finally:
        killer.cancel()
    raise RuntimeError(f"the platform did not come up (exit status {process.wait()}):\n{log.read_text()[-4000:]}")


def end(running: RunningFleet) -> None:
    """Stops a platform for good, whatever is left of it."""
    try:
        if running.process.poll() is None:
            running.stop()
        else:  # it was killed: what it left behind is stopped as a user would
            down = [sys.executable, "-m", "penstock.cli", "down", "--state", str(running.state), "--grace-s", "5"]
            subprocess.run(down, capture_output=True, timeout=STOP_S, check=False)
    except subprocess.TimeoutExpired:
        running.process.kill()
        running.process.wait()
        pytest.fail(
            f"the platform did not stop within {STOP_S:g} s; its log ends with\n{running.log.read_text()[-3000:]}"
        )


@contextlib.contextmanager
def fleets() -> Iterator[FleetFactory]:
    """Starts platforms that live as long as the context. Their folders have short names, for the sake of sockets."""
    root = Path(tempfile.mkdtemp(prefix="penstock-"))
    started: list[RunningFleet] = []

    def factory(*flags: str, state: Path | None = None, **ports: int) -> RunningFleet:
        running = start(state or root / f"fleet{len(started)}", *flags, **ports)
        started.append(running)
        return running

    try:
        yield factory
    finally:
        try:
            for running in started:
                end(running)
        finally:
            shutil.rmtree(root, ignore_errors=True)


@pytest.fixture
def fleet() -> Iterator[FleetFactory]:
    """Starts platforms that live until the test ends."""
    with fleets() as factory:
        yield factory


@pytest.fixture(scope="module")
def shared_fleet() -> Iterator[FleetFactory]:
    """Starts platforms that live until the module's tests end, for tests that leave them as they found them."""
    with fleets() as factory:
        yield factory
