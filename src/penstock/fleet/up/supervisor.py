"""Runs the platform on this machine until a stop signal: binds the public ports, starts the controller and the routers,
keeps them running, and stops them in the right order.

Theory of operation. This process serves nothing and holds no state, so that it has no reason to die. The HTTP port's
socket is made here and handed to the routers, which all accept from it: while one is dead its callers wait in the
queue of the socket, or are taken by another. gRPC's library makes its own sockets, so that port is only kept free for
the routers, which share it (SO_REUSEPORT).

With TLS, routers accept without it from one more socket, on loopback: graphs and models' code call other endpoints
there, whatever names the certificate holds. They need keys as everybody else.

When this process is killed, controller, routers and replicas go on serving. The next `penstock up` takes over: it makes
its own sockets on the same ports, starts new routers, and then lets the old ones drain; replicas are adopted.

Stopping: routers finish what is in flight and end; then the controller drains and stops the replicas, and ends.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import aiohttp

from penstock import config
from penstock.core.errors import InvalidInput, NotReady
from penstock.fleet.local.leftovers import end_all
from penstock.fleet.up import tree
from penstock.fleet.up.children import Child
from penstock.fleet.up.options import PREFIX, UpOptions
from penstock.telemetry import logs
from penstock.tls import tls_context

log = logging.getLogger("penstock.up")

SOCKET = "fleet.sock"
_START_S = (
    60.0  # for the controller and the routers to come up; they are Python processes on a machine that may be busy
)
_LOOK_S = 0.05
_BACKLOG = 4096


@dataclass(frozen=True, slots=True)
class UpStatus:
    """A platform that answers: where."""

    http_url: str
    grpc_address: str | None
    admin_url: str | None
    state: Path
    pid: int


def state_folder(given: str | None) -> Path:
    """The folder that a flag names, else the usual one."""
    return Path(given).expanduser().absolute() if given else config.data_folder(config.environment()) / "penstock"


async def run(options: UpOptions, on_ready: Callable[[UpStatus], None]) -> None:
    """Serves until SIGTERM, SIGINT or SIGHUP; a second signal does not wait for what is in flight.

    Raises:
        PenstockError: a port is taken, another platform uses the state, a process does not come up.
    """
    logs.configure(options.log_format, options.log_level)
    folder = state_folder(options.state)
    tree.prepare(folder)
    with tree.lock(folder):
        platform = _Platform(options, folder)
        try:
            await platform.start()
            if not platform.told.is_set():
                on_ready(platform.status())
            await platform.told.wait()
        finally:
            await platform.stop()


class _Platform:
    def __init__(self, options: UpOptions, folder: Path) -> None:
        self.told = asyncio.Event()  # to stop
        self._options = options
        self._folder = folder
        self._hurry = False
        files = options.tls_cert, options.tls_key
        self._tls = None if files[0] is None or files[1] is None else (_absolute(files[0]), _absolute(files[1]))
        self._before = [one for one in tree.members(folder) if one.name != "up"]
        self._http: socket.socket | None = None
        self._grpc: socket.socket | None = None  # bound, never listening
        self._inner: socket.socket | None = None  # for replicas, where the public ports speak TLS
        # Not on a command line, which everybody on the machine can read: the URL may hold a password.
        database = {} if options.database is None else {f"{PREFIX}DATABASE": options.database}
        self._environment = {**config.environment(), **database}
        self._controller = Child("controller", self._controller_command, environment=self._environment)
        self._routers: list[Child] = []
        self._admin_port: int | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        for told_by in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(told_by, self._signalled, told_by)
        known = tree.ports(self._folder) if self._before else {}
        ours = set(known.values())
        if self._tls:
            tls_context(*self._tls)  # says at once what is wrong with the files
            self._inner = _inner(known.get("inner", 0), ours)
        self._http = _bound("http_port", self._options.host, self._options.http_port, ours)
        self._http.listen(_BACKLOG)
        if self._options.grpc:
            self._grpc = _bound("grpc_port", self._options.host, self._options.grpc_port, ours)
        for one in [one for one in self._before if one.name == "controller"]:  # replicas and routers go on meanwhile
            await asyncio.to_thread(tree.end, one, 10.0)
        self._controller.on_start = self._write
        await self._controller.start()
        await self._until("the controller", self._controller, self._controller_answers)
        for number in range(self._options.routers):
            router = Child(
                f"router-{number + 1}", partial(self._router_command, number),
                [one.fileno() for one in (self._http, self._inner) if one is not None], self._environment,
            )  # fmt: skip
            router.on_start = self._write
            self._routers.append(router)
            await router.start()
        for router in self._routers:
            await self._until(router.name, router, partial(self._router_answers, router))
        for one in [one for one in self._before if one.name != "controller"]:
            await asyncio.to_thread(tree.end, one, self._options.grace_s + 5.0)

    async def stop(self) -> None:
        """Routers first, which finish what is in flight; then the controller, with all replicas."""
        log.info("stopping", extra={"grace_s": self._options.grace_s})
        grace_s = 0.0 if self._hurry else self._options.grace_s
        await asyncio.gather(*(router.stop(within_s=grace_s + 5.0) for router in self._routers))
        ours = self._controller.pid is not None or self._controller.ended is not None  # else those of another one
        if self._controller.pid is not None:
            try:
                await self._call(
                    "POST", f"/internal/shutdown?grace_s={0.0 if self._hurry else grace_s}", grace_s + 15.0
                )
            except (aiohttp.ClientError, OSError, TimeoutError, NotReady) as error:
                log.warning("controller_did_not_stop_replicas", extra={"error": str(error) or type(error).__name__})
        await self._controller.stop(within_s=15.0)
        if ours:  # a controller that had just died, or was starting anew, has stopped none
            await asyncio.to_thread(end_all, self._folder / "local", grace_s)
        for held in (self._http, self._grpc, self._inner):
            if held is not None:
                held.close()
        tree.write(self._folder, (), {})

    def status(self) -> UpStatus:
        options = self._options
        host = f"[{options.host}]" if ":" in options.host else options.host
        admin = None
        if options.admin_port is not None:
            admin_host = f"[{options.admin_host}]" if ":" in options.admin_host else options.admin_host
            admin = f"http://{admin_host}:{self._admin_port}"
        grpc = None if self._grpc is None else f"{host}:{self._grpc.getsockname()[1]}"
        return UpStatus(
            f"{'https' if self._tls else 'http'}://{host}:{self._http_port()}", grpc, admin, self._folder, os.getpid()
        )

    # ------------------------------------------------------------------------------------------------------------------

    def _signalled(self, number: int) -> None:
        if self.told.is_set() and number != signal.SIGHUP:  # terminals may send that one twice
            self._hurry = True
            for router in self._routers:
                router.send(signal.SIGKILL)
            return
        self.told.set()

    def _http_port(self) -> int:
        assert self._http is not None
        return int(self._http.getsockname()[1])

    def _controller_command(self) -> list[str]:
        options = self._options
        command = [sys.executable, "-m", "penstock.fleet.controller", "--state", str(self._folder)]
        command += [
            "--driver",
            options.driver,
            "--router-url",
            f"http://{_reachable(options.host)}:{self._http_port()}" if self._inner is None else _url(self._inner),
        ]
        if options.admin_port is not None:
            command += ["--admin-host", options.admin_host, "--admin-port", str(options.admin_port)]
            command += ["--admin-key-file", str(options.admin_key_file)]
        return command + self._logging()

    def _router_command(self, number: int) -> list[str]:
        assert self._http is not None
        command = [sys.executable, "-m", "penstock.fleet.router", "--state", str(self._folder)]
        command += ["--fd", str(self._http.fileno()), "--host", self._options.host, "--id", f"router-{number + 1}"]
        command += ["--grace-s", str(self._options.grace_s)]
        if self._grpc is not None:
            command += ["--grpc-port", str(self._grpc.getsockname()[1])]
        if self._options.allow_anonymous:
            command += ["--allow-anonymous"]
        if self._tls and self._inner is not None:
            command += ["--tls-cert", self._tls[0], "--tls-key", self._tls[1]]
            command += ["--inner-fd", str(self._inner.fileno())]
        return command + self._logging()

    def _logging(self) -> list[str]:
        return ["--log-format", self._options.log_format, "--log-level", self._options.log_level]

    def _write(self) -> None:
        """Tells others which processes there are."""
        pids = [("up", os.getpid())]
        pids += [(child.name, child.pid) for child in (self._controller, *self._routers) if child.pid is not None]
        running = [one for name, pid in pids if (one := tree.member(name, pid)) is not None]
        ports = {"http": self._http_port()}
        if self._grpc is not None:
            ports["grpc"] = int(self._grpc.getsockname()[1])
        if self._inner is not None:
            ports["inner"] = int(self._inner.getsockname()[1])
        tree.write(self._folder, [*running, *self._before], ports)

    async def _until(self, what: str, child: Child, answers: Callable[[], Awaitable[None]]) -> None:
        """Returns once it answers, or when told to stop. Raises: NotReady: it ended, or took too long."""
        by = time.monotonic() + _START_S
        while not self.told.is_set():
            status = child.ended
            if status is not None:
                raise NotReady(f"{what} ended with status {status} before it answered; its last lines stand above")
            try:
                await answers()
                return
            except (aiohttp.ClientError, OSError, NotReady) as error:
                if time.monotonic() > by:
                    raise NotReady(f"{what} did not answer within {_START_S:g} s: {error}") from error
            await asyncio.sleep(_LOOK_S)

    async def _controller_answers(self) -> None:
        health = json.loads(await self._call("GET", "/healthz", 5.0))
        port = health.get("admin_port") if isinstance(health, dict) else None
        self._admin_port = port if isinstance(port, int) else self._options.admin_port

    async def _router_answers(self, router: Child) -> None:
        """A router says that it is there by asking for the route table."""
        health = json.loads(await self._call("GET", "/healthz", 5.0))
        if router.name not in health.get("routers", ()):
            raise NotReady("it has not asked for the route table yet")

    async def _call(self, method: str, path: str, timeout_s: float) -> bytes:
        connector = aiohttp.UnixConnector(str(self._folder / SOCKET))
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.request(method, f"http://controller{path}") as answer,
        ):
            body = await answer.read()
            if answer.status >= 400:
                raise NotReady(f"the controller answered {answer.status}: {body[:200].decode(errors='replace')}")
            return body


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _url(listening: socket.socket) -> str:
    return "http://{}:{}".format(*listening.getsockname())


def _inner(port: int, ours: set[int]) -> socket.socket:
    """A listener on loopback; on the port of the time before a kill where that can be had, which replicas know."""
    try:
        made = _bound("inner", "127.0.0.1", port, ours)
    except InvalidInput:
        made = _bound("inner", "127.0.0.1", 0, ours)
    made.listen(_BACKLOG)
    return made


def _reachable(host: str) -> str:
    """Where processes of this machine find a listener on `host`."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1" if host == "0.0.0.0" else "[::1]"
    return f"[{host}]" if ":" in host else host


def _bound(option: str, host: str, port: int, ours: set[int]) -> socket.socket:
    """A socket on the port. Shared with another one only where that is a router that a killed `penstock up` left:
    otherwise two platforms could take each other's callers.

    Raises:
        InvalidInput: the port is taken, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if port and port not in ours:
            with socket.socket(family, kind, protocol) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(address)
                trial.listen(1)
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind(address)
    except OSError as error:
        taken = "; another port is free with 0" if error.errno == errno.EADDRINUSE else ""
        raise InvalidInput(f"cannot listen on {option} = {port} of {host}: {error.strerror or error}{taken}") from error
    made.setblocking(False)
    made.set_inheritable(True)
    return made
