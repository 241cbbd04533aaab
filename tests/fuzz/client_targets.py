"""What the client reads: a server, or whoever answers in its place, may send anything."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import orjson
from target import Fault, Target

from penstock.client import calls, http1, tensors
from penstock.client.events import read_stream
from penstock.client.http1 import ANY, MAX_HEAD_BYTES, ConnectionEnded
from penstock.core.errors import PenstockError

LIMIT = 1 << 16
PIECE = 1 << 10  # bytes of a body that comes without a known length


def feed(reader: Generator[Any, Any, Any], data: bytes) -> None:
    """Gives a reading generator what it asks for, as a connection would, until it ends or the bytes do."""
    at = 0
    try:
        need = next(reader)
        while True:
            if isinstance(need, bytes):
                found = data.find(need, at, at + MAX_HEAD_BYTES)
                if found < 0:
                    raise ConnectionEnded
                piece = data[at : found + len(need)]
            elif isinstance(need, int):
                piece = data[at : at + (PIECE if need == ANY else need)]
                if need != ANY and len(piece) < need:
                    raise ConnectionEnded
            else:  # an answer of a stream
                need = next(reader)
                continue
            at += len(piece)
            need = reader.send(piece)
    except (StopIteration, ConnectionEnded):
        return


def reading(call: calls.Call[Any]) -> Generator[Any, Any, None]:
    reply = yield from http1.read_reply(call.method, LIMIT)
    if len(reply.body) > LIMIT:
        raise Fault(f"a body of {len(reply.body)} bytes")
    call.read(reply)


CALLS: list[Callable[[], calls.Call[Any]]] = [
    lambda: calls.infer(tensors.Ask("m", {"x": np.zeros(1, "f4")}), None, gzip=False, timing=True),
    lambda: calls.generate("m", {"x": 1}, "", {}),
    calls.live,
    lambda: calls.ready("m", ""),
    calls.server,
    calls.metrics,
    lambda: calls.metadata("m", ""),
    lambda: calls.config("m", ""),
    lambda: calls.statistics("m", ""),
    lambda: calls.index(only_ready=True),
    lambda: calls.unload("m"),
]


def client_answer(data: bytes) -> bool:
    """An answer to the call that the first byte chooses."""
    if not data:
        return False
    call = CALLS[data[0] % len(CALLS)]()
    return accepted(reading(call), data[1:])


def client_stream(data: bytes) -> bool:
    """A stream of server-sent events."""
    return accepted(read_stream(calls.stream("m", {"x": 1}, "", {}), LIMIT), data)


def accepted(reader: Generator[Any, Any, Any], data: bytes) -> bool:
    """Whether `data` are an answer. Any error of ours is right here, if it is one that can be shown."""
    try:
        feed(reader, data)
    except PenstockError as error:
        error.message.encode()
        return False
    return True


def answer_seeds() -> tuple[bytes, ...]:
    def seed(index: int, body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
        lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers, b"", b""]
        return bytes([index]) + b"\r\n".join(lines) + body

    output = {"name": "y", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}
    result = orjson.dumps({"model_name": "m", "model_version": "1", "outputs": [output]})
    texts = {"name": "t", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]}
    metadata = {
        "name": "m",
        "versions": ["1"],
        "platform": "p",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}],
        "outputs": [],
    }
    tally = {"count": 1, "ns": 2}
    stats = {
        "model_stats": [
            {
                "name": "m",
                "version": "1",
                "inference_stats": {"success": tally},
                "batch_stats": [{"batch_size": 1, "compute_infer": tally}],
            }
        ]
    }
    length = b"Inference-Header-Content-Length: %d" % len(result)
    return (
        seed(0, result + b"\0" * 8, length, b"Server-Timing: queue;dur=1.5, compute;dur=2"),
        seed(0, orjson.dumps({"model_name": "m", "outputs": [texts]})),
        seed(0, gzip.compress(result + b"\0" * 8), length, b"Content-Encoding: gzip"),
        seed(1, b'{"y": [1, 2]}'),
        seed(3, b'{"error": "no"}', b"Retry-After: 2", b"Penstock-Error: NotReady", status=b"503 Service Unavailable"),
        seed(3, b'{"detail": {"loc": ["a"]}}', b"Retry-After: Wed, 21 Oct 2015 07:28:00 GMT", status=b"429 Slow Down"),
        seed(6, orjson.dumps(metadata)),
        seed(8, orjson.dumps(stats)),
        seed(9, b'[{"name": "m", "version": "1", "state": "READY", "reason": ""}]'),
        b"\x05HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: 1\r\n\r\n",
        b"\x05HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\nup to the end",
    )  # fmt: skip


def stream_seeds() -> tuple[bytes, ...]:
    start = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
    return (
        start + b'\r\ndata: {"y": 1}\n\nevent: e\ndata: {"y":\ndata: 2}\r\n\r\n: comment\n\ndata: [DONE]\n\n',
        start + b'Transfer-Encoding: chunked\r\n\r\n10\r\ndata: {"y": 1}\n\n\r\n0\r\n\r\n',
        start + b'Content-Length: 22\r\n\r\ndata: {"error": "x"}\n\n',
        b'HTTP/1.1 404 Not Found\r\nContent-Length: 15\r\n\r\n{"error": "no"}',
    )


def targets() -> tuple[Target, ...]:
    return (
        Target("client_answer", client_answer, answer_seeds()),
        Target("client_stream", client_stream, stream_seeds()),
    )
