"""Messages between a front process and the engine's process, and their framing on a stream socket.

A frame is a prefix (header bytes, payload bytes), a MessagePack header and a payload of raw tensors, laid out as the
worker protocol lays them (`workers.frame`). Both ends speak the same `VERSION`: a front is told the engine's when it is
started, and refuses another, as when the package was replaced under a running server.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Mapping
from typing import Any, Generic, TypeVar, cast

import msgspec

from penstock.core.door import ModelDescription
from penstock.core.errors import InvalidInput, TooLarge
from penstock.core.messages import Parameter, Timings
from penstock.core.servable import Tensors
from penstock.core.trace import RequestTrace, TraceContext
from penstock.runtime.keys import ApiKey
from penstock.runtime.language.figures import Spoken
from penstock.runtime.version import InlineCopy
from penstock.runtime.workers import frame
from penstock.runtime.workers.frame import TensorHead

log = logging.getLogger("penstock.fronts")

VERSION = 1  # another one whenever the messages below, or what they hold, change between releases
_PREFIX = struct.Struct("<II")
# A frame is one request or answer: the listener's own limits are far below, so more can only be a fault.
_MOST_BYTES = (1 << 32) - 1


class Infer(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """To the engine: one request; with `stream`, of a stream."""

    id: int
    model: str
    version: str
    request_id: str
    parameters: dict[str, Parameter]
    outputs: tuple[str, ...]
    deadline: float
    priority: int
    received: float
    tensors: list[TensorHead]
    stream: bool = False
    trace: TraceContext | None = None
    internal: bool = False
    caller: str = ""


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """To the engine: nobody waits for this request any more."""

    id: int


class Take(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """To the engine: the reader of this stream wants one more item."""

    id: int


class Call(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """To the engine: one of the door's other methods."""

    id: int
    method: str
    arguments: list[Any]


class Figures(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """To the engine, now and then: what this front's listener has counted, and how busy its copies are: (model,
    version, requests in flight, queued)."""

    responses: list[int]
    refused: dict[str, int]
    open_connections: int
    copies: list[tuple[str, str, int, int]] = []
    spans: tuple[int, int, int] = (0, 0, 0)  # recorded requests: exported, dropped, failed


class Observed(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """To the engine: what a copy of an inline version has done; see `telemetry.metrics.ForwardingMetrics`."""

    model: str
    version: str
    requests: bytes
    batches: bytes
    failures: list[tuple[str, float]]


class Told(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """To the engine, after `Tell`: everything observed until then has been sent."""

    id: int


class Observation(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """To the engine: what a request to a language model came to."""

    spoken: Spoken


class Started(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """To the engine, once: this front listens."""


class Answer(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """To the front: the answer, or one item of a stream."""

    id: int
    model: str
    version: str
    request_id: str
    parameters: dict[str, Parameter]
    tensors: list[TensorHead]
    timings: Timings
    traces: tuple[RequestTrace, ...] = ()


class End(msgspec.Struct, frozen=True, array_like=True, tag=17):
    """To the front: the stream is over."""

    id: int


class Problem(msgspec.Struct, frozen=True, array_like=True, tag=18):
    """To the front: the request, stream or call ended with an error of `core.errors`."""

    id: int
    kind: str
    message: str
    retry_after_s: float | None = None


class Reply(msgspec.Struct, frozen=True, array_like=True, tag=19):
    """To the front: what the method gave back."""

    id: int
    value: msgspec.Raw


class Table(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """To the front, at the start and after every change: everything that lookups need."""

    ready: bool
    stopping: bool
    descriptions: list[ModelDescription]
    copies: list[InlineCopy | None]  # by place: what a front may hold itself
    answering: list[bool]  # by place: whether it computes now
    places: dict[str, dict[str, int]]  # model -> version text ("" is the default) -> place in descriptions
    unready: dict[str, str]  # models that are known and have no ready version -> why
    started: bool = False  # the first load is over: what is not here is not known


class Setup(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """To the front, first: how to listen."""

    host: str
    http_port: int
    grpc_port: int | None
    options: dict[str, Any]  # fields of ServerOptions
    api_keys: tuple[ApiKey, ...]


class Tell(msgspec.Struct, frozen=True, array_like=True, tag=23):
    """To the front: send what you have observed, now."""

    id: int


class Drain(msgspec.Struct, frozen=True, array_like=True, tag=22):
    """To the front: accept nothing new, finish within `grace_s`, end."""

    grace_s: float


ToEngine = Infer | Cancel | Take | Call | Figures | Started | Observed | Told | Observation
ToFront = Answer | End | Problem | Reply | Table | Setup | Tell | Drain

Incoming = TypeVar("Incoming")


class Link(asyncio.Protocol, Generic[Incoming]):
    """One end of the socket. `on_message` gets each message and its payload (bytes it may keep)."""

    def __init__(self, incoming: Any) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._decoder: msgspec.msgpack.Decoder[Incoming] = msgspec.msgpack.Decoder(incoming)
        self._encoder = msgspec.msgpack.Encoder()
        self._transport: asyncio.WriteTransport | None = None
        self._received = bytearray()

    def on_message(self, message: Incoming, payload: bytes) -> None:
        """Called for each message, on the loop's thread; implemented by the two ends."""
        raise NotImplementedError

    def send(self, message: ToEngine | ToFront, payload: frame.Payload | None = None) -> None:
        """Sends one message; silently nothing when the other end is gone (`closed` tells).

        Raises:
            InvalidInput: it holds what MessagePack cannot carry, such as a whole number beyond 64 bits.
            TooLarge: it has more bytes than a frame can count.
        """
        if self._transport is None or self._transport.is_closing():
            return
        try:
            header = self._encoder.encode(message)
        except (TypeError, OverflowError, ValueError) as error:
            raise InvalidInput(f"a parameter cannot be passed to the model: {error}") from None
        if len(header) > _MOST_BYTES or (payload is not None and payload.size > _MOST_BYTES):
            raise TooLarge("one message of more than 4 GiB cannot be passed on by an extra front")
        if payload is None or not payload.size:
            self._transport.write(_PREFIX.pack(len(header), 0) + header)
            return
        chunks = [chunk if isinstance(chunk, bytes) else chunk.tobytes() for chunk in payload.chunks]
        self._transport.write(b"".join((_PREFIX.pack(len(header), payload.size), header, *chunks)))

    def close(self) -> None:
        """Ends the link; what was sent still goes out."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is one in all but name

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._received += data
        at = 0
        received = self._received
        while len(received) - at >= _PREFIX.size:
            header_bytes, payload_bytes = _PREFIX.unpack_from(received, at)
            end = at + _PREFIX.size + header_bytes + payload_bytes
            if end > len(received):
                break
            middle = at + _PREFIX.size + header_bytes
            header, payload = bytes(received[at + _PREFIX.size : middle]), bytes(received[middle:end])
            at = end
            try:
                message = self._decoder.decode(header)
            except (ValueError, RecursionError):  # msgspec's own errors are ValueErrors, and so is text that is none
                # Nobody knows what was asked, or of whom the answer was: both ends begin anew, and say so to all.
                log.exception("front_message_unreadable")
                received.clear()
                self.close()
                return
            try:
                self.on_message(message, payload)
            except Exception:  # outermost: nothing may leave a protocol's callback
                log.exception("front_message_failed")
        del received[:at]


def packed(tensors: Tensors) -> frame.Payload:
    """Tensors laid out for a frame. Raises: InvalidInput for types that no datatype has."""
    return frame.pack([tensors])


def plain(parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """Parameters as the messages carry them."""
    return dict(parameters)
