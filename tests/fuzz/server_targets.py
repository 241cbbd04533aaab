"""Everything that strangers can send to the server: HTTP framing, every route's body, gRPC messages, load calls."""

from __future__ import annotations

import dataclasses
import gzip
import io
import logging
import shutil
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from numpy_door import NumpyDoor, NumpyModel, numpy_model
from target import Fault, Target, check_refusal, no_error_logged, run_on_loop

from penstock.core import graph_calls
from penstock.core.compression import compress, decompress
from penstock.core.errors import InvalidInput, NotFound, PenstockError
from penstock.core.messages import NO_DEADLINE, Parameter
from penstock.core.protobuf import Schema, take_field
from penstock.core.tensor import TensorSpec
from penstock.protocols import (
    CallRoute,
    GrpcCall,
    GrpcInfer,
    GrpcRequest,
    GrpcStream,
    HttpRequest,
    HttpResponse,
    InferRoute,
    Limits,
)  # fmt: skip
from penstock.protocols.v2_grpc import plug as v2_grpc
from penstock.runtime.listeners.heads import Heads
from penstock.runtime.listeners.http_options import HttpOptions
from penstock.runtime.listeners.reader import Reader
from penstock.runtime.listeners.router import Found, Router
from penstock.runtime.listeners.site import Site
from penstock.runtime.listening import http_protocols
from penstock.runtime.options import ModelOptions
from penstock.runtime.repository import _write_files
from penstock.runtime.tracing import Tracing
from penstock.runtime.triton_config import options_from_config
from penstock.telemetry.logs import Logs

LIMIT = 1 << 20
LIMITS = Limits(tensor_bytes=LIMIT, decompressed_bytes=LIMIT)
HEAVY = 4 * LIMIT  # arrays in memory: those of texts are objects of 50 bytes for 5 on the wire


class StrangersDoor(NumpyDoor):
    """A door of echo models whose control calls do what the server's do with what a stranger sends."""

    def __init__(self) -> None:
        models = {
            "one": numpy_model({"x": "f4[n, 2]"}, {"x": "f4[n, 2]"}, predict=echo),
            "text": numpy_model({"x": "str[n]"}, {"x": "str[n]"}, predict=echo),
            "two": numpy_model({"x": "i1[n, m]", "y": "bool[n]?"}, {"x": "i1[n, m]", "y": "bool[n]"}, predict=echo),
            "free": numpy_model({}, {}, predict=echo),
            "labels": numpy_model(
                {"x": "i8[n, 3]"}, {"x": TensorSpec("x", "INT64", (-1, 3), labels=("a", "b"))}, predict=echo
            ),
            "stream": numpy_model({"x": "str[n]"}, {"x": "str[n]"}, answer=lambda inputs, _: iter([dict(inputs)])),
            "bodies": graph(graph_calls.BODIES),
            "messages": graph(graph_calls.MESSAGES),
        }
        super().__init__(models)
        self.tracing = Tracing()
        self.logs = Logs(io.StringIO())

    async def load(
        self, model: str, config: Mapping[str, object] | None = None, files: Mapping[str, bytes] | None = None
    ) -> None:
        if files:
            shutil.rmtree(_write_files(files))
        options_from_config(config or {}, ModelOptions())
        if model not in self.served:
            raise NotFound(f"no model '{model}'")

    async def trace_settings(self, model: str = "", update: Mapping[str, object] | None = None) -> Mapping[str, object]:
        return self.tracing.settings(model, update)

    async def log_settings(self, update: Mapping[str, Parameter] | None = None) -> Mapping[str, Parameter]:
        root = logging.getLogger("penstock")
        level = root.level
        try:
            return self.logs.update(update or {})
        finally:
            root.setLevel(level)


def graph(level: str) -> NumpyModel:
    """A graph that answers with the body that it is asked."""
    model = numpy_model(
        {"body": "bytes[n]"},
        {"body": "bytes[n]", "status": "i4[n]"},
        predict=lambda inputs, _: {"body": inputs["body"], "status": np.array([200], np.int32)},
    )
    metadata = {graph_calls.LEVEL: level, graph_calls.PROPAGATE: "content-.*"}
    return dataclasses.replace(model, signature=dataclasses.replace(model.signature, metadata=metadata))


def echo(inputs: Mapping[str, np.ndarray], parameters: Mapping[str, Parameter]) -> dict[str, np.ndarray]:
    return {"y": np.zeros(1, np.bool_), **inputs}


