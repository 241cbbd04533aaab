"""grpc.health.v1 and reflection, as the door and the protocols tell. Imports grpc; import it only when listening."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from penstock.core.door import Door
from penstock.core.errors import NotFound, QuotaExceeded
from penstock.runtime.listeners.grpc_status import abort
from penstock.runtime.listeners.until import until

_HEALTH = "grpc.health.v1.Health"
_REFLECTION = "grpc.reflection.v1alpha.ServerReflection"
# The same messages under a newer name, which current command line tools ask for first.
_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"

# They need no key, each costs memory for as long as it is open, and probes and balancers have a handful.
_MOST_WATCHES = 1000

Handlers = dict[str, grpc.RpcMethodHandler]


def health_methods(door: Door, services: Sequence[str], stopping: asyncio.Event) -> Handlers:
    """Check and Watch. "" and a service's name stand for the server, any other name for the model called so.

    Source: https://github.com/grpc/grpc/blob/master/doc/health-checking.md
    """
    health = _Health(door, services, stopping)
    read, write = health_pb2.HealthCheckRequest.FromString, health_pb2.HealthCheckResponse.SerializeToString
    return {
        f"/{_HEALTH}/Check": grpc.unary_unary_rpc_method_handler(health.check, read, write),
        f"/{_HEALTH}/Watch": grpc.unary_stream_rpc_method_handler(health.watch, read, write),
    }


class _Health:
    def __init__(self, door: Door, services: Sequence[str], stopping: asyncio.Event) -> None:
        self._door = door
        self._server_names = frozenset(("", _HEALTH, *services))
        self._stopping = stopping
        self._watches = 0
        self._change: asyncio.Future[None] | None = None

    async def check(self, request: Any, context: Any) -> Any:
        try:
            return health_pb2.HealthCheckResponse(status=self._status(request.service))
        except NotFound as error:
            await abort(context, error)

    async def watch(self, request: Any, context: Any) -> None:
        """Sends the status now and at every change."""
        if self._watches >= _MOST_WATCHES:
            await abort(context, QuotaExceeded(f"{_MOST_WATCHES} watches are open; ask with Check, or come back later"))
        self._watches += 1
        try:
            sent = None
            while True:
                change = self._next_change()  # asked for first: none can be missed between
                status = self._watched(request.service)
                if status != sent:
                    await context.write(health_pb2.HealthCheckResponse(status=status))
                    sent = status
                if self._stopping.is_set():
                    return
                await asyncio.shield(change)
        finally:
            self._watches -= 1

    def _next_change(self) -> asyncio.Future[None]:
        """Done at the next change of any status or when the server stops. One for all watches: each waits for a future,
        none has tasks of its own."""
        if self._change is None or self._change.done():
            self._change = asyncio.ensure_future(self._changed(self._door.next_change()))
        return self._change

    async def _changed(self, change: asyncio.Future[None]) -> None:
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            either: set[asyncio.Future[Any]] = {change, stopping}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()

    def _watched(self, service: str) -> int:
        try:
            return self._status(service)
        except NotFound:
            return int(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)

    def _status(self, service: str) -> int:
        ready = self._door.ready() if service in self._server_names else self._door.model_ready(service)
        ready = ready and not self._stopping.is_set()
        kinds = health_pb2.HealthCheckResponse
        return int(kinds.SERVING if ready else kinds.NOT_SERVING)


def reflection_methods(services: Sequence[str], files: Sequence[bytes], stopping: asyncio.Event) -> Handlers:
    """Reflection, v1alpha and v1, of `services`, whose serialized file descriptors are `files`."""
    pool = descriptor_pool.DescriptorPool()
    own = (health_pb2.DESCRIPTOR.serialized_pb, reflection_pb2.DESCRIPTOR.serialized_pb)
    for file in dict.fromkeys((*files, *own)):
        pool.AddSerializedFile(file)
    servicer = reflection.aio.ReflectionServicer((*services, _HEALTH, _REFLECTION, _REFLECTION_V1), pool=pool)

    async def reflect(requests: AsyncIterator[Any], context: Any) -> None:
        async def answer() -> None:
            async for response in servicer.ServerReflectionInfo(requests, context):
                await context.write(response)

        await until(stopping, answer())

    handler = grpc.stream_stream_rpc_method_handler(
        reflect,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return {f"/{name}/ServerReflectionInfo": handler for name in (_REFLECTION, _REFLECTION_V1)}
