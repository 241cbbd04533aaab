"""What the gRPC listener does with each method. Imports grpc; import it only when listening."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from penstock.core.door import Door
from penstock.core.errors import PenstockError, Unauthenticated
from penstock.core.messages import NO_DEADLINE
from penstock.core.trace import TRACEPARENT
from penstock.protocols import GrpcCall, GrpcInfer, GrpcProtocol, GrpcRequest, GrpcStream
from penstock.runtime.listeners.grpc_services import health_methods, reflection_methods
from penstock.runtime.listeners.grpc_status import abort, status_of, unexpected
from penstock.runtime.listeners.grpc_stream import StreamCall
from penstock.runtime.listeners.hold import Hold
from penstock.runtime.listeners.turn import server_timing
from penstock.runtime.listeners.witness import Sight, take_grpc_trace

if TYPE_CHECKING:
    from penstock.runtime.listeners.grpc import GrpcOptions

Context = Any  # a grpc.aio.ServicerContext, which has no types
Unary = Callable[[bytes, Context], Awaitable[bytes]]


class Methods(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Every method of the server by its path, without (de)serializers: protocols read and write the bytes."""

    def __init__(
        self, door: Door, protocols: Sequence[GrpcProtocol], options: GrpcOptions, stopping: asyncio.Event, hold: Hold
    ) -> None:
        self._authorise = options.authorise
        services = [protocol.service for protocol in protocols]
        files = [file for protocol in protocols for file in protocol.file_descriptors()]
        self._public = health_methods(door, services, stopping)
        self._handlers = reflection_methods(services, files, stopping)
        calls = _Calls(door, options, stopping, hold)
        for protocol in protocols:
            for method in protocol.methods():
                name = f"{protocol.service}/{method.name}"
                self._handlers[f"/{name}"] = calls.handler(method, name)
        # As a stream it is answered before the message is read.
        self._refusal = grpc.stream_stream_rpc_method_handler(_refuse)

    def service(self, details: Any) -> grpc.RpcMethodHandler | None:
        """The handler of a call; None is answered with UNIMPLEMENTED."""
        public = self._public.get(details.method)
        if public is not None:
            return public
        if self._authorise is not None and not self._authorise(_key(details.invocation_metadata)):
            return self._refusal
        return self._handlers.get(details.method)


class _Calls:
    """Makes grpc's method handlers out of a protocol's methods."""

    def __init__(self, door: Door, options: GrpcOptions, stopping: asyncio.Event, hold: Hold) -> None:
        self._door = door
        self._options = options
        self._stopping = stopping
        self._hold = hold

    def handler(self, method: GrpcInfer | GrpcStream | GrpcCall, name: str) -> grpc.RpcMethodHandler:
        """The handler of a method, whose full name is service/method."""
        if isinstance(method, GrpcStream):
            return grpc.stream_stream_rpc_method_handler(self._stream(method, name))
        if isinstance(method, GrpcInfer):
            return grpc.unary_unary_rpc_method_handler(self._infer(method, name))
        return grpc.unary_unary_rpc_method_handler(self._call(method, name))

    def _infer(self, method: GrpcInfer, name: str) -> Unary:
        decode, request_of, submit = method.decode, self._request_of, self._door.submit
        door, hold = self._door, self._hold
        always_timed, witness = self._options.timing_metadata, self._options.witness

        def note(call: GrpcRequest, code: str, sight: Sight | None, admitted: bool) -> None:
            if witness is None:
                return
            if sight is None and not admitted:
                traced = partial(take_grpc_trace, metadata=call.metadata) if TRACEPARENT in call.metadata else None
                sight = witness.see_refused("", traced, call.received)
            witness.grpc(name, call.received, code, sight)

        async def infer(data: bytes, context: Context) -> bytes:
            # When the client cancels or its deadline passes, grpc cancels this task. It waits for the door's future
            # itself, with no task between, so the future is cancelled too and the queue drops the request.
            call = request_of(data, context)
            sight, admitted = None, False
            hold.begun += 1
            try:
                if hold.holding:
                    await hold.wait()
                exchange = decode(call, door)
                if TRACEPARENT in call.metadata:
                    take_grpc_trace(exchange.request, call.metadata)
                if witness is not None:
                    admitted = True
                    sight = witness.see(exchange.request)
                response = await submit(exchange.request)
                answer = exchange.encode(response)
            except PenstockError as error:
                note(call, status_of(error).name, sight, admitted)
                await abort(context, error)
            except asyncio.CancelledError:
                note(call, "CANCELLED", sight, admitted)
                raise
            except Exception:
                note(call, "INTERNAL", sight, admitted)
                await abort(context, unexpected(method.name))
            if sight is not None:
                sight.response = response
                note(call, "OK", sight, admitted)
            if always_timed or call.metadata.get("penstock-timing") == "1":
                context.set_trailing_metadata((("server-timing", server_timing(response.timings).decode()),))
            return answer

        return infer

    def _call(self, method: GrpcCall, name: str) -> Unary:
        hold, witness = self._hold, self._options.witness

        async def call(data: bytes, context: Context) -> bytes:
            code, request = "CANCELLED", self._request_of(data, context)
            hold.begun += 1
            try:
                if hold.holding:
                    await hold.wait()
                answer = await method.handle(request, self._door)
                code = "OK"
                return answer
            except PenstockError as error:
                code = status_of(error).name
                await abort(context, error)
            except Exception:
                code = "INTERNAL"
                await abort(context, unexpected(method.name))
            finally:
                if witness is not None:
                    witness.grpc(name, request.received, code, None)

        return call

    def _stream(self, method: GrpcStream, name: str) -> Callable[[AsyncIterator[bytes], Context], Awaitable[None]]:
        async def stream(messages: AsyncIterator[bytes], context: Context) -> None:
            call = StreamCall(method, name, self._door, context, self._request_of, self._options)
            await call.run(messages, self._stopping)

        return stream

    def _request_of(self, data: bytes, context: Context) -> GrpcRequest:
        received = time.monotonic()
        remaining_s = context.time_remaining()
        deadline = NO_DEADLINE if remaining_s is None else received + remaining_s
        return GrpcRequest(data, _metadata(context.invocation_metadata()), deadline, received, self._options.limits)


def _metadata(pairs: Iterable[tuple[str, str | bytes]] | None) -> Mapping[str, str]:
    """Text metadata; values of `-bin` keys are bytes and of no use to a protocol."""
    return {key: value for key, value in pairs or () if isinstance(value, str)}


def _key(pairs: Iterable[tuple[str, str | bytes]] | None) -> str | None:
    """What the call shows as its key: `authorization`, or `x-api-key` put in the same form."""
    metadata = _metadata(pairs)
    if "authorization" in metadata:
        return metadata["authorization"]
    return f"Bearer {metadata['x-api-key']}" if "x-api-key" in metadata else None


async def _refuse(messages: AsyncIterator[bytes], context: Context) -> None:
    await abort(context, Unauthenticated("this method needs an API key: send `authorization: Bearer KEY` as metadata"))
