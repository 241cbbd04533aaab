"""Starts a server, waits for its first right answer, weighs it and ends it with everything it started."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from harness import clients
from harness.wire import Call
from harness.workload import Workload

MARK = "SERVER_BENCH_RUN"  # in the environment of all that a server starts, so that daemons are found as well
Family = dict[int, int]  # process id → when it began, in ticks since boot
START_TIMEOUT_S = 60.0


class ServerFailed(Exception):
    """A server did not start, or answered wrongly. The message ends with the last lines it printed."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a peer needs to write down how it is started."""

    python: Path  # interpreter of the peer's environment
    folder: Path  # a fresh working folder, removed afterwards
    workload: Workload
    http_port: int
    grpc_port: int
    extra_ports: tuple[int, ...]  # for metrics, management and the like

    @property
    def bin(self) -> Path:
        return self.python.parent


@dataclass(frozen=True, slots=True)
class Start:
    """How a server is started: its command line, and what its environment adds to ours."""

    command: Sequence[str | int | Path]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Weight:
    """Memory of a whole process tree in bytes; PSS shares common pages out, RSS counts them for everyone."""

    pss: int
    rss: int
    processes: int


@dataclass(slots=True)
class Running:
    """A started server: where it listens and what it weighs. `calls` is by route: `json`, `binary`, `grpc`."""

    calls: Mapping[str, Call]
    place: Place
    process: subprocess.Popen[bytes]
    mark: str
    log: Path
    first_answer_s: float = 0.0

    def port(self, call: Call) -> int:
        return self.place.grpc_port if call.grpc else self.place.http_port

    def weigh(self) -> Weight:
        pids = family(self.mark)
        sizes = [memory(pid) for pid in pids]
        return Weight(sum(pss for pss, _ in sizes), sum(rss for _, rss in sizes), len(pids))

    def tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@contextlib.contextmanager
def running(
    python: Path, workload: Workload, calls: Mapping[str, Call], make_start: Callable[[Place], Start]
) -> Iterator[Running]:
    """A server that has given its first right answer on each of `calls`; ended on leaving. Raises ServerFailed."""
    with tempfile.TemporaryDirectory(prefix="server-bench-") as name:
        folder = Path(name)
        http_port, grpc_port, *extra = free_ports(6)
        place = Place(python, folder, workload, http_port, grpc_port, tuple(extra))
        start = make_start(place)
        mark = uuid.uuid4().hex
        log = folder / "server.log"
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "PENSTOCK_"))}
        environment |= {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", MARK: mark, **start.env}
        environment["PATH"] = f"{place.bin}:{environment['PATH']}"
        with log.open("wb") as output:
            began = time.perf_counter()
            process = subprocess.Popen(
                [str(part) for part in start.command],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            server = Running(calls, place, process, mark, log)
            try:
                for index, call in enumerate(calls.values()):
                    wait_for_answer(server, call, began)
                    if index == 0:
                        server.first_answer_s = time.perf_counter() - began
                yield server
            finally:
                end(server)


def wait_for_answer(server: Running, call: Call, began: float) -> None:
    """Asks until the answer is right. Raises ServerFailed when the process ends or time is up."""
    workload = server.place.workload
    message = call.encode(workload.inputs[:1])
    seen: Exception | str = "no answer"
    while time.perf_counter() - began < START_TIMEOUT_S:
        if server.process.poll() is not None:
            raise ServerFailed(f"ended with code {server.process.returncode}\n{server.tail()}")
        try:
            answer = clients.ask(call, server.port(call), message)
            if call.constant or np.allclose(answer, workload.answers[:1], rtol=1e-3, atol=1e-4):
                return
            seen = f"wrong answer {answer}"
        except Exception as error:  # a server that is starting may answer anything at all
            seen = error
        time.sleep(0.02)
    raise ServerFailed(f"{call.name}: no right answer within {START_TIMEOUT_S:.0f} s: {seen!r}\n{server.tail()}")


def end(server: Running) -> None:
    """Ends the server's process group, then whatever else it started. Raises ServerFailed when something stays."""
    known = family(server.mark)

    def left() -> Family:
        """Those known from the beginning that still live, and newcomers with the mark."""
        alive = {pid: began for pid, began in known.items() if birth(pid) == began}
        return alive | family(server.mark)

    for code, patience_s in ((signal.SIGTERM, 8.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.process.pid, code)
        if code is signal.SIGKILL:
            for pid in left():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, code)
        give_up = time.monotonic() + patience_s
        while time.monotonic() < give_up:
            server.process.poll()
            if not left():
                server.process.wait()
                return
            if code is signal.SIGTERM and server.process.returncode is not None:
                break  # the main process is gone: what remains does not end by itself
            time.sleep(0.05)
    raise ServerFailed(f"processes {sorted(left())} could not be ended")


def family(mark: str) -> Family:
    """Processes that carry the mark in their environment, and their descendants: a process that writes its title over
    its environment has lost the mark."""
    wanted = f"{MARK}={mark}".encode()
    found: Family = {}
    children: dict[int, list[tuple[int, int]]] = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        pid = int(entry.name)
        with contextlib.suppress(OSError):
            fields = Path(entry.path, "stat").read_bytes().rpartition(b") ")[2].split()
            if fields[0] in b"ZX":
                continue
            began = int(fields[19])
            children.setdefault(int(fields[1]), []).append((pid, began))
            if wanted in Path(entry.path, "environ").read_bytes():
                found[pid] = began
    waiting = list(found)
    while waiting:
        for pid, began in children.get(waiting.pop(), []):
            if pid not in found:
                found[pid] = began
                waiting.append(pid)
    return found


def birth(pid: int) -> int | None:
    """When a living process began, in ticks since boot: with its id, this tells it from a later one. None when it has
    ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
    except OSError:
        return None
    return None if fields[0] in b"ZX" else int(fields[19])


def memory(pid: int) -> tuple[int, int]:
    """(PSS, RSS) in bytes; zeros for a process that has gone."""
    sizes = {"Pss:": 0, "Rss:": 0}
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            name, *rest = line.split()
            if name in sizes:
                sizes[name] = int(rest[0]) * 1024
    return sizes["Pss:"], sizes["Rss:"]


def free_ports(count: int) -> list[int]:
    """Loopback ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
