"""A door of numpy functions, a small HTTP protocol and a raw client, to drive the HTTP listener over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from penstock.core.batches import Batches
from penstock.core.door import Door, ModelDescription, Statistics, VersionStatus
from penstock.core.errors import InvalidInput, NotFound, Overloaded, PenstockError, ServableError, Unsupported
from penstock.core.messages import Parameter, Request, Response
from penstock.core.responses import Responses
from penstock.core.servable import Signature
from penstock.protocols import CallRoute, HttpRequest, HttpResponse, InferRoute, Route, StreamRoute
from penstock.runtime.listeners.http import HttpListener
from penstock.runtime.listeners.http_options import HttpOptions

FUNCTIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "double": lambda x: x * 2,
    "sum": lambda x: x.sum(axis=-1, keepdims=True),
    "large": lambda x: np.zeros(2_000_000),
}
STATUS = {"INVALID_ARGUMENT": 400, "OUT_OF_RANGE": 413, "NOT_FOUND": 404, "UNAVAILABLE": 503, "UNAUTHENTICATED": 401,
          "CANCELLED": 499, "DEADLINE_EXCEEDED": 504}  # fmt: skip


class NumpyDoor:
    """A door whose models are functions of one array `x`. While `gate` is closed, answers wait for it."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting: dict[str, asyncio.Future[Response]] = {}
        self.requests: list[Request] = []
        self.cancelled: list[str] = []
        self.streams_open = 0
        self.streams_closed = 0
        self.items_made = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def signature(self, model: str, version: str = "") -> Signature:
        if model not in FUNCTIONS:
            raise NotFound(f"no model '{model}'")
        return Signature((), (), "numpy", batchable=False)

    def submit(self, request: Request) -> asyncio.Future[Response]:
        self.requests.append(request)
        if request.model == "full":
            raise Overloaded("the queue is full", retry_after_s=2.5)
        if request.model == "defect":
            raise KeyError("a defect of the engine")
        future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        if self.gate.is_set():
            self._settle(request, future)
        else:
            self.waiting[request.id] = future
            future.add_done_callback(lambda done: self.cancelled.append(request.id) if done.cancelled() else None)
            task = asyncio.ensure_future(self._settle_later(request, future))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return future

    async def _settle_later(self, request: Request, future: asyncio.Future[Response]) -> None:
        await self.gate.wait()
        if not future.done():
            self._settle(request, future)

    def _settle(self, request: Request, future: asyncio.Future[Response]) -> None:
        self.waiting.pop(request.id, None)
        if request.model == "broken":
            future.set_exception(ServableError("ValueError: broken"))
        elif request.model not in FUNCTIONS:
            future.set_exception(NotFound(f"no model '{request.model}'"))
        else:
            future.set_result(self._answer(request, FUNCTIONS[request.model](request.inputs["x"])))

    def _answer(self, request: Request, y: np.ndarray) -> Response:
        return Response(request.model, "1", {"y": y}, id=request.id, timings=request.timings)

    async def stream(self, request: Request) -> AsyncIterator[Response]:
        """One item per element of `x`; a negative one is where the model breaks."""
        self.requests.append(request)
        self.streams_open += 1
        try:
            for value in request.inputs["x"]:
                await self.gate.wait()
                if value < 0:
                    raise ServableError("ValueError: negative")
                self.items_made += 1
                size = int(request.parameters.get("size", 1))
                yield self._answer(request, np.full(size, value))
        finally:
            self.streams_open -= 1
            self.streams_closed += 1

    def batches(self) -> Batches:
        raise Unsupported("this door keeps no files and no batches")

    def responses(self) -> Responses:
        raise Unsupported("this door keeps no answers")

    def live(self) -> bool:
        return True

    def ready(self) -> bool:
        return True

    def model_ready(self, model: str, version: str = "") -> bool:
        return model in FUNCTIONS

    def next_change(self) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()

    def models(self) -> list[str]:
        return sorted(FUNCTIONS)

    def describe(self, model: str, version: str = "") -> ModelDescription:
        return ModelDescription(model, 1, (1,), {}, self.signature(model), {}, "inline", "", "")

    async def statistics(self, model: str = "", version: str = "") -> list[Statistics]:
        return [Statistics(name, "1") for name in self.models()]

    async def index(self) -> list[VersionStatus]:
        return [VersionStatus(name, "1", "READY") for name in self.models()]

    async def load(self, model: str, config: Any = None, files: Any = None) -> None:
        raise NotFound(model)

    async def unload(self, model: str) -> None:
        raise NotFound(model)

    async def trace_settings(self, model: str = "", update: Any = None) -> Mapping[str, object]:
        return {}

    async def log_settings(self, update: Any = None) -> Mapping[str, Parameter]:
        return {}

    async def metrics(self) -> bytes:
        return b""


