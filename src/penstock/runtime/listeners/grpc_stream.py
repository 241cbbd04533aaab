"""Bidirectional inference streams. Imports grpc; import it only when listening."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import grpc.aio

from penstock.core.door import Door
from penstock.core.errors import NotReady, PenstockError
from penstock.protocols import GrpcRequest, GrpcStream, GrpcStreamExchange
from penstock.runtime.listeners.grpc_status import abort, status_of, unexpected
from penstock.runtime.listeners.until import until
from penstock.runtime.listeners.witness import Sight, take_grpc_trace

if TYPE_CHECKING:
    from penstock.runtime.listeners.grpc import GrpcOptions


class EndCall(Exception):
    """Ends a stream's whole call with the error's status."""

    def __init__(self, error: PenstockError) -> None:
        super().__init__(error.message)
        self.error = error


class StreamCall:
    """One bidirectional call. A reader starts a task for each message; their answers are written one at a time, each
    task's in order, the tasks' as they come. When the call is cancelled, so are they all."""

    def __init__(
        self,
        method: GrpcStream,
        name: str,  # service/method
        door: Door,
        context: Any,  # a grpc.aio.ServicerContext, which has no types
        request_of: Callable[[bytes, Any], GrpcRequest],
        options: GrpcOptions,
    ) -> None:
        self._method = method
        self._name = name
        self._witness = options.witness
        self._door = door
        self._context = context
        self._request_of = request_of
        self._free = asyncio.Semaphore(options.max_stream_in_flight)
        self._writing = asyncio.Lock()

    async def run(self, messages: AsyncIterator[bytes], stopping: asyncio.Event) -> None:
        """Returns when all is answered and the client has closed its side, or the call was cancelled."""
        stopped, ended = False, None
        try:
            async with asyncio.TaskGroup() as group:
                stopped = await until(stopping, self._read(messages, group))
        except* EndCall as raised:
            ended = raised
        if ended is not None:
            await abort(self._context, _first(ended))
        if stopped:
            await abort(self._context, NotReady("the server is stopping: open a new stream"))

    async def _read(self, messages: AsyncIterator[bytes], group: asyncio.TaskGroup) -> None:
        async for data in messages:
            # Not reading on is the back-pressure: grpc's flow control passes it to the client.
            await self._free.acquire()
            request = self._request_of(data, self._context)
            try:
                exchange = self._method.decode(request, self._door)
            except Exception as raised:
                self._free.release()
                error = raised if isinstance(raised, PenstockError) else unexpected(self._method.name)
                await self._refuse(self._method.encode_error(error, request), error)
            else:
                if "traceparent" in request.metadata:
                    take_grpc_trace(exchange.request, request.metadata)
                group.create_task(self._answer(exchange, request.received))

    async def _answer(self, exchange: GrpcStreamExchange, received: float) -> None:
        request, witness, code = exchange.request, self._witness, "CANCELLED"
        sight = None if witness is None else witness.see(request)
        try:
            if self._door.signature(request.model, request.version).streaming:
                await self._answer_all(exchange, sight)
            else:
                response = await self._door.submit(request)
                if sight is not None:
                    sight.response = response
                await self._write(exchange.encode_item(response))
            await self._write(exchange.encode_end())
            code = "OK"
        except PenstockError as error:
            code = status_of(error).name
            await self._refuse(exchange.encode_error(error), error)
        except Exception:
            code = "INTERNAL"
            surprise = unexpected(self._method.name)
            await self._refuse(exchange.encode_error(surprise), surprise)
        finally:
            if witness is not None:
                witness.grpc(self._name, received, code, sight)
            self._free.release()

    async def _answer_all(self, exchange: GrpcStreamExchange, sight: Sight | None) -> None:
        answers = self._door.stream(exchange.request)
        try:
            async for response in answers:
                if sight is not None and sight.response is None:
                    sight.response = response
                await self._write(exchange.encode_item(response))
        finally:
            # Closing stops the model. Iterators that are no generators may have nothing to close.
            close = getattr(answers, "aclose", None)
            if close is not None:
                await close()

    async def _refuse(self, message: bytes | None, error: PenstockError) -> None:
        if message is None:
            raise EndCall(error)
        await self._write(message)

    async def _write(self, message: bytes | None) -> None:
        """Returns when the transport has taken the message: a slow reader holds its models back."""
        if message is None:
            return
        async with self._writing:
            try:
                await self._context.write(message)
            except (grpc.aio.InternalError, grpc.aio.UsageError):
                # The client is gone; grpc cancels the call, and so this task, next.
                await asyncio.sleep(0)


def _first(group: BaseExceptionGroup[EndCall]) -> PenstockError:
    """The error that ended the call; others that happened at the same time add nothing for the client."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first.error
