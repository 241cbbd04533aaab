"""What the router answers by itself over gRPC: health, reflection, and the V2 protocol's methods about the server.

Imports grpc."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from penstock import __version__
from penstock.core.errors import NotFound, PenstockError, QuotaExceeded
from penstock.core.protobuf import length_prefix
from penstock.fleet.router.balancer import Balancer
from penstock.fleet.router.grpc_outcome import Context, abort
from penstock.fleet.router.grpc_pass import ready_answer
from penstock.fleet.router.grpc_peek import V2
from penstock.fleet.routes import Tenant
from penstock.protocols import v2_grpc

HEALTH = "grpc.health.v1.Health"
_REFLECTION = "grpc.reflection.v1alpha.ServerReflection"
_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"  # the same messages under a newer name
_V2_SERVICE = V2.strip("/")

# Watches need no key, each costs memory for as long as it is open, and probes and balancers have a handful.
_MOST_WATCHES = 1000

Handlers = Mapping[str, grpc.RpcMethodHandler]


class Health:
    """Check and Watch. "" and the names of services stand for the router, any other name for the endpoint called so,
    which serves also while it sleeps and can be woken.

    Source: https://github.com/grpc/grpc/blob/master/doc/health-checking.md
    """

    def __init__(self, balancer: Balancer) -> None:
        self._balancer = balancer
        self._stopping = False
        self._watches = 0
        self._change: asyncio.Future[None] | None = None
        read, write = health_pb2.HealthCheckRequest.FromString, health_pb2.HealthCheckResponse.SerializeToString
        self.handlers: Handlers = {
            f"/{HEALTH}/Check": grpc.unary_unary_rpc_method_handler(self._check, read, write),
            f"/{HEALTH}/Watch": grpc.unary_stream_rpc_method_handler(self._watch, read, write),
        }

    def changed(self) -> None:
        """Any status may have changed: there is a new table."""
        change, self._change = self._change, None
        if change is not None and not change.done():
            change.set_result(None)

    def stop(self) -> None:
        """From now on nothing serves; watches are told and end."""
        self._stopping = True
        self.changed()

    async def _check(self, request: Any, context: Context) -> Any:
        status = self._status(request.service)
        if status is None:
            await abort(context, NotFound(f"there is neither a service nor a deployment {request.service[:200]!r}"))
        return health_pb2.HealthCheckResponse(status=status)

    async def _watch(self, request: Any, context: Context) -> None:
        if self._watches >= _MOST_WATCHES:
            await abort(context, QuotaExceeded(f"{_MOST_WATCHES} watches are open; ask with Check, or come back later"))
        self._watches += 1
        try:
            sent = None
            while True:
                if self._change is None:
                    self._change = asyncio.get_running_loop().create_future()
                change = self._change  # taken first: no change can be missed
                status = self._status(request.service)
                if status is None:
                    status = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
                if status != sent:
                    await context.write(health_pb2.HealthCheckResponse(status=status))
                    sent = status
                if self._stopping:
                    return
                await asyncio.shield(change)
        finally:
            self._watches -= 1

    def _status(self, name: str) -> int | None:
        """None of a name that nobody has."""
        if name in ("", HEALTH, _V2_SERVICE, _REFLECTION, _REFLECTION_V1):
            ready = router_ready(self._balancer)
        else:
            service = self._balancer.services.get(name)
            if service is None:
                return None
            ready = service.ready
        kinds = health_pb2.HealthCheckResponse
        return int(kinds.SERVING if ready and not self._stopping else kinds.NOT_SERVING)


def router_ready(balancer: Balancer) -> bool:
    """Whether the router has a table to follow."""
    return balancer.table.version > 0


def reflection_handlers() -> Handlers:
    """Reflection, v1alpha and v1, of what every caller can use here. A call that names an endpoint
    (`penstock-endpoint`) is passed on instead, and tells what that endpoint's replicas speak."""
    pool = descriptor_pool.DescriptorPool()
    own = (health_pb2.DESCRIPTOR.serialized_pb, reflection_pb2.DESCRIPTOR.serialized_pb)
    for file in dict.fromkeys((*v2_grpc.plug.file_descriptors(), *own)):
        pool.AddSerializedFile(file)
    servicer = reflection.aio.ReflectionServicer((_V2_SERVICE, HEALTH, _REFLECTION, _REFLECTION_V1), pool=pool)

    async def reflect(requests: AsyncIterator[Any], context: Context) -> None:
        async for response in servicer.ServerReflectionInfo(requests, context):
            await context.write(response)

    handler = grpc.stream_stream_rpc_method_handler(
        reflect,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return {f"/{name}/ServerReflectionInfo": handler for name in (_REFLECTION, _REFLECTION_V1)}


def server_handlers(balancer: Balancer) -> Handlers:
    """ServerLive, ServerReady and ServerMetadata of the V2 protocol. Of two fields, so written by hand."""

    async def live(message: bytes, context: Context) -> bytes:
        return ready_answer(True)

    async def ready(message: bytes, context: Context) -> bytes:
        return ready_answer(router_ready(balancer))

    async def metadata(message: bytes, context: Context) -> bytes:
        return _field(1, b"penstock") + _field(2, __version__.encode())

    return {
        f"{V2}{name}": grpc.unary_unary_rpc_method_handler(handle)
        for name, handle in (("ServerLive", live), ("ServerReady", ready), ("ServerMetadata", metadata))
    }


def index_handler(balancer: Balancer, tenant: Tenant | None) -> grpc.RpcMethodHandler:
    """RepositoryIndex of the V2 protocol: the deployments that the tenant may call, as models."""

    async def index(message: bytes, context: Context) -> bytes:
        models = []
        for name, service in sorted(balancer.services.items()):
            if tenant is None or not tenant.deployments or name in tenant.deployments:
                state = b"READY" if service.ready else b"UNAVAILABLE"
                models.append(_field(1, _field(1, name.encode()) + _field(3, state)))
        return b"".join(models)

    return grpc.unary_unary_rpc_method_handler(index)


def _field(number: int, content: bytes) -> bytes:
    return length_prefix(number, len(content)) + content


def refusal(error: PenstockError) -> grpc.RpcMethodHandler:
    """The handler that answers with an error. As a stream it does so before a message is read."""

    async def refuse(messages: object, context: Context) -> None:
        await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)
