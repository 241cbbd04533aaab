"""The client for asyncio programs; the same methods as `Client`, awaited."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from penstock.client import calls, events, http1, onward, retry, tensors
from penstock.client.calls import Call, Json, ModelMetadata
from penstock.client.http1 import Buffer, ConnectionEnded, Need, Reply
from penstock.client.options import IDLE_S, KEPT_CONNECTIONS, Tls, settings
from penstock.client.stream import Stream
from penstock.client.tensors import ArrayLike, Ask, Result
from penstock.core import caller
from penstock.core.door import Statistics, VersionStatus
from penstock.core.errors import DeadlineExceeded, InvalidInput, NotReady, PenstockError, WorkerLost
from penstock.core.messages import Parameter

if TYPE_CHECKING:
    import ssl

T = TypeVar("T")


class AsyncClient:
    """A client of one server for any number of tasks of one loop; see `Client` for what it is told and what it raises.

    Cancelling a task that waits for an answer closes its connection, so that the server drops the request.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        *,
        api_key: str | None = None,
        timeout_s: float | None = 60.0,
        retries: int = 2,
        compression: str | None = None,
        timing: bool = False,
        headers: Mapping[str, str] | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._settings = settings(url, api_key, timeout_s, retries, compression, timing, headers, tls)
        self._tls: ssl.SSLContext | None = self._settings.tls.context() if self._settings.address.secure else None
        self._idle: deque[Stream] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._datatypes: dict[tuple[str, str], dict[str, str]] = {}

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections that are not in use; a later call opens new ones."""
        while self._idle:
            self._idle.pop().close()

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, ArrayLike],
        *,
        version: str | int = "",
        parameters: Mapping[str, Parameter] | None = None,
        outputs: Sequence[str] = (),
        request_id: str = "",
        datatypes: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Result:
        """The outputs of one inference.

        An array is sent as it is; text as BYTES; lists and numbers as the model's metadata says, which is asked once.
        `datatypes` names an input's V2 datatype where that does not suffice, such as "BF16" for float32 values.
        `outputs` are the names wanted; empty is all.
        """
        deadline = self._deadline(timeout_s)
        ask = Ask(model, inputs, str(version), parameters or {}, outputs, request_id, datatypes or {})
        guessed = tensors.undecided(ask)
        if guessed:
            ask = await self._decide(ask, deadline)
        left = _left(deadline)
        call = calls.infer(ask, left, gzip=self._settings.gzip, timing=self._settings.timing)
        try:
            return await self._run(call, deadline)
        except InvalidInput:
            if guessed:  # the model may have been replaced by one of other types
                self._datatypes.pop((ask.model, ask.version), None)
            raise

    def stream(
        self,
        model: str,
        inputs: Mapping[str, object],
        *,
        version: str | int = "",
        parameters: Mapping[str, Parameter] | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Json]:
        """The answers of a streaming model as they come, each an object of outputs.

        Closing the iterator stops the model. `timeout_s` bounds the whole stream; without it, the client's own bounds
        the wait for each answer.
        """
        call = calls.stream(model, inputs, str(version), parameters or {})
        return self._stream(call, self._whole(timeout_s))

    async def generate(
        self,
        model: str,
        inputs: Mapping[str, object],
        *,
        version: str | int = "",
        parameters: Mapping[str, Parameter] | None = None,
        timeout_s: float | None = None,
    ) -> Json:
        """The one answer of a model, as an object of outputs in JSON."""
        call = calls.generate(model, inputs, str(version), parameters or {})
        return await self._run(call, self._deadline(timeout_s))

    async def live(self) -> bool:
        """Whether the server answers. Raises NotReady when it cannot be reached."""
        return await self._run(calls.live(), self._deadline(None))

    async def ready(self, model: str = "", version: str | int = "") -> bool:
        """Whether the server, or one model, can answer requests; a model that it does not know cannot.

        Raises NotReady when the server cannot be reached."""
        return await self._run(calls.ready(model, str(version)), self._deadline(None))

    async def models(self) -> list[str]:
        """The names of models that can answer, sorted."""
        return sorted({status.name for status in await self._run(calls.index(only_ready=True), self._deadline(None))})

    async def index(self) -> list[VersionStatus]:
        """Every version that the server knows of."""
        return await self._run(calls.index(only_ready=False), self._deadline(None))

    async def server(self) -> Json:
        """The server's name, version and extensions."""
        return await self._run(calls.server(), self._deadline(None))

    async def metrics(self) -> str:
        """The server's metrics, as Prometheus text."""
        return await self._run(calls.metrics(), self._deadline(None))

    async def metadata(self, model: str, version: str | int = "") -> ModelMetadata:
        """A model's versions, inputs and outputs."""
        return await self._run(calls.metadata(model, str(version)), self._deadline(None))

    async def config(self, model: str, version: str | int = "") -> Json:
        """A model's configuration."""
        return await self._run(calls.config(model, str(version)), self._deadline(None))

    async def statistics(self, model: str = "", version: str | int = "") -> list[Statistics]:
        """The figures of a model's versions, or of all models, since they were loaded."""
        return await self._run(calls.statistics(model, str(version)), self._deadline(None))

    async def load(
        self,
        model: str,
        *,
        config: Mapping[str, object] | None = None,
        files: Mapping[str, bytes] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Loads a model, or loads it anew, and returns when it answers. `files` are contents by path in the model."""
        await self._run(calls.load(model, config, files), self._deadline(timeout_s))

    async def unload(self, model: str, *, timeout_s: float | None = None) -> None:
        """Unloads a model; what it holds is answered first."""
        await self._run(calls.unload(model), self._deadline(timeout_s))

    # --- the machinery ---

    def _deadline(self, timeout_s: float | None) -> float:
        limit = self._settings.timeout_s if timeout_s is None else timeout_s
        return min(caller.deadline(), math.inf if limit is None else time.monotonic() + limit)

    def _whole(self, timeout_s: float | None) -> float | None:
        """The deadline of a whole stream; None when each of its answers has its own."""
        bounded = timeout_s is not None or caller.deadline() < math.inf
        return self._deadline(timeout_s) if bounded else None

    async def _decide(self, ask: Ask, deadline: float) -> Ask:
        key = (ask.model, ask.version)
        known = self._datatypes.get(key)
        if known is None:
            metadata = await self._run(calls.metadata(*key), deadline)
            known = self._datatypes[key] = {spec.name: spec.datatype for spec in metadata.inputs}
        return tensors.decided(ask, known)

    async def _run(self, call: Call[T], deadline: float) -> T:
        """The answer to a call, after as many tries as are safe and allowed."""
        attempt = 0
        while True:
            sent = False
            try:
                reused = self._take()
                connection = reused or await self._connect(deadline)
                sent = True
                reply = await self._exchange(connection, call, deadline, fresh=reused is None)
                if reply is None:
                    continue  # a kept connection had ended, and the call may be repeated: one that is new decides
                return call.read(reply)
            except PenstockError as error:
                left = deadline - time.monotonic()
                retries = self._settings.retries
                wait = retry.wait_s(error, attempt, retries, left, sent=sent, chance=random.random())
                if wait is None:
                    raise
            await asyncio.sleep(wait)
            attempt += 1

    async def _exchange(self, connection: Stream, call: Call[T], deadline: float, *, fresh: bool) -> Reply | None:
        keep = False
        try:
            async with asyncio.timeout(_left(deadline)):
                await connection.send(self._request(call, deadline))
                reply = await _drive(connection, http1.read_reply(call.method, self._settings.max_response_bytes))
            keep = reply.keep_alive
            return reply
        except TimeoutError:
            raise DeadlineExceeded("no answer in time") from None
        except ConnectionEnded as error:
            if call.repeatable and not fresh:
                return None
            raise WorkerLost("the connection broke before the answer was there") from error
        finally:
            self._release(connection, keep)

    async def _stream(self, call: Call[Json], deadline: float | None) -> AsyncIterator[Json]:
        limit = self._deadline(None) if deadline is None else deadline
        connection = self._take() or await self._connect(limit)
        keep = False
        try:
            async with asyncio.timeout(_left(limit)):
                await connection.send(self._request(call, math.inf if deadline is None else deadline))
            reader = events.read_stream(call, self._settings.max_response_bytes)
            need = next(reader)
            while True:
                if isinstance(need, dict):
                    yield need
                    if deadline is None:
                        limit = self._deadline(None)
                    need = next(reader)
                else:
                    async with asyncio.timeout(_left(limit)):
                        data = await connection.read(need)
                    need = reader.send(data)
        except StopIteration as stop:
            keep = stop.value
        except TimeoutError:
            raise DeadlineExceeded("no answer in time") from None
        except ConnectionEnded as error:
            raise WorkerLost("the connection broke before the stream's end") from error
        finally:
            self._release(connection, keep)

    def _take(self) -> Stream | None:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # connections live and die with the loop that made them
            self._idle, self._loop = deque(), loop
        now = time.monotonic()
        while self._idle:
            connection = self._idle.pop()  # the last used: the others may grow old and be closed
            if connection.usable(now, IDLE_S):
                return connection
            connection.close()
        return None

    async def _connect(self, deadline: float) -> Stream:
        address = self._settings.address
        where = f"{address.host}:{address.port}"
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_left(deadline)):
                name = address.host if self._tls is not None else None
                _, connection = await loop.create_connection(
                    Stream, address.host, address.port, ssl=self._tls, server_hostname=name
                )
        except TimeoutError:
            raise DeadlineExceeded(f"no connection to {where} in time") from None
        except (OSError, UnicodeError) as error:
            raise NotReady(f"cannot connect to {where}: {error}") from error
        return connection

    def _release(self, connection: Stream, keep: bool) -> None:
        if keep and len(self._idle) < KEPT_CONNECTIONS and self._loop is asyncio.get_running_loop():
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        else:
            connection.close()

    def _request(self, call: Call[T], deadline: float) -> list[Buffer]:
        headers = {**onward.trace_headers(), **self._settings.headers, **call.headers}
        left = _left(deadline)
        if left is not None:
            headers["Penstock-Timeout-Ms"] = f"{max(left, 1e-3) * 1e3:.3f}"
        return http1.request(self._settings.address, call.method, call.path, headers, call.body)


def _left(deadline: float) -> float | None:
    return None if deadline == math.inf else deadline - time.monotonic()


async def _drive(connection: Stream, reader: Generator[Need, bytes | bytearray, T]) -> T:
    try:
        need = next(reader)
        while True:
            need = reader.send(await connection.read(need))
    except StopIteration as stop:
        value: T = stop.value
        return value
