"""The HTTP front of a router: accepts callers, keeps time and connections, drains them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from typing import Final, Protocol

from penstock.core.errors import NotReady, PenstockError, Unsupported
from penstock.fleet.router.answer_head import AnswerReader
from penstock.fleet.router.balancer import Balancer
from penstock.fleet.router.calls import Call, ErrorCall, OwnCall
from penstock.fleet.router.client import ClientConnection
from penstock.fleet.router.deadlines import Deadlines
from penstock.fleet.router.exchange import Exchange
from penstock.fleet.router.follower import Follower
from penstock.fleet.router.hooks import Hooks
from penstock.fleet.router.http_options import HttpOptions
from penstock.fleet.router.lanes import Upstream
from penstock.fleet.router.language import Language
from penstock.fleet.router.own import PROBES, OwnPaths, wall_clock
from penstock.fleet.router.plan import Plan, plan
from penstock.fleet.router.request_head import Head, HeadReader
from penstock.fleet.router.upstream import Receiver, UpstreamConnection
from penstock.fleet.routes import Tenant

log = logging.getLogger("penstock.router")

# So long after draining begins, idle connections are kept: a request may be on its way on one.
_LAST_REQUESTS_S: Final = 0.25
_SPARE_REFUSALS = 1000  # connections over the limit that are told so; more are dropped without a word
_TABLE_WAIT = "the router has no table yet; it waits for the controller"


class Caller(Receiver, Protocol):
    """Who wants a connection."""

    def connected(self, connection: UpstreamConnection, hedge: bool) -> bool:
        """Whether it is wanted still."""

    def unreachable(self, upstream: Upstream, hedge: bool) -> None:
        """There is none. The place at the upstream was given back."""


class HttpFront:
    """All methods are for the loop's thread. `start`, then `drain`."""

    def __init__(self, balancer: Balancer, hooks: Hooks, options: HttpOptions | None = None) -> None:
        self.balancer = balancer
        self.hooks = hooks
        self.options = options or HttpOptions()
        self.loop = asyncio.get_running_loop()
        self.clock = balancer.clock
        self.now = self.clock()  # as of the last tick
        self.heads = HeadReader(self.options.max_header_bytes, self.options.max_headers)
        self.answers = AnswerReader()
        self.deadlines = Deadlines(self.clock, self.loop.call_later)
        self.follower: Follower | None = None  # for the metrics
        self.draining = False
        self.abandoned = 0  # requests whose caller left before the answer
        self.refused: dict[str, int] = {}  # by reason: a closed set
        self.errors: dict[tuple[str, str], int] = {}  # answers of the router's own, by deployment and type
        self._own = OwnPaths(self)
        self.language = Language(self)
        self._connections: set[ClientConnection] = set()
        self._serving = 0
        self._empty = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._late: set[asyncio.Task[None]] = set()  # callers that came just before the port was closed
        self._servers: list[tuple[asyncio.Server, ssl.SSLContext | None]] = []
        self._tick_handle: asyncio.TimerHandle | None = None

    @property
    def connections_open(self) -> int:
        return len(self._connections)

    async def start(self, listening: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Accepts callers from a socket that listens, perhaps in other processes too."""
        listening.setblocking(False)
        server = await self.loop.create_server(
            lambda: ClientConnection(self), sock=listening, backlog=self.options.backlog, ssl=tls,
            ssl_handshake_timeout=self.options.header_timeout_s if tls else None,
        )  # fmt: skip
        self._servers.append((server, tls))
        if self._tick_handle is None:
            self._tick()

    def stop_accepting(self) -> None:
        """Closes our hold of the sockets; other processes go on with theirs. Callers that the system has connected
        already are served still: with the last hold, closing would reset them."""
        for server, tls in self._servers:
            for number in [each.fileno() for each in server.sockets]:
                for accepted in _connected(number, self.options.backlog):
                    task = self.loop.create_task(self._take(accepted, tls))
                    self._late.add(task)
                    task.add_done_callback(self._late.discard)
            server.close()
        self._servers.clear()

    async def drain(self, grace_s: float) -> int:
        """Accepts no more, lets what is on its way end for `grace_s`, and says how many connections had to be cut."""
        self.draining = True
        self.stop_accepting()
        give_up = self.clock() + grace_s
        if self._late:
            await asyncio.wait(self._late, timeout=grace_s)
        await self._emptied(min(grace_s, _LAST_REQUESTS_S))
        for connection in tuple(self._connections):
            connection.wind_down()
        await self._emptied(give_up - self.clock())
        left = tuple(self._connections)
        for connection in left:
            connection.cut()
        if left:
            await self._emptied(1.0)
        if self._tick_handle is not None:
            self._tick_handle.cancel()
            self._tick_handle = None
        for task in tuple(self._tasks):
            task.cancel()
        for service in self.balancer.services.values():
            for lane in service.lanes:
                for upstream in lane.upstreams:
                    self.forget(upstream)
        return len(left)

    # --- called by connections ------------------------------------------------------------------------------------

    def add(self, connection: ClientConnection) -> bool:
        """Whether the connection is served; else it is one too many."""
        self._connections.add(connection)
        if self._serving < self.options.max_connections:
            self._serving += 1
            return True
        if len(self._connections) > self.options.max_connections + _SPARE_REFUSALS:
            connection.cut()
        return False

    def remove(self, connection: ClientConnection, served: bool) -> None:
        self._connections.discard(connection)
        self._serving -= served
        if not self._connections:
            self._empty.set()

    def refuse(self, reason: str) -> None:
        """Counts a request, or a connection, that broke a limit or a rule."""
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def count_error(self, deployment: str, error: PenstockError) -> None:
        """Counts an answer that the router gave itself."""
        key = (deployment, type(error).__name__)
        self.errors[key] = self.errors.get(key, 0) + 1

    def plan(self, head: Head) -> Plan:
        """What to do with a request, by the table of now."""
        table = self.balancer.table
        known = head.plan
        if isinstance(known, Plan) and known.table is table:
            return known
        try:
            own = self._own.find(head)
        except Unsupported as error:
            made = Plan(table, head, None, error.with_traceback(None))
        else:
            if own is not None:
                made = Plan(table, head, None, None)
                made.own = own
            elif not table.version:
                made = Plan(table, head, None, NotReady(_TABLE_WAIT, retry_after_s=1.0))
            else:
                made = plan(head, table, self.balancer.services)
        head.plan = made
        return made

    def authenticate(self, head: Head) -> Tenant | None:
        """Raises: Unauthenticated."""
        tenants = self.hooks.tenants
        if not tenants.required:
            return None
        return tenants.authenticate(head.get(b"authorization"), head.get(b"x-api-key"))

    def let_in(self, head: Head) -> None:
        """Looks at the key of a request whose body is not here. Raises: Unauthenticated."""
        if self.hooks.tenants.required and head.path not in PROBES:
            self.authenticate(head)

    def call(
        self, client: ClientConnection, head: Head, made: Plan, body: bytes, streams: bool, began: float
    ) -> Call:  # fmt: skip
        """What answers a request; it is begun by the caller."""
        if made.own is not None:
            return OwnCall(self, client, head, made.own, body)
        if made.language:
            return self.language.call(client, head, made, body, streams, began)
        tenant, weight = "", 1.0
        error = made.error
        if self.hooks.tenants.required:
            try:
                known = self.authenticate(head)
                if known is not None and made.service is not None:
                    self.hooks.tenants.admit(known, made.service.endpoint.name, wall_clock())
                    tenant, weight = known.name, known.weight
            except PenstockError as refusal:
                error = refusal
        if error is not None:
            return ErrorCall(self, client, head, error)
        return Exchange(self, client, head, made, body, streams, began, tenant, weight)

    def connect(self, upstream: Upstream, caller: Caller, hedge: bool) -> None:
        """Opens a connection to a replica for `caller`, who holds a place there."""
        task = self.loop.create_task(self._connect(upstream, caller, hedge))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def forget(self, upstream: Upstream) -> None:
        """Closes the idle connections to a replica that left the table."""
        pool, upstream.pool = upstream.pool, []
        for connection in pool:
            connection.cut()

    # --------------------------------------------------------------------------------------------------------------

    async def _connect(self, upstream: Upstream, caller: Caller, hedge: bool) -> None:
        host, _, port = upstream.http.rpartition(":")
        connection: UpstreamConnection | None = None
        try:
            async with asyncio.timeout(self.options.connect_timeout_s):
                _, connection = await self.loop.create_connection(
                    lambda: UpstreamConnection(self, upstream), host.strip("[]"), int(port)
                )
        except (OSError, TimeoutError, ValueError):
            pass
        except asyncio.CancelledError:
            self.balancer.release(upstream, self.clock())
            raise
        try:
            if connection is None or not connection.open:
                self.balancer.failed(upstream)
                self.balancer.release(upstream, self.clock())
                caller.unreachable(upstream, hedge)
            elif upstream.gone:  # it left the table meanwhile, and may be about to stop
                connection.cut()
                self.balancer.release(upstream, self.clock())
                caller.unreachable(upstream, hedge)
            elif not caller.connected(connection, hedge):
                self.balancer.release(upstream, self.clock())
                connection.idle_since = self.now
                upstream.pool.append(connection)
        except Exception:
            log.exception("sending a request failed")

    async def _take(self, accepted: socket.socket, tls: ssl.SSLContext | None) -> None:
        timeout_s = self.options.header_timeout_s if tls else None
        try:
            await self.loop.connect_accepted_socket(
                lambda: ClientConnection(self), accepted, ssl=tls, ssl_handshake_timeout=timeout_s
            )
        except OSError:  # the caller is gone
            accepted.close()

    async def _emptied(self, timeout_s: float) -> None:
        self._empty.clear()
        if self._connections and timeout_s > 0:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._empty.wait()
            except TimeoutError:
                pass

    def _tick(self) -> None:
        self._tick_handle = self.loop.call_later(self.options.tick_s, self._tick)
        now = self.now = self.clock()
        try:
            for connection in tuple(self._connections):
                connection.check(now)
            for service in self.balancer.services.values():
                for lane in service.lanes:
                    for upstream in lane.upstreams:
                        self._close_idle(upstream, now)
        except Exception:
            log.exception("the front's tick failed")

    def _close_idle(self, upstream: Upstream, now: float) -> None:
        """Those used least recently are at the beginning."""
        pool = upstream.pool
        count = 0
        while count < len(pool) and now - pool[count].idle_since > pool[count].idle_s:
            count += 1
        if count:
            idle, upstream.pool = pool[:count], pool[count:]
            for connection in idle:
                connection.cut()


def _connected(number: int, most: int) -> list[socket.socket]:
    """Connections that callers have, and nobody has accepted yet."""
    found = []
    with socket.socket(fileno=os.dup(number)) as listening:
        listening.setblocking(False)
        with contextlib.suppress(OSError):
            for _ in range(most):
                accepted, _ = listening.accept()
                accepted.setblocking(False)
                found.append(accepted)
    return found
