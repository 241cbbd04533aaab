"""The router's gRPC front in a test's own loop, and a scripted gRPC peer as a replica behind it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec

from penstock.fleet.router.balancer import Balancer
from penstock.fleet.router.grpc_front import GrpcFront, GrpcFrontOptions
from penstock.fleet.router.hooks import Decisions, Hooks, Mirror
from penstock.fleet.router.table import CompiledTable
from penstock.fleet.router.tenants import Tenants
from penstock.fleet.routes import Arm, Endpoint, Table, Tenant, Upstream

SERVICE = "/any.Service/"


@dataclass
class Router:
    balancer: Balancer
    hooks: Hooks
    front: GrpcFront
    address: str = ""
    version: int = 0

    def follow(self, *endpoints: Endpoint, tenants: Sequence[Tenant] = ()) -> None:
        self.version += 1
        table = Table(self.version, endpoints, tuple(tenants))
        self.hooks.tenants.update(table.tenants, 0.0)
        self.balancer.follow(CompiledTable(table))
        self.front.table(table)

    @property
    def in_flight(self) -> int:
        return sum(
            upstream.in_flight
            for service in self.balancer.services.values()
            for lane in service.lanes
            for upstream in lane.upstreams
        )


@contextlib.asynccontextmanager
async def router(
    *endpoints: Endpoint,
    tenants: Sequence[Tenant] = (),
    decisions: Decisions | None = None,
    mirror: Mirror | None = None,
    **options: Any,
) -> AsyncIterator[Router]:
    loop = asyncio.get_running_loop()
    balancer = Balancer(loop.time, loop.call_later)
    hooks = Hooks(Tenants(), decisions=decisions, mirror=mirror)
    made = Router(balancer, hooks, GrpcFront(balancer, hooks, GrpcFrontOptions(**options)))
    made.follow(*endpoints, tenants=tenants)
    made.address = f"127.0.0.1:{await made.front.start('127.0.0.1', 0)}"
    try:
        yield made
    finally:
        await made.front.stop(0.1)
        # Every place is given back: grpcio ends a call that was cut in a turn of the loop of its own.
        for _ in range(500):
            if not made.in_flight:
                break
            await asyncio.sleep(0.01)
        assert made.in_flight == 0


def endpoint(name: str, *addresses: str, **more: Any) -> Endpoint:
    """An endpoint with one revision, 7, at these gRPC addresses."""
    upstreams = tuple(Upstream(f"{name}-{address}", "", address) for address in addresses)
    return Endpoint(name, (Arm(7, 1.0, upstreams),), stable=7, **more)


@dataclass
class Peer:
    """A gRPC server whose methods do what their names say, with any bytes. It notes what it sees."""

    address: str = ""
    calls: int = 0
    metadata: dict[str, str | bytes] = field(default_factory=dict)
    remaining_s: float | None = None
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    status: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    server: Any = None

    async def handle(self, method: str, context: Any) -> None:
        self.calls += 1
        self.metadata = dict(context.invocation_metadata())
        self.remaining_s = context.time_remaining()
        self.started.set()
        try:
            await self._run(method.rpartition("/")[2], context)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def _run(self, what: str, context: Any) -> None:
        if what == "Fail":
            details = (("grpc-status-details-bin", b"\x08\x05rich"), ("why", "because"))
            await context.abort(self.status, "with its own words", details)
        await context.send_initial_metadata((("lead", "first"), ("lead-bin", b"\x00\xff")))
        if what == "Sleep":
            await asyncio.sleep(60)
        if what == "Work":  # for as many seconds as the message says
            await asyncio.sleep(float(await context.read()))
            await context.write(b"done")
            return
        if what == "Early":  # ends before the caller has sent all
            await context.read()
            await context.write(b"enough")
            return
        if what == "Burst":
            count = int(await context.read())
            for number in range(count):
                await context.write(b"%d" % number)
            return
        count = 0
        while (message := await context.read()) is not grpc.aio.EOF:
            count += 1
            if what == "Break" and count == 3:
                await context.abort(grpc.StatusCode.DATA_LOSS, "broke in the middle")
            if what != "Collect":
                await context.write(message)
        if what == "Collect":
            await context.write(b"%d" % count)
        context.set_trailing_metadata((("count", str(count)), ("tail-bin", b"\x01")))


@contextlib.asynccontextmanager
async def router_process(state: Path, table: Table) -> AsyncIterator[tuple[str, str, int]]:
    """A router of its own process, with this table in its cache and no controller. Gives its HTTP and gRPC addresses
    and its process id."""
    (state / "routes.json").write_bytes(msgspec.json.encode(table))
    with socket.socket() as holder:  # bound and never listening, as `penstock up` holds the port that routers share
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        grpc_port = holder.getsockname()[1]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "penstock.fleet.router", "--state", str(state), "--port", "0", "--grpc-port",
            str(grpc_port), "--log-format", "json", "--grace-s", "1", stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stderr is not None
        try:
            async with asyncio.timeout(30):
                while line := await process.stderr.readline():
                    if b"router_serving" in line:
                        break
            rest = asyncio.ensure_future(process.stderr.read())
            yield json.loads(line)["http"], f"127.0.0.1:{grpc_port}", process.pid
            process.terminate()
            async with asyncio.timeout(20):
                log = await rest
                assert await process.wait() == 0, log.decode()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


@contextlib.asynccontextmanager
async def peer(port: int = 0) -> AsyncIterator[Peer]:
    made = Peer()

    class Methods(grpc.GenericRpcHandler):
        def service(self, details: Any) -> grpc.RpcMethodHandler:
            async def handle(messages: object, context: Any) -> None:
                await made.handle(details.method, context)

            return grpc.stream_stream_rpc_method_handler(handle)

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((Methods(),))
    made.server = server
    made.address = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    await server.start()
    try:
        yield made
    finally:
        await server.stop(0)