MODELS = ["one", "text", "two", "free", "labels", "stream", "bodies", "messages"]
KINDS = [b"", b"text/csv", b"application/json", b"image/png", b"text/plain", b"application/octet-stream"]
ACCEPTS = [b"", b"text/csv", b"application/x-npy", b"*/*, text/html"]
ENCODINGS = [b"", b"gzip", b"deflate", b"identity", b"br", b"gzip, gzip"]
ROUTES = [
    (protocol, route)
    for protocol in http_protocols()
    for route in sorted(protocol.routes(), key=lambda route: (route.pattern, route.method))
    if route.method == "POST"
]
HEADS = Heads("penstock")
HEAD_BYTES = 8
_NAMES = ("model", "version", "region", "graph", "namespace", "unit")


def head(
    route: str, model: str = "one", kind: bytes = b"", accept: bytes = b"", encoding: bytes = b"", length: int = 0
) -> bytes:
    """The bytes of an input of `http_body` before the body: which route, model and headers it comes with."""
    index = next(index for index, (_, each) in enumerate(ROUTES) if each.pattern == route)
    choices = (index, MODELS.index(model), KINDS.index(kind), ACCEPTS.index(accept), ENCODINGS.index(encoding), 0)
    return bytes(choices) + length.to_bytes(2, "little")


def http_body(data: bytes) -> bool:
    """One POST of any route, with a model and headers that the first bytes choose."""
    if len(data) < HEAD_BYTES:
        return False
    protocol, route = ROUTES[data[0] % len(ROUTES)]
    headers = {
        b"content-type": KINDS[data[2] % len(KINDS)],
        b"accept": ACCEPTS[data[3] % len(ACCEPTS)],
        b"content-encoding": ENCODINGS[data[4] % len(ENCODINGS)],
        b"inference-header-content-length": str(int.from_bytes(data[6:8], "little") - 1).encode(),
    }
    headers = {name: value for name, value in headers.items() if value and value != b"-1"}
    model = MODELS[data[1] % len(MODELS)]
    match = {name: model for name in _NAMES if f"{{{name}}}" in route.pattern}
    if "version" in match:
        match["version"] = "1"
    query = "output=x" if data[5] % 2 else ""
    http = HttpRequest("POST", "/", headers, data[HEAD_BYTES:], query, match, 100.0, LIMITS)
    try:
        HEADS.render(run_on_loop(answered(route, http, StrangersDoor())))
        return True
    except PenstockError as error:
        check_refusal(error)
        answer = protocol.encode_error(error, http)
        if not 400 <= answer.status < 500 and answer.status != 501:
            raise Fault(f"{type(error).__name__} is answered with {answer.status}") from error
        HEADS.render(answer)
        return False


async def answered(route: Any, http: HttpRequest, door: NumpyDoor) -> HttpResponse:
    if isinstance(route, CallRoute):
        return await route.handle(http, door)
    exchange = route.decode(http, door)
    arrays = exchange.request.inputs.values()
    if sum(array.nbytes for array in arrays) > HEAVY:
        raise Fault("more is held than was allowed")
    if isinstance(route, InferRoute):
        return exchange.encode(await door.submit(exchange.request))
    pieces = [exchange.encode_item(item) async for item in door.stream(exchange.request)]
    return HttpResponse(200, [*pieces, exchange.encode_end()], exchange.content_type)


class Sink:
    """What a reader says; the keys of all headers and the routes it found."""

    def __init__(self) -> None:
        self.refusals = 0

    def request(self, http: HttpRequest, target: Found | HttpResponse, keep_alive: bool, http10: bool) -> None:
        HEADS.render(target if isinstance(target, HttpResponse) else HttpResponse(200))

    def refused(self, response: HttpResponse) -> None:
        self.refusals += 1
        if response.status >= 500 and response.status not in (501, 505):
            raise Fault(f"bytes of the caller end in {response.status}: {response.body!r}")

    def say_continue(self) -> None: ...


ROUTER = Router(http_protocols())


def http_reader(data: bytes) -> bool:
    """A connection's bytes, in reads whose sizes the first byte chooses; half of them on a server with a key."""
    if not data:
        return False
    keys = (("a key", "a"),) if data[0] & 1 else ()
    options = HttpOptions(api_keys=keys, max_body_bytes=4096, max_header_bytes=1024, max_headers=20)
    sink, step = Sink(), (data[0] >> 1) + 1
    reader = Reader(Site(StrangersDoor(), ROUTER, options), sink)
    with no_error_logged():
        for at in range(1, len(data), step):
            reader.feed(data[at : at + step])
    return not sink.refusals


METHODS = [(method.name, method) for method in v2_grpc.methods()]


def grpc_message(data: bytes) -> bool:
    """A message of the gRPC method that the first byte chooses, decoded, answered and its answer encoded."""
    if not data:
        return False
    _, method = METHODS[data[0] % len(METHODS)]
    request = GrpcRequest(data[1:], {}, NO_DEADLINE, 0.0, LIMITS)
    try:
        run_on_loop(called(method, request, StrangersDoor()))
        return True
    except PenstockError as error:
        check_refusal(error)
        if isinstance(method, GrpcStream):
            method.encode_error(error, request)
        return False