@dataclass
class JsonExchange:
    request: Request

    def encode(self, response: Response) -> HttpResponse:
        if self.request.model == "unencodable":
            raise TypeError("a defect of the protocol")
        return HttpResponse(200, orjson.dumps({"id": response.id, "y": response.outputs["y"].tolist()}))


@dataclass
class EventExchange:
    request: Request
    content_type: str = "text/event-stream"

    def encode_item(self, response: Response) -> bytes:
        return b"data: %b\n\n" % orjson.dumps(response.outputs["y"].tolist())

    def encode_end(self) -> bytes:
        return b"data: [DONE]\n\n"

    def encode_error(self, error: PenstockError) -> bytes:
        return b"event: error\ndata: %b\n\n" % str(error).encode()


def decode(http: HttpRequest, door: Door) -> Request:
    try:
        body = orjson.loads(http.body)
        x = np.asarray(body["x"], dtype=float)
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInput(f"bad body: {error}") from error
    return Request(http.match["model"], {"x": x}, id=str(body.get("id", "")), parameters=body.get("parameters", {}))


class JsonProtocol:
    """`{"x": […], "id": …}` in, `{"id": …, "y": […]}` out."""

    name = "json"
    title = "Test JSON"

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.calls_cancelled = 0
        self.last: HttpRequest | None = None

    def routes(self) -> Sequence[Route]:
        return [
            InferRoute("POST", "/models/{model}/infer", self.infer, "infer"),
            StreamRoute(
                "POST", "/models/{model}/stream", lambda http, door: EventExchange(decode(http, door)), "stream"
            ),
            CallRoute("GET", "/health", self.health, "health", public=True),
            CallRoute("GET", "/models", self.models, "models"),
            CallRoute("POST", "/upload", self.upload, "length and checksum of the body"),
            CallRoute("GET", "/slow", self.slow, "waits for the gate"),
            CallRoute("GET", "/defect", self.defect, "raises"),
            CallRoute("GET", "/zeros/{size}", self.zeros, "a body of zeros"),
            CallRoute("POST", "/echo/{name}", self.echo, "what the protocol was given"),
        ]

    def encode_error(self, error: PenstockError, request: HttpRequest) -> HttpResponse:
        return HttpResponse(STATUS.get(error.code, 500), orjson.dumps({"error": error.message, "protocol": "json"}))

    def infer(self, http: HttpRequest, door: Door) -> JsonExchange:
        self.last = http
        return JsonExchange(decode(http, door))

    async def health(self, http: HttpRequest, door: Door) -> HttpResponse:
        return HttpResponse(200, b"")

    async def models(self, http: HttpRequest, door: Door) -> HttpResponse:
        return HttpResponse(200, orjson.dumps(door.models()))

    async def upload(self, http: HttpRequest, door: Door) -> HttpResponse:
        return HttpResponse(200, orjson.dumps([len(http.body), zlib.crc32(http.body)]))

    async def slow(self, http: HttpRequest, door: Door) -> HttpResponse:
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.calls_cancelled += 1
            raise
        return HttpResponse(200, b"{}")

    async def defect(self, http: HttpRequest, door: Door) -> HttpResponse:
        raise KeyError("a defect of the handler")

    async def zeros(self, http: HttpRequest, door: Door) -> HttpResponse:
        return HttpResponse(200, [bytes(int(http.match["size"]))], "application/octet-stream")

    async def echo(self, http: HttpRequest, door: Door) -> HttpResponse:
        headers = {name.decode(): value.decode("latin-1") for name, value in http.headers.items()}
        return HttpResponse(200, orjson.dumps({
            "method": http.method, "path": http.path, "query": http.query, "match": dict(http.match),
            "headers": headers, "body": bytes(http.body).decode("latin-1"),
        }))  # fmt: skip


