"""A router's HTTP front on the test's own loop, replicas that do as their script says, and callers of raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from penstock.fleet.router.balancer import Balancer
from penstock.fleet.router.front import HttpFront
from penstock.fleet.router.hooks import Hooks
from penstock.fleet.router.http_options import HttpOptions
from penstock.fleet.router.table import CompiledTable
from penstock.fleet.router.tenants import Tenants
from penstock.fleet.routes import Arm, Endpoint, Table, Tenant, Upstream

Script = Callable[["Request", asyncio.StreamWriter], Awaitable[None]]
SECONDS = 10.0  # for what takes milliseconds, on a busy machine


@dataclass
class Request:
    """What a replica received. `raw` is its head as it came."""

    raw: bytes
    line: str
    headers: dict[str, str]
    body: bytes
    reader: asyncio.StreamReader
    connection: int


@dataclass
class Replica:
    """A scripted replica. Its script is called for each request; `seen` are those whose body was read whole."""

    script: Script
    id: str = "r1"
    read_bodies: bool = True
    seen: list[Request] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    port: int = 0
    server: asyncio.Server | None = None
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def start(self) -> Replica:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=1 << 20)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        assert self.server is not None
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()

    @property
    def upstream(self) -> Upstream:
        return Upstream(self.id, f"127.0.0.1:{self.port}")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        number = self.connections
        self.writers.append(writer)
        try:
            while True:
                raw = await reader.readuntil(b"\r\n\r\n")
                line, *lines = raw[:-4].decode("latin-1").split("\r\n")
                headers = {}
                for each in lines:
                    name, _, value = each.partition(": ")
                    assert name.lower() not in headers, f"the router sent {name} twice"
                    headers[name.lower()] = value
                body = await read_body(reader, headers) if self.read_bodies else b""
                request = Request(raw, line, headers, body, reader, number)
                self.seen.append(request)
                await self.script(request, writer)
                await writer.drain()
                if writer.is_closing():
                    return
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()


async def read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    """A body, by its framing; both framings at once fail the test."""
    if "transfer-encoding" in headers:
        assert headers["transfer-encoding"] == "chunked" and "content-length" not in headers
        body = b""
        while True:
            size = int((await reader.readuntil(b"\r\n"))[:-2], 16)
            body += await reader.readexactly(size)
            assert await reader.readexactly(2) == b"\r\n"
            if not size:
                return body
    return await reader.readexactly(int(headers.get("content-length", 0)))


def says(body: bytes = b'{"ok":1}', status: str = "200 OK", headers: str = "") -> Script:
    """A script that always answers this."""

    async def script(request: Request, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)

    return script


async def echo(request: Request, writer: asyncio.StreamWriter) -> None:
    """A script that answers with the request's body."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(request.body), request.body))


def echoes_after(go: asyncio.Event) -> Script:
    """A script that answers with the request's body, once `go` is set."""

    async def later(request: Request, writer: asyncio.StreamWriter) -> None:
        await go.wait()
        await echo(request, writer)

    return later


async def silent(request: Request, writer: asyncio.StreamWriter) -> None:
    """A script that says nothing until the router is gone."""
    await request.reader.read()


async def dies(request: Request, writer: asyncio.StreamWriter) -> None:
    """A script that drops the connection without a word."""
    writer.transport.abort()


@dataclass
class Answer:
    """`complete` is false when the connection ended before the body did."""

    status: int
    headers: dict[str, str]
    body: bytes
    complete: bool = True