async def called(method: Any, request: GrpcRequest, door: NumpyDoor) -> None:
    if isinstance(method, GrpcCall):
        await method.handle(request, door)
    elif isinstance(method, GrpcInfer):
        exchange = method.decode(request, door)
        exchange.encode(await door.submit(exchange.request))
    else:
        stream = method.decode(request, door)
        async for response in door.stream(stream.request):
            stream.encode_item(response)
        stream.encode_end()


SCHEMA: Schema = v2_grpc._schema


def protobuf_walk(data: bytes) -> bool:
    """Taking raw contents out of a message by hand and reading them through protobuf find the same."""
    taken = take_field(data, 7)
    if taken is None:
        return False
    kind = SCHEMA.message("inference.ModelInferRequest")
    try:
        whole = kind.FromString(data)
    except Exception:
        return False
    if list(whole.raw_input_contents) != [bytes(item) for item in taken[1]]:
        raise Fault("other raw contents")
    whole.ClearField("raw_input_contents")
    if kind.FromString(taken[0]).SerializeToString(deterministic=True) != whole.SerializeToString(deterministic=True):
        raise Fault("another message is left")
    return True


def compressed(data: bytes) -> bool:
    """A compressed body; the first byte chooses the coding."""
    if not data:
        return False
    limit = 1 << 16
    try:
        body = decompress(data[1:], ENCODINGS[data[0] % len(ENCODINGS)].decode(), limit)
    except PenstockError as error:
        check_refusal(error)
        return False
    if len(body) > max(limit, len(data)):
        raise Fault(f"{len(data)} bytes became {len(body)}")
    return True


def addresses(data: bytes) -> bool:
    """Targets of the request line, through the table of all routes."""
    for method in (b"GET", b"POST", b"HEAD", b"DELETE"):
        try:
            ROUTER.find(method, data)
        except InvalidInput as error:
            check_refusal(error)
            return False
    return True


def http_seeds() -> tuple[bytes, ...]:
    item = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [[1, 2], [3, 4.5]], "parameters": {"a": 1}}
    outputs = [{"name": "x", "parameters": {"classification": 2, "binary_data": False}}]
    good = orjson.dumps({"id": "1", "parameters": {"timeout": 5, "priority": 1, "k": "v"}, "inputs": [item]})
    classes = orjson.dumps(
        {"inputs": [{"name": "x", "datatype": "INT64", "shape": [1, 3], "data": [1, 2, 3]}], "outputs": outputs}
    )
    texts = orjson.dumps(
        {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 11}}]}
    )
    npy = (
        b"\x93NUMPY\x01\x00\x46\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }          \n" + b"\0" * 8
    )
    load = orjson.dumps(
        {
            "parameters": {
                "config": '{"max_batch_size": 4, "instance_group": [{"count": 2}], "version_policy": {"latest": {"num_versions": 2}}, "dynamic_batching": {"max_queue_delay_microseconds": 100}, "parameters": {"k": {"string_value": "v"}}}',
                "file:1/model.onnx": "AAAA",
            }
        }
    )
    infer, versioned = "/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"
    generate, v1, predict = "/v2/models/{model}/generate", "/v1/models/{model}:predict", "/predict/{model}"
    return (
        head(infer) + good,
        head(versioned, length=0) + good,
        head(infer, "labels") + classes,
        head(infer, "text", length=len(texts) + 1) + texts + b"\x02\0\0\0ab\x01\0\0\0c",
        head(infer, length=1) + b"\0" * 8,
        head(infer, encoding=b"gzip") + gzip.compress(good),
        head(infer, encoding=b"deflate") + zlib.compress(good),
        head(generate, "text") + b'{"x": "text", "id": "7", "parameters": {"k": 1}, "temperature": 0.5}',
        head("/v2/models/{model}/generate_stream", "stream") + b'{"x": ["a", "b"]}',
        head("/v2/models/{model}/infer_stream") + good,
        head(v1) + b'{"instances": [[1, 2], [3, 4]]}',
        head(v1, "two") + b'{"inputs": {"x": [[1, 2]], "y": [true]}}',
        head(v1, "text") + b'{"instances": [{"b64": "AAAA"}, "b"]}',
        head(v1, "free") + b'{"instances": [{"a": 1, "b": "c"}, {"a": 2, "b": "d"}]}',
        head(predict, kind=b"text/csv", accept=b"text/csv") + b"a,b\n1,2\n3,4\n",
        head(predict, "two", kind=b"text/csv") + b"x,y\n1,true\n3,false\n",
        head(predict, accept=b"application/x-npy") + npy,
        head(predict, "text", kind=b"image/png") + b"\x89PNG\r\n\x1a\n",
        head("/v2/repository/models/{model}/load") + load,
        head("/v2/repository/models/{model}/unload") + b'{"parameters": {"unload_dependents": true}}',
        head("/v1/graphs/{graph}", "bodies") + b'{"any": ["body"]}',
        head("/", "bodies", encoding=b"gzip") + gzip.compress(b"[1]"),
        head("/v1/graphs/{graph}/feedback", "bodies") + b'{"route": "root=0", "reward": 0.5}',
        head("/api/v1.0/predictions", "messages") + b'{"data": {"ndarray": [[1, 2]]}}',
        head("/seldon/{namespace}/{graph}/api/v1.0/feedback", "messages") + b'{"reward": 0.5}',
        head("/v2/repository/index") + b'{"ready": true}',
        head("/v2/trace/setting") + b'{"trace_level": ["TIMESTAMPS"], "trace_rate": "2", "trace_count": null}',
        head("/v2/logging") + b'{"log_verbose_level": 1, "log_format": "ISO8601", "log_info": true}',
    )  # fmt: skip


