"""Looks at a server from outside while a scenario runs: what its health endpoints say, and what it leaves behind."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from harness.servers import Family, birth, family

from scenarios import MODEL

EVERY_S = 0.1
PROBE_TIMEOUT_S = 1.0
PATHS = {"live": "/v2/health/live", "ready": "/v2/health/ready", "model": f"/v2/models/{MODEL}/ready"}


@dataclass(frozen=True, slots=True)
class Probe:
    """One question to a health endpoint. `at` is when it was asked, from the run's beginning; None is no answer."""

    at: float
    took_s: float
    status: int | None


class HealthWatch:
    """Asks each health endpoint ten times a second, over a new connection each time, as kubelet does."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self.begun = 0.0
        self.probes: dict[str, list[Probe]] = {name: [] for name in PATHS}

    def start(self) -> None:
        """The run begins now."""
        self.begun = time.monotonic()
        self._threads = [threading.Thread(target=self._ask, args=(name,), daemon=True) for name in PATHS]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, name: str) -> None:
        while not self._over.wait(EVERY_S):
            began = time.monotonic()
            status = probe(self._port, PATHS[name])
            self.probes[name].append(Probe(began - self.begun, time.monotonic() - began, status))


def probe(port: int, path: str) -> int | None:
    """The status of a GET; None when there is no answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def command_line(pid: int) -> str:
    """The words of a process's command line; "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def shared_memory(pids: Family) -> set[Path]:
    """Named shared memory that processes have mapped."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                path = line[line.index("/dev/shm/") :] if "/dev/shm/" in line else ""
                if path and not path.endswith(" (deleted)"):
                    found.add(Path(path))
    return found


def left_of(known: Family, mark: str) -> Family:
    """Processes of a family that still live, also those that have lost its mark."""
    return {pid: began for pid, began in known.items() if birth(pid) == began} | family(mark)


def kill_all(pids: Family) -> None:
    """SIGKILL to each that is still the process it was."""
    for pid, began in pids.items():
        if birth(pid) == began:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def held(port: int) -> bool:
    """Whether a server could not listen on a port of loopback."""
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False
