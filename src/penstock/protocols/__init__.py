"""Wire bytes ⇄ core.messages, without I/O. One file per protocol; the file's name is the protocol's name in config.

What an implementer owes:

1. The module has `plug`, an object with the attributes of `HttpProtocol` or `GrpcProtocol`.
2. Nothing here reads a socket, a clock or the environment, or blocks. The listener owns all bytes and time.
3. `decode` raises an error of `core.errors` for anything malformed and lets no other exception out; bytes from a
   client are never trusted for a size, a depth or a path.
4. No protocol imports another. What two share is in `core`.
5. Every route of a server is listed by `routes()`: the OpenAPI document, the authentication test and the router are
   all made from that list.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from penstock.core.batches import LineAnswer
from penstock.core.door import Door
from penstock.core.errors import PenstockError
from penstock.core.messages import NO_DEADLINE, Request, Response
from penstock.core.responses import AnswersWishes
from penstock.core.servable import Signature

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Limits:
    """What a decoder allows. Sizes in bytes."""

    json_depth: int = 64
    tensor_bytes: int = 1 << 30
    decompressed_bytes: int = 1 << 28


@dataclass(slots=True)
class HttpRequest:
    """One whole HTTP request. Header names are lower case, as bytes; the path is percent-decoded and has no query.

    Protocols count a deadline in the body from `received`; the listener moves it to `began`: a slow upload counts.
    """

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    body: Buffer = b""
    query: str = ""
    match: Mapping[str, str] = field(default_factory=dict)  # the route's {names}
    received: float = 0.0
    limits: Limits = Limits()
    began: float = 0.0  # monotonic: its first byte came
    deadline: float = NO_DEADLINE  # of a call (`CallRoute`): what its caller's header said, monotonic
    caller: str = ""  # whose key came with it; "" when no key is asked for
    # Headers that go with the answer, or with a stream's head, added until it goes out.
    notes: list[tuple[str, str]] = field(default_factory=list)
    priority: int = 0  # the level of a line of a batch, whatever its body says; 0 is as the body says

    def header(self, name: bytes, default: str = "") -> str:
        """The text of a header, latin-1, or `default`."""
        value = self.headers.get(name)
        return default if value is None else value.decode("latin-1")


@dataclass(slots=True)
class HttpResponse:
    """One whole HTTP response; the listener adds framing headers. `body` may be several parts, written in order."""

    status: int
    body: bytes | Sequence[bytes | memoryview] = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class HttpStream:
    """An answer of a call that goes out piece by piece. The listener awaits the first piece before it sends the head:
    an error until then is an ordinary HTTP error, later it is `encode_error`'s last piece. It closes `pieces` whatever
    happens, and takes the next one only when the client has taken the one before."""

    pieces: AsyncIterator[bytes]
    encode_error: Callable[[PenstockError], bytes]
    content_type: str = "text/event-stream"
    headers: tuple[tuple[str, str], ...] = ()
    # Gives what writes a piece at once, between two that the iterator gives: None while the client takes nothing or the
    # head is not out. For pieces that come while the listener waits for `pieces`, and only for these.
    writer: Callable[[], Callable[[bytes], None] | None] = field(default=lambda: None)


class Exchange(Protocol):
    """One decoded inference call: the request, and how its caller wants the answer."""

    request: Request

    def encode(self, response: Response) -> HttpResponse: ...


class StreamExchange(Protocol):
    """One decoded streaming call. The listener writes `encode_item` of each answer and `encode_end` or `encode_error`
    last; an error before the first item is answered as an ordinary HTTP error."""

    request: Request
    content_type: str

    def encode_item(self, response: Response) -> bytes: ...

    def encode_end(self) -> bytes: ...

    def encode_error(self, error: PenstockError) -> bytes: ...


# A JSON body that works for a model of this signature, for documents; None when there is none short enough to show.
Example = Callable[[Signature], Mapping[str, object] | None]

# Answers a request with no shape of its own.
Handler = Callable[[HttpRequest, Door], Awaitable["HttpResponse | HttpStream"]]


@dataclass(frozen=True, slots=True)
class InferRoute:
    """A path that answers one inference. `{name}` in the pattern matches one or more characters except '/'."""

    method: str
    pattern: str
    decode: Callable[[HttpRequest, Door], Exchange]
    summary: str
    openapi: Mapping[str, object] = field(default_factory=dict)  # operation object: requestBody, responses, …
    example: Example | None = None
    language: Handler | None = None  # answers instead, where the model that the path names is a language model


@dataclass(frozen=True, slots=True)
class StreamRoute:
    """A path that answers a stream (server-sent events)."""

    method: str
    pattern: str
    decode: Callable[[HttpRequest, Door], StreamExchange]
    summary: str
    openapi: Mapping[str, object] = field(default_factory=dict)
    example: Example | None = None
    language: Handler | None = None  # answers instead, where the model that the path names is a language model


@dataclass(frozen=True, slots=True)
class CallRoute:
    """Everything else: health, metadata, repository, settings, language models. `public` routes need no API key
    (health only)."""

    method: str
    pattern: str
    handle: Handler
    summary: str
    public: bool = False
    openapi: Mapping[str, object] = field(default_factory=dict)


Route = InferRoute | StreamRoute | CallRoute


class HttpProtocol(Protocol):
    """A protocol over HTTP."""

    name: str
    title: str

    def routes(self) -> Sequence[Route]: ...

    def encode_error(self, error: PenstockError, request: HttpRequest) -> HttpResponse: ...


@runtime_checkable
class AnswersLines(Protocol):
    """An HttpProtocol whose requests may also come in files, a line each."""

    async def answer_line(self, endpoint: str, body: bytes, caller: str, deadline: float, door: Door) -> LineAnswer:
        """What the route at `endpoint` answers to `body`. Raises nothing but what cancels it."""
        ...

    def wishes(self, door: Door) -> AnswersWishes:
        """What makes the answers for which nobody waits."""
        ...


@runtime_checkable
class DescribesServer(Protocol):
    """An HttpProtocol whose answers are about all of a server's routes. Who puts a server's protocols together asks it
    for `describing(all of them)`, itself included, and serves what it gets back instead of it."""

    def describing(self, protocols: Sequence[HttpProtocol]) -> HttpProtocol: ...


def described(protocols: Sequence[HttpProtocol]) -> list[HttpProtocol]:
    """`protocols`, with those that describe the others told about them."""
    return [
        protocol.describing(protocols) if isinstance(protocol, DescribesServer) else protocol for protocol in protocols
    ]


@dataclass(slots=True)
class GrpcRequest:
    """One gRPC message as it came. Metadata keys are lower case; `deadline` is monotonic seconds or infinity."""

    data: bytes
    metadata: Mapping[str, str]
    deadline: float
    received: float
    limits: Limits = Limits()


class GrpcExchange(Protocol):
    """One decoded inference call over gRPC."""

    request: Request

    def encode(self, response: Response) -> bytes: ...


class GrpcStreamExchange(Protocol):
    """One message of a bidirectional stream. What `encode_*` returns is sent if it is not None; when `encode_error`
    returns None, the whole call ends with the error's status."""

    request: Request

    def encode_item(self, response: Response) -> bytes | None: ...

    def encode_end(self) -> bytes | None: ...

    def encode_error(self, error: PenstockError) -> bytes | None: ...


@dataclass(frozen=True, slots=True)
class GrpcInfer:
    """A unary inference method."""

    name: str
    decode: Callable[[GrpcRequest, Door], GrpcExchange]


@dataclass(frozen=True, slots=True)
class GrpcStream:
    """A bidirectional streaming inference method: each incoming message is one request, answered by any number."""

    name: str
    decode: Callable[[GrpcRequest, Door], GrpcStreamExchange]
    encode_error: Callable[[PenstockError, GrpcRequest], bytes | None]  # of a message that `decode` refused


@dataclass(frozen=True, slots=True)
class GrpcCall:
    """Every other unary method."""

    name: str
    handle: Callable[[GrpcRequest, Door], Awaitable[bytes]]


class GrpcProtocol(Protocol):
    """A gRPC service. `file_descriptors` are serialized FileDescriptorProtos for reflection, dependencies first."""

    name: str
    service: str

    def methods(self) -> Sequence[GrpcInfer | GrpcStream | GrpcCall]: ...

    def file_descriptors(self) -> Sequence[bytes]: ...