def reader_seeds() -> tuple[bytes, ...]:
    post = b"POST /v2/models/one/infer HTTP/1.1\r\nHost: a\r\n"
    return (
        b"\xfeGET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\nGET /metrics HTTP/1.0\r\nAuthorization: Bearer a key\r\n\r\n",
        b"\xfe" + post + b"Content-Length: 5\r\n\r\nhello" + post + b"Transfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nT: 1\r\n\r\n",
        b"\x07" + post + b"Expect: 100-continue\r\nContent-Length: 2\r\nX-API-Key: a key\r\n\r\n{}",
        b"\xff" + post + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n{}OPTIONS * HTTP/1.1\r\nHost: b\r\n\r\n",
        b"\x40" + post + b"Content-Length: 4000\r\n\r\n" + b"x" * 4000,
    )  # fmt: skip


def grpc_seeds() -> tuple[bytes, ...]:
    names = [name for name, _ in METHODS]

    def seed(method: str, message: Any) -> bytes:
        return bytes([names.index(method)]) + message.SerializeToString()

    infer = SCHEMA.message("inference.ModelInferRequest")(model_name="one", id="7", model_version="1")
    infer.inputs.add(name="x", datatype="FP32", shape=[2, 2])
    infer.raw_input_contents.append(np.arange(4, dtype="<f4").tobytes())
    infer.parameters["timeout"].int64_param = 1000
    infer.parameters["k"].double_param = 0.5
    classes = SCHEMA.message("inference.ModelInferRequest")(model_name="labels")
    classes.inputs.add(name="x", datatype="INT64", shape=[1, 3]).contents.int64_contents.extend([1, 2, 3])
    classes.outputs.add(name="x").parameters["classification"].int64_param = 2
    texts = SCHEMA.message("inference.ModelInferRequest")(model_name="text")
    texts.inputs.add(name="x", datatype="BYTES", shape=[2]).contents.bytes_contents.extend([b"a", b"bc"])
    load = SCHEMA.message("inference.RepositoryModelLoadRequest")(model_name="one")
    load.parameters["config"].string_param = '{"max_batch_size": 4}'
    load.parameters["file:1/model.onnx"].bytes_param = b"\0"
    trace = SCHEMA.message("inference.TraceSettingRequest")(model_name="one")
    trace.settings["trace_rate"].value.append("7")
    logs = SCHEMA.message("inference.LogSettingsRequest")()
    logs.settings["log_verbose_level"].uint32_param = 1
    found = [seed("ModelInfer", each) for each in (infer, classes, texts)]
    found += [seed("ModelStreamInfer", infer), seed("RepositoryModelLoad", load), seed("TraceSetting", trace)]
    named = [SCHEMA.message(f"inference.{name}Request")(name="one") for name in ("ModelMetadata", "ModelConfig")]
    return (*found, seed("LogSettings", logs), seed("ModelMetadata", named[0]), seed("ModelConfig", named[1]))


def targets() -> tuple[Target, ...]:
    packed = [
        bytes([ENCODINGS.index(encoding)]) + compress([b"hello " * 20], encoding.decode())
        for encoding in (b"gzip", b"deflate")
    ]
    paths = ("/v2/models/one/versions/1/infer?a=b", "/v1/models/a%2Fb:predict", "http://a/livez", "*")
    return (
        Target("http_reader", http_reader, reader_seeds()),
        Target("http_body", http_body, http_seeds()),
        Target("http_address", addresses, tuple(path.encode() for path in paths)),
        Target("grpc_message", grpc_message, grpc_seeds()),
        Target("protobuf_walk", protobuf_walk, tuple(seed[1:] for seed in grpc_seeds()[:4])),
        Target("compression", compressed, (*packed, packed[0] + packed[0][1:])),
    )
