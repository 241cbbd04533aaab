"""One router process: the table's follower, the fronts, the recorder, and the end of all of them in the right order."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import re
import resource
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from penstock import config
from penstock.core.addresses import is_loopback
from penstock.core.errors import InvalidInput, PenstockError
from penstock.fleet.router.balancer import Balancer
from penstock.fleet.router.control import Control
from penstock.fleet.router.follower import Follower
from penstock.fleet.router.front import HttpFront
from penstock.fleet.router.hooks import Hooks
from penstock.fleet.router.learning import Learning, learning
from penstock.fleet.router.reports import Reporter
from penstock.fleet.router.table import CompiledTable
from penstock.fleet.router.tenants import Tenants
from penstock.fleet.routes import Table, platform_tenant
from penstock.fleet.store.engine import default_url
from penstock.telemetry import logs
from penstock.tls import tls_context

log = logging.getLogger("penstock.router")

_ID = re.compile(r"[-A-Za-z0-9_.:]{1,64}")


@dataclass(frozen=True, slots=True)
class RouterOptions:
    """One router. `fd` is a socket that is inherited; without it `host` and `port` are bound here. `inner_fd` is
    one more, for callers on this machine: never with TLS, which `tls_cert` and `tls_key` put on the public ports."""

    state: Path
    id: str
    fd: int | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int | None = None
    database: str = ""
    grace_s: float = 30.0
    allow_anonymous: bool = False
    inner_fd: int | None = None
    tls_cert: str | None = None
    tls_key: str | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a router; gives the exit status."""
    parser = argparse.ArgumentParser(prog="penstock.fleet.router", description="Stands between callers and replicas.")
    add = parser.add_argument
    add("--state", required=True, metavar="DIR", help="folder of the controller's socket and of the cached table")
    add("--id", default="", help="name of this router among those of the state [default: router-PID]")
    add("--fd", type=int, metavar="N", help="accept from this inherited socket")
    add("--host", default="127.0.0.1", help="address to bind without --fd; with it, where the socket is bound")
    add("--port", type=int, default=8080)
    add("--grpc-port", type=int, help="listen for gRPC too; shared with other routers")
    add("--database", metavar="URL", help="instead of SQLite in the state; PENSTOCK_UP_DATABASE shows it to fewer")
    add("--grace-s", type=float, default=30.0, help="time for requests in flight after SIGTERM")
    add("--allow-anonymous", action="store_true", help="without tenants, let everybody in on any address")
    add("--inner-fd", type=int, metavar="N", help="accept from this inherited socket too, and never with TLS")
    add("--tls-cert", metavar="FILE", help="certificate chain (PEM): the public ports speak TLS")
    add("--tls-key", metavar="FILE", help="its private key (PEM)")
    add("--log-format", default="auto", choices=logs.FORMATS)
    add("--log-level", default="info", choices=tuple(logs.LEVELS))
    given = parser.parse_args(arguments)
    logs.configure(given.log_format, given.log_level)
    try:
        options = _read(given)
        import uvloop

        uvloop.run(run(options))
    except PenstockError as error:
        print(f"error: {error.message}", file=sys.stderr, flush=True)
        return 2
    return 0


def _read(given: argparse.Namespace) -> RouterOptions:
    state = Path(given.state).expanduser().absolute()
    if not state.is_dir():
        raise InvalidInput(f"--state {state}: there is no such folder; `penstock up` makes it")
    id = given.id or f"router-{os.getpid()}"
    if not _ID.fullmatch(id):
        raise InvalidInput(f"--id is {id[:80]!r}; 1 to 64 letters, digits and -_.:")
    if (given.tls_cert is None) != (given.tls_key is None):
        raise InvalidInput("--tls-cert and --tls-key need each other")
    database = given.database or config.environment().get("PENSTOCK_UP_DATABASE") or default_url(state)
    return RouterOptions(
        state, id, given.fd, given.host, given.port, given.grpc_port, database, max(0.0, given.grace_s),
        given.allow_anonymous, given.inner_fd, given.tls_cert, given.tls_key,
    )  # fmt: skip


