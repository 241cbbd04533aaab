"""The client for ordinary, and threaded, programs."""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import TypeVar

from penstock.client import calls, events, http1, onward, retry, tensors
from penstock.client.calls import Call, Json, ModelMetadata
from penstock.client.connection import Connection, Pool
from penstock.client.http1 import Buffer, ConnectionEnded, Need, Reply
from penstock.client.options import Tls, settings
from penstock.client.tensors import ArrayLike, Ask, Result
from penstock.core import caller
from penstock.core.door import Statistics, VersionStatus
from penstock.core.errors import DeadlineExceeded, InvalidInput, PenstockError, WorkerLost
from penstock.core.messages import Parameter

T = TypeVar("T")


class Client:
    """A client of one server, for any number of threads. Keeps connections open; close it, or use it in a `with`.

    `timeout_s` is the deadline of each call, sent to the server too, so that it stops working on what nobody waits for;
    each method's own `timeout_s` replaces it. In a model's own code no call lasts longer than the model's callers wait,
    and each is part of their trace (`penstock.current_trace`). `retries` counts further tries of what surely had no
    effect: a server that cannot be reached, or that refuses and says when to come back. `compression` "gzip" compresses
    tensors both ways. `timing` asks for the time split in each `Result.timings`.

    Every method raises the errors of `core.errors`: NotReady when the server cannot be reached, DeadlineExceeded,
    WorkerLost when the connection broke while the server worked, and whatever the server answers.
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
        self._pool = Pool(self._settings)
        self._datatypes: dict[tuple[str, str], dict[str, str]] = {}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; a later call opens new ones."""
        self._pool.close()

    def infer(
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
            ask = self._decide(ask, deadline)
        left = _left(deadline)
        call = calls.infer(ask, left, gzip=self._settings.gzip, timing=self._settings.timing)
        try:
            return self._run(call, deadline)
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
    ) -> Iterator[Json]:
        """The answers of a streaming model as they come, each an object of outputs.

        Closing the iterator stops the model. `timeout_s` bounds the whole stream; without it, the client's own bounds
        the wait for each answer.
        """
        call = calls.stream(model, inputs, str(version), parameters or {})
        return self._stream(call, self._whole(timeout_s))

    def generate(
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
        return self._run(call, self._deadline(timeout_s))

    def live(self) -> bool:
        """Whether the server answers. Raises NotReady when it cannot be reached."""
        return self._run(calls.live(), self._deadline(None))

    def ready(self, model: str = "", version: str | int = "") -> bool:
        """Whether the server, or one model, can answer requests; a model that it does not know cannot.

        Raises NotReady when the server cannot be reached."""
        return self._run(calls.ready(model, str(version)), self._deadline(None))

    def models(self) -> list[str]:
        """The names of models that can answer, sorted."""
        return sorted({status.name for status in self._run(calls.index(only_ready=True), self._deadline(None))})

    def index(self) -> list[VersionStatus]:
        """Every version that the server knows of."""
        return self._run(calls.index(only_ready=False), self._deadline(None))

    def server(self) -> Json:
        """The server's name, version and extensions."""
        return self._run(calls.server(), self._deadline(None))

    def metrics(self) -> str:
        """The server's metrics, as Prometheus text."""
        return self._run(calls.metrics(), self._deadline(None))

    def metadata(self, model: str, version: str | int = "") -> ModelMetadata:
        """A model's versions, inputs and outputs."""
        return self._run(calls.metadata(model, str(version)), self._deadline(None))

    def config(self, model: str, version: str | int = "") -> Json:
        """A model's configuration."""
        return self._run(calls.config(model, str(version)), self._deadline(None))

    def statistics(self, model: str = "", version: str | int = "") -> list[Statistics]:
        """The figures of a model's versions, or of all models, since they were loaded."""
        return self._run(calls.statistics(model, str(version)), self._deadline(None))

    def load(
        self,
        model: str,
        *,
        config: Mapping[str, object] | None = None,
        files: Mapping[str, bytes] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Loads a model, or loads it anew, and returns when it answers. `files` are contents by path in the model."""
        self._run(calls.load(model, config, files), self._deadline(timeout_s))

    def unload(self, model: str, *, timeout_s: float | None = None) -> None:
        """Unloads a model; what it holds is answered first."""
        self._run(calls.unload(model), self._deadline(timeout_s))

    # --- the machinery ---

    def _deadline(self, timeout_s: float | None) -> float:
        limit = self._settings.timeout_s if timeout_s is None else timeout_s
        return min(caller.deadline(), math.inf if limit is None else time.monotonic() + limit)

    def _whole(self, timeout_s: float | None) -> float | None:
        """The deadline of a whole stream; None when each of its answers has its own."""
        bounded = timeout_s is not None or caller.deadline() < math.inf
        return self._deadline(timeout_s) if bounded else None

    def _decide(self, ask: Ask, deadline: float) -> Ask:
        key = (ask.model, ask.version)
        known = self._datatypes.get(key)
        if known is None:
            metadata = self._run(calls.metadata(*key), deadline)
            known = self._datatypes[key] = {spec.name: spec.datatype for spec in metadata.inputs}
        return tensors.decided(ask, known)

    def _run(self, call: Call[T], deadline: float) -> T:
        """The answer to a call, after as many tries as are safe and allowed."""
        attempt = 0
        while True:
            sent = False
            try:
                reused = self._pool.take()
                connection = reused or self._pool.connect(deadline)
                sent = True
                reply = self._exchange(connection, call, deadline, fresh=reused is None)
                if reply is None:
                    continue  # a kept connection had ended, and the call may be repeated: one that is new decides
                return call.read(reply)
            except PenstockError as error:
                left = deadline - time.monotonic()
                retries = self._settings.retries
                wait = retry.wait_s(error, attempt, retries, left, sent=sent, chance=random.random())
                if wait is None:
                    raise
            time.sleep(wait)
            attempt += 1

    def _exchange(self, connection: Connection, call: Call[T], deadline: float, *, fresh: bool) -> Reply | None:
        connection.deadline = deadline
        sent = keep = False
        try:
            # A server may refuse a body, answer and close before it has read it all: then the answer counts.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.send(self._request(call, deadline))
                sent = True
            reply = _drive(connection, http1.read_reply(call.method, self._settings.max_response_bytes))
            keep = sent and reply.keep_alive
            return reply
        except TimeoutError:
            raise DeadlineExceeded("no answer in time") from None
        except (ConnectionEnded, OSError) as error:
            if call.repeatable and not fresh:
                return None
            raise WorkerLost("the connection broke before the answer was there") from error
        finally:
            if keep:
                self._pool.give_back(connection)
            else:
                connection.close()

    def _stream(self, call: Call[Json], deadline: float | None) -> Iterator[Json]:
        connection = self._pool.take() or self._pool.connect(self._deadline(None) if deadline is None else deadline)
        keep = False
        try:
            connection.deadline = self._deadline(None) if deadline is None else deadline
            connection.send(self._request(call, math.inf if deadline is None else deadline))
            reader = events.read_stream(call, self._settings.max_response_bytes)
            need = next(reader)
            while True:
                if isinstance(need, dict):
                    yield need
                    if deadline is None:
                        connection.deadline = self._deadline(None)
                    need = next(reader)
                else:
                    need = reader.send(connection.read(need))
        except StopIteration as stop:
            keep = stop.value
        except TimeoutError:
            raise DeadlineExceeded("no answer in time") from None
        except (ConnectionEnded, OSError) as error:
            raise WorkerLost("the connection broke before the stream's end") from error
        finally:
            if keep:
                self._pool.give_back(connection)
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


def _drive(connection: Connection, reader: Generator[Need, bytes | bytearray, T]) -> T:
    try:
        need = next(reader)
        while True:
            need = reader.send(connection.read(need))
    except StopIteration as stop:
        value: T = stop.value
        return value
