"""Traffic of every kind at once, good and bad, with a check of each answer's status. One asyncio task per client."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import ssl
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET
from socket import socket as Socket

import grpc
import grpc.aio
import numpy as np
import onnx
from tritonclient.grpc import service_pb2

MODELS = '''
import asyncio
import penstock

PLAIN = {"inputs": {"x": "f4[n, k]"}, "outputs": {"y": "f4[n, k]"}}


@penstock.model(**PLAIN)
def double(x):
    return {"y": x * 2}


@penstock.model(**PLAIN, concurrency=8, batch=False)
async def waits(x):
    await asyncio.sleep(0.002)
    return {"y": x * 2}


@penstock.model(**PLAIN)
def broken(x):
    raise ValueError(f"a bad row: {x[0, 0]}")


@penstock.model(**PLAIN, batch=False)
def counts(x):
    for number in range(3):
        yield {"y": x * number}


class Keeps:
    """Keeps a kilobyte of every request: a leak in a model's code."""

    inputs, outputs = {"x": "f4[n, k]"}, {"y": "f4[n, k]"}

    def load(self, context):
        self.kept = []

    def predict(self, x):
        self.kept += [bytearray(1024) for _ in x]
        return {"y": x * 2}
'''


def write_onnx(path: Path) -> None:
    """A model y = x + x, small enough to run inline."""
    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "double",
        [helper.make_tensor_value_info("x", real, ["n", "k"])],
        [helper.make_tensor_value_info("y", real, ["n", "k"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, str(path))


def write_models(folder: Path) -> dict[str, str | dict[str, object]]:
    """The models that `Mix` asks, as a server's table of models."""
    (folder / "mixed.py").write_text(MODELS)
    write_onnx(folder / "tiny.onnx")
    return {
        **{name: f"{folder}/mixed.py:{name}" for name in ("double", "waits", "broken")},
        "counts": {"path": f"{folder}/mixed.py:counts", "warm_up": False},
        "tiny": {"path": f"{folder}/tiny.onnx", "executor": "inline"},
    }


def json_body(x: np.ndarray, **more: object) -> bytes:
    inputs = [{"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}]
    return json.dumps({"inputs": inputs, **more}).encode()


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: t", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: t", *headers, "", ""]).encode()


def binary(model: str, x: np.ndarray) -> bytes:
    """An inference call whose tensor comes as bytes after the JSON, and goes back so."""
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "x", "datatype": "FP32", "shape": list(x.shape),
                    "parameters": {"binary_data_size": x.nbytes},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()  # fmt: skip
    length = f"Inference-Header-Content-Length: {len(head)}"
    return post(f"/v2/models/{model}/infer", head + x.astype("f4").tobytes(), length)


class HttpClient:
    """One kept connection. Reads answers of both framings."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def connect(cls, url: str, tls: ssl.SSLContext | None = None) -> HttpClient:
        host, _, port = url.rpartition("//")[2].rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port), limit=1 << 20, ssl=tls))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """(status, body) of the answer. Raises: IncompleteReadError, OSError when the connection ends before."""
        self._writer.write(request)
        await self._writer.drain()
        head = await self._reader.readuntil(b"\r\n\r\n")
        status = int(head[9:12])
        fields = head.lower()
        if b"transfer-encoding: chunked" in fields:
            body = b""
            while size := int(await self._reader.readline(), 16):
                body += (await self._reader.readexactly(size + 2))[:-2]
            await self._reader.readline()
            return status, body
        at = fields.find(b"content-length:")
        length = int(fields[at + 15 : fields.index(b"\r\n", at)]) if at >= 0 else 0
        return status, await self._reader.readexactly(length)

    def send(self, data: bytes) -> None:
        """Sends bytes, without waiting for anything."""
        self._writer.write(data)

    def leave(self, *, reset: bool) -> None:
        """Ends the connection whatever is under way, with a reset or an ordinary end."""
        if reset:
            socket: Socket = self._writer.get_extra_info("socket")
            socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


SORTS = ("good", "refused", "leaving", "probing", "calling")


class Mix:
    """Every kind of traffic against one server. `counts` by kind; `wrong` are answers that were not the right ones."""

    def __init__(self, http: str, grpc_address: str, *, more: tuple[str, ...] = ()) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._http, self._grpc = http, grpc_address
        self._random = random.Random(1)
        self._numbers = itertools.count()
        self._more = more  # further models, each asked like the good ones
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def requests(self) -> int:
        return self.counts.total()

    def start(self, *, clients: int = 2, pause_s: float = 0.0, sorts: tuple[str, ...] = SORTS) -> None:
        """Begins: `clients` tasks of each sort, each waiting `pause_s` between two requests."""
        self._tasks = [
            asyncio.create_task(self._again(getattr(self, f"_{sort}"), pause_s))
            for sort in sorts
            for _ in range(clients if sort != "probing" else 1)
        ]

    def message(self, model: str) -> bytes:
        """A request over gRPC, as bytes."""
        return _message(model, self._rows(1))

    async def stop(self) -> None:
        """Ends all of it. Raises what a client met that no answer explains."""
        for task in self._tasks:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                raise outcome

    async def _again(self, sort: Callable[[float], Awaitable[None]], pause_s: float) -> None:
        while True:  # each round is a new connection
            await sort(pause_s)

    def _rows(self, rows: int | None = None) -> np.ndarray:
        shape = (rows or self._random.choice((1, 1, 1, 2, 5)), self._random.choice((1, 4, 30)))
        return np.full(shape, next(self._numbers) % 1000, np.float32)

    def _tally(self, kind: str, got: object, right: tuple[object, ...], body: bytes = b"") -> None:
        self.counts[kind] += 1
        if got not in right and len(self.wrong) < 20:
            self.wrong.append(f"{kind}: {got}, not {right}; {body[:300]!r}")

    async def _good(self, pause_s: float) -> None:
        client = await HttpClient.connect(self._http)
        try:
            for _ in range(200):
                x = self._rows()
                for model in ("double", "waits", "tiny", *self._more):
                    name = f"request-{next(self._numbers)}"
                    status, body = await client.ask(post(f"/v2/models/{model}/infer", json_body(x, id=name)))
                    right = status == 200 and json.loads(body)["outputs"][0]["data"] == (x * 2).ravel().tolist()
                    self._tally(f"json {model}", status if right or status != 200 else 0, (200,), body)
                    status, body = await client.ask(binary(model, x))
                    right = status == 200 and body.endswith((x * 2).tobytes())
                    self._tally(f"binary {model}", status if right or status != 200 else 0, (200,), body)
                    await asyncio.sleep(pause_s)
                large = np.ones((1, self._random.choice((10_000, 50_000, 120_000))), np.float32)
                if next(self._numbers) % 20 == 0:
                    self._tally("large", (await client.ask(binary("double", large)))[0], (200,))
                stream = post("/v2/models/counts/generate_stream", b'{"x": [[1, 2]]}')
                status, body = await client.ask(stream)
                right = body.count(b"data: ") == 3 and b"error" not in body
                self._tally("stream", status if right or status != 200 else 0, (200,), body)
        finally:
            await client.close()

    async def _refused(self, pause_s: float) -> None:
        """Everything that a server must say no to, with names that never come twice."""
        client = await HttpClient.connect(self._http)
        try:
            for _ in range(100):
                fresh, x = next(self._numbers), self._rows(1)
                infer = "/v2/models/double/infer"
                for kind, request, statuses in (
                    ("unknown model", post(f"/v2/models/none{fresh}/infer", json_body(x)), (404,)),
                    ("unknown version", post(f"/v2/models/double/versions/{fresh}/infer", json_body(x)), (404,)),
                    ("unknown path", get(f"/path/{fresh}?q={fresh}"), (404,)),
                    ("unknown header", get("/v2/health/live", f"x-{fresh}: {fresh}"), (200,)),
                    ("broken JSON", post(infer, b'{"inputs": [' + str(fresh).encode()), (400,)),
                    ("wrong input", post(infer, json_body(x).replace(b'"x"', b'"x%d"' % fresh)), (400,)),
                    ("wrong shape", post(infer, json_body(x).replace(b'"shape": [1', b'"shape": [7')), (400,)),
                    ("own fault", post("/v2/models/broken/infer", json_body(x)), (500,)),
                    ("own priority", post(infer, json_body(x, parameters={"priority": fresh % 9 + 1})), (200,)),
                    (
                        "late",
                        post("/v2/models/waits/infer", json_body(x, parameters={"timeout": 500})),
                        (504, 503, 200),
                    ),
                ):
                    status, body = await client.ask(request)
                    self._tally(kind, status, statuses, body)
                    await asyncio.sleep(pause_s)
        finally:
            await client.close()

    async def _leaving(self, pause_s: float) -> None:
        """A client that leaves: in its head, in its body, while it waits, in a stream."""
        whole = post(f"/v2/models/{self._random.choice(('double', 'waits'))}/infer", json_body(self._rows()))
        stream = post("/v2/models/counts/generate_stream", b'{"x": [[1, 2]]}')
        for piece in (whole[:20], whole[:-5], whole, stream):
            client = await HttpClient.connect(self._http)
            try:
                client.send(piece)
                await asyncio.sleep(self._random.choice((0, 0.001, 0.003)))
            finally:
                client.leave(reset=self._random.random() < 0.5)
            self.counts["left"] += 1
            await asyncio.sleep(pause_s)

    async def _probing(self, pause_s: float) -> None:
        """Probes, each on a connection of its own, and scrapes now and then."""
        for path in (
            *["/v2/health/ready", "/v2/health/live", "/v2/models/double/ready"] * 5,
            "/metrics",
            "/v2/models/stats",
        ):
            client = await HttpClient.connect(self._http)
            try:
                self._tally(path, (await client.ask(get(path, "Connection: close")))[0], (200,))
            finally:
                await client.close()
            await asyncio.sleep(pause_s or 0.005)

    async def _calling(self, pause_s: float) -> None:
        """gRPC: answers, errors, calls that are cancelled or too late, streams."""
        service = "/inference.GRPCInferenceService/"
        # Without a pool of its own, channels to one address share one connection.
        own = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self._grpc, options=own) as channel:
            infer, live = channel.unary_unary(f"{service}ModelInfer"), channel.unary_unary(f"{service}ServerLive")
            stream = channel.stream_stream(f"{service}ModelStreamInfer")
            for _ in range(30):
                x = self._rows()
                for model in ("double", "waits", "tiny", *self._more):
                    self._tally(f"grpc {model}", await _status(infer(_message(model, x), timeout=30)), ("OK",))
                    await asyncio.sleep(pause_s)
                unknown = _message(f"none{next(self._numbers)}", x)
                self._tally("grpc unknown", await _status(infer(unknown, timeout=30)), ("NOT_FOUND",))
                self._tally("grpc own fault", await _status(infer(_message("broken", x), timeout=30)), ("INTERNAL",))
                self._tally("grpc live", await _status(live(b"", timeout=30)), ("OK",))
                late = await _status(infer(_message("waits", x), timeout=0.002))
                self._tally("grpc late", late, ("OK", "DEADLINE_EXCEEDED", "UNAVAILABLE"))
                left = infer(_message("waits", x))
                await asyncio.sleep(0.001)
                left.cancel()
                self.counts["grpc left"] += 1
                call = stream(iter([_message("double", x), _message("counts", x)]), timeout=30)
                answers = [answer async for answer in call]
                self._tally("grpc stream", len(answers) >= 4, (True,))


def _message(model: str, x: np.ndarray) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[x.astype("f4").tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=x.shape)
    return bytes(request.SerializeToString())


async def _status(call: Awaitable[bytes]) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"