class Caller:
    """One connection to the router."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, *, head_only: bool = False) -> Answer:
        """The next answer; 100 Continue is skipped."""
        async with asyncio.timeout(SECONDS):
            return await self._answer(head_only)

    async def _answer(self, head_only: bool) -> Answer:
        while True:
            raw = await self.reader.readuntil(b"\r\n\r\n")
            line, *lines = raw[:-4].decode("latin-1").split("\r\n")
            status = int(line.split(" ")[1])
            if status != 100:
                break
        headers: dict[str, str] = {}
        for each in lines:
            name, _, value = each.partition(": ")
            assert name.lower() not in headers, f"{name} twice"
            headers[name.lower()] = value
        if head_only or status in (204, 304):
            return Answer(status, headers, b"")
        try:
            if "content-length" in headers or "transfer-encoding" in headers:
                return Answer(status, headers, await read_body(self.reader, headers))
            return Answer(status, headers, await self.reader.read())
        except (asyncio.IncompleteReadError, OSError) as error:
            return Answer(status, headers, getattr(error, "partial", b""), complete=False)

    async def ended(self) -> bytes:
        """What comes until the router closes the connection."""
        async with asyncio.timeout(SECONDS):
            try:
                return await self.reader.read()
            except ConnectionError:
                return b""

    def close(self) -> None:
        self.writer.close()


class Rig:
    """A front with its balancer. `follow` gives it endpoints."""

    def __init__(self, options: HttpOptions | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.hooks = Hooks(Tenants())
        self.balancer = Balancer(loop.time, loop.call_later)
        self.front = HttpFront(self.balancer, self.hooks, options)
        self.balancer.on_gone = self.front.forget
        self.port = 0
        self.version = 0
        self.callers: list[Caller] = []

    async def start(self) -> None:
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        await self.front.start(listening)

    def follow(self, *endpoints: Endpoint, tenants: tuple[Tenant, ...] = ()) -> None:
        self.version += 1
        self.hooks.tenants.update(tenants, 0.0)
        self.balancer.follow(CompiledTable(Table(self.version, endpoints, tenants)))

    async def caller(self) -> Caller:
        caller = Caller(*await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 20))
        self.callers.append(caller)
        return caller

    async def ask(self, data: bytes, *, head_only: bool = False) -> Answer:
        """The answer to these bytes on a connection of their own."""
        caller = await self.caller()
        caller.send(data)
        try:
            return await caller.answer(head_only=head_only)
        finally:
            caller.close()

    async def stop(self) -> None:
        for caller in self.callers:
            caller.close()
        await self.front.drain(1.0)
        leaked = {
            upstream.id: upstream.in_flight
            for service in self.balancer.services.values()
            for lane in service.lanes
            for upstream in lane.upstreams
            if upstream.in_flight
        }
        assert not leaked, f"places that were not given back: {leaked}"
        loads = [
            upstream.load
            for service in self.balancer.services.values()
            for lane in service.lanes
            for upstream in lane.upstreams
            if upstream.load > 1e-6
        ]
        assert not loads, f"work that is believed to be left for ever: {loads}"
        present = {
            (name, lane.revision): lane.meter.present
            for name, service in self.balancer.services.items()
            for lane in (service.nowhere, *service.lanes)
            if lane.meter.present
        }
        assert not present, f"requests that are counted for ever: {present}"


@contextlib.asynccontextmanager
async def rig(options: HttpOptions | None = None) -> AsyncIterator[Rig]:
    made = Rig(options)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


@contextlib.asynccontextmanager
async def replicas(*given: Replica) -> AsyncIterator[tuple[Replica, ...]]:
    for replica in given:
        await replica.start()
    try:
        yield given
    finally:
        for replica in given:
            await replica.stop()


def endpoint(*upstreams: Replica | Upstream, name: str = "fraud", **more: object) -> Endpoint:
    """One revision with these replicas."""
    found = tuple(one.upstream if isinstance(one, Replica) else one for one in upstreams)
    return Endpoint(name, (Arm(1, 1.0, found),) if found else (), 1, **more)  # type: ignore[arg-type]


def post(body: bytes = b"{}", *headers: str, path: str = "/v2/models/fraud/infer") -> bytes:
    lines = "".join(f"{header}\r\n" for header in headers)
    head = f"POST {path} HTTP/1.1\r\nHost: here\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
    return head.encode("latin-1") + body


def chunked(pieces: list[bytes], *headers: str, path: str = "/v2/models/fraud/infer") -> bytes:
    lines = "".join(f"{header}\r\n" for header in headers)
    head = f"POST {path} HTTP/1.1\r\nHost: here\r\n{lines}Transfer-Encoding: chunked\r\n\r\n"
    return head.encode() + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\n\r\n"


async def until(holds: Callable[[], bool], what: str = "") -> None:
    """Returns once it holds."""
    try:
        async with asyncio.timeout(SECONDS):
            while not holds():  # noqa: ASYNC110  # what it waits for is looked at, not told
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"it never came true: {what}") from None