@dataclass
class Answer:
    """One parsed response."""

    status: int
    headers: dict[str, str]
    body: bytes
    chunks: list[bytes] = field(default_factory=list)
    complete: bool = True  # the body came to its announced end

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


class Client:
    """A raw connection that reads responses strictly."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, *, head: bool = False) -> Answer:
        """The next response, interim ones included."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ")[1])
        headers = {}
        for line in lines[1:-2]:
            name, _, value = line.partition(": ")
            assert name.lower() not in headers, f"header {name} twice"
            headers[name.lower()] = value
        answer = Answer(status, headers, b"")
        if status < 200 or status in (204, 304) or head:
            return answer
        try:
            if headers.get("transfer-encoding") == "chunked":
                while size := int((await self.reader.readuntil(b"\r\n")).strip(), 16):
                    answer.chunks.append((await self.reader.readexactly(size + 2))[:-2])
                assert await self.reader.readexactly(2) == b"\r\n"
                answer.body = b"".join(answer.chunks)
            elif "content-length" in headers:
                answer.body = await self.reader.readexactly(int(headers["content-length"]))
            else:
                answer.body = await self.reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            answer.complete = False
            answer.body = b"".join(answer.chunks)
        return answer

    async def ask(self, data: bytes) -> Answer:
        await self.send(data)
        return await self.answer()

    async def closed(self) -> bytes:
        """What came until the server closed."""
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""

    def reset(self) -> None:
        """Closes with a reset, as a killed process with unread data does."""
        self.writer.transport.abort()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@dataclass
class Serving:
    """A listener on a free port, with its door and protocol."""

    listener: HttpListener
    door: NumpyDoor
    protocol: JsonProtocol
    port: int

    async def connect(self, **tls: Any) -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", self.port, **tls))


@contextlib.asynccontextmanager
async def serving(ssl: Any = None, **options: Any) -> AsyncIterator[Serving]:
    """A listener with `options`; at the end it must drain to nothing."""
    door, protocol = NumpyDoor(), JsonProtocol()
    listener = HttpListener(door, [protocol], HttpOptions(**{"tick_s": 0.02, **options}))
    port = await listener.start("127.0.0.1", 0, ssl=ssl)
    try:
        yield Serving(listener, door, protocol, port)
    finally:
        door.gate.set()
        protocol.gate.set()
        await listener.drain(0.0)
        assert listener.counters.connections_open == 0
        assert door.streams_open == 0


def post(path: str, body: bytes = b"", *headers: str, version: str = "1.1") -> bytes:
    """The bytes of a POST."""
    lines = [f"POST {path} HTTP/{version}", "Host: test", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def get(path: str, *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    """The bytes of a request without a body."""
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: test", *headers]).encode("latin-1") + b"\r\n\r\n"


def infer(x: Sequence[float], id: object = "", model: str = "double", *headers: str) -> bytes:
    """The bytes of an inference."""
    return post(f"/models/{model}/infer", orjson.dumps({"x": list(x), "id": str(id)}), *headers)


def stream(x: Sequence[float], *headers: str, version: str = "1.1", **parameters: float) -> bytes:
    """The bytes of a streaming request."""
    body = orjson.dumps({"x": list(x), "parameters": parameters})
    return post("/models/double/stream", body, *headers, version=version)


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    """Returns once `condition` holds.

    Raises:
        TimeoutError: it did not in time.
    """
    deadline = asyncio.get_running_loop().time() + within_s
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            raise TimeoutError("the condition did not come true")
        await asyncio.sleep(0.002)