async def run(options: RouterOptions) -> None:
    """Serves until SIGTERM or SIGINT; a second one ends it at once.

    Raises:
        InvalidInput: an address cannot be had.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _signalled, stop)
    await Router(options).serve(stop)


def _signalled(stop: asyncio.Event) -> None:
    if stop.is_set():
        log.warning("stopped_at_once")
        os._exit(1)  # the second signal: nothing is worth waiting for
    stop.set()


class Router:
    """The parts of one router, put together."""

    def __init__(self, options: RouterOptions) -> None:
        loop = asyncio.get_running_loop()
        self._options = options
        self._closed = not options.allow_anonymous and not is_loopback(options.host)
        self.hooks = Hooks(Tenants(now=time.time()))
        self.hooks.tenants.required = self._closed
        # Not the loop's clock: uvloop's shows whole milliseconds, which is more than many answers take.
        self.balancer = Balancer(time.monotonic, loop.call_later)
        self.front = HttpFront(self.balancer, self.hooks)
        self.balancer.on_gone = self.front.forget
        both = options.tls_cert, options.tls_key
        self._tls = None if both[0] is None or both[1] is None else tls_context(both[0], both[1])
        self._control = Control(options.state)
        self._reporter = Reporter(options.id, self._control, self.balancer, self.hooks)
        self.balancer.on_sleeping = self._reporter.sleeping
        self.follower = Follower(options.state, options.id, self._control, self._follow)
        self.front.follower = self.follower
        self._learning: Learning | None = None
        self._grpc = None if options.grpc_port is None else _grpc_front(self, options)

    async def serve(self, stop: asyncio.Event) -> None:
        """Serves until `stop` is set, then drains."""
        options = self._options
        self._learning = parts = learning(options.database, options.id)
        self.hooks.decisions, self.hooks.recorder = parts.decisions, parts.recorder
        self.hooks.feedback, self.hooks.mirror = parts.feedback, parts.mirror
        parts.start()
        cached = self.follower.load()
        listening = _listening(options)
        host, port = listening.getsockname()[:2]
        grpc_port = None
        if self._grpc is not None and options.grpc_port is not None:
            grpc_port = await self._grpc.start(options.host, options.grpc_port)
        await self.front.start(listening, self._tls)
        if options.inner_fd is not None:
            await self.front.start(socket.socket(fileno=options.inner_fd))
        _settle()
        tasks = [asyncio.create_task(self.follower.run()), asyncio.create_task(self._reporter.run())]
        log.info(
            "router_serving",
            extra={"router": options.id, "http": f"{host}:{port}", "grpc_port": grpc_port, "from_cache": cached},
        )
        try:
            await stop.wait()
            log.info("router_draining", extra={"router": options.id, "connections": self.front.connections_open})
            await self._drain()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._reporter.count()
            await asyncio.to_thread(parts.close)

    async def _drain(self) -> None:
        grace_s = self._options.grace_s
        stopping = [asyncio.create_task(self._drain_http(grace_s))]
        if self._grpc is not None:
            stopping.append(asyncio.create_task(self._grpc.stop(grace_s)))
        await asyncio.gather(*stopping)
        with contextlib.suppress(PenstockError):
            await self._reporter.report()

    async def _drain_http(self, grace_s: float) -> None:
        cut = await self.front.drain(grace_s)
        if cut:
            log.warning("connections_cut", extra={"connections": cut, "grace_s": grace_s})

    def _follow(self, table: Table) -> None:
        self._reporter.count()  # what was counted so far belongs to the experiments of the table before
        closed = self._closed or bool(table.tenants)
        self.hooks.tenants.update((*table.tenants, platform_tenant(table.secret)) if closed else (), time.time())
        self.hooks.tenants.required = closed
        if self._learning is not None:
            self._learning.table(table)
        self.balancer.follow(CompiledTable(table))
        self.front.heads.clear()
        if self._grpc is not None:
            self._grpc.table(table)
        self._reporter.table_changed()


def _settle() -> None:
    """What is loaded by now stays: a full collection looks at new objects only (at all of them it takes 50 ms, which
    some requests would wait for). As many files may be open as the system lets us: each request has two sockets."""
    gc.collect()
    gc.freeze()
    # The threads that write and compare may hold the interpreter for so long at a time; 5 ms is Python's own choice.
    sys.setswitchinterval(0.0005)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _grpc_front(router: Router, given: RouterOptions):  # type: ignore[no-untyped-def]
    """Imported only where it is used: grpc costs 100 ms and a pool of threads."""
    from penstock.fleet.router.grpc_front import GrpcFront, GrpcFrontOptions

    options = GrpcFrontOptions(reuse_port=True, tls_cert=given.tls_cert, tls_key=given.tls_key)
    return GrpcFront(router.balancer, router.hooks, options, on_error=router.front.count_error)


def _listening(options: RouterOptions) -> socket.socket:
    try:
        if options.fd is not None:
            return socket.socket(fileno=options.fd)
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((options.host, options.port))
        return made
    except OSError as error:
        where = f"--fd {options.fd}" if options.fd is not None else f"{options.host}:{options.port}"
        raise InvalidInput(f"cannot listen on {where}: {error.strerror or error}") from None
