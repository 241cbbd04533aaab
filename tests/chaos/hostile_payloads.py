"""What hostile clients send: bodies, and floods of frames."""

from __future__ import annotations

import gzip
import itertools
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import http2_frames as h2

from penstock.protocols.v2_grpc import plug as v2_grpc

INFER = "/v2/models/same/infer"
METHOD = "/inference.GRPCInferenceService/ModelInfer"
MB = 1 << 20


def infer_message(**fields: Any) -> bytes:
    message: Any = v2_grpc._schema.message("inference.ModelInferRequest")(model_name="same", **fields)
    message.inputs.add(name="x", datatype="FP32", shape=[2])
    message.raw_input_contents.append(b"\0" * 8)
    data: bytes = message.SerializeToString()
    return data


HEAD = b"POST %b HTTP/1.1\r\nHost: a\r\n" % INFER.encode()


def bodies(megabytes: int) -> Iterator[tuple[str, str, bytes, dict[str, str]]]:
    """What it is, the path, the body, and headers. The largest ones have about `megabytes`."""

    def tensor(shape: str, datatype: str = "FP32", **more: str) -> bytes:
        fields = {"name": '"x"', "datatype": f'"{datatype}"', "shape": shape, "data": "[1, 2]", **more}
        return (
            '{"inputs": [{' + ", ".join(f'"{key}": {value}' for key, value in fields.items() if value) + "}]}"
        ).encode()

    for shape in ("[9223372036854775808]", "[-1]", "[0]", "[4294967296, 4294967296]", "[1.5]", "[[2]]", "null", "[1e3]", f"[{'9' * 400}]",
                  "[" + "1, " * 1_000_000 + "2]", '["2"]', "[true]"):  # fmt: skip
        yield f"shape {shape[:30]}", INFER, tensor(shape), {}
    for data in (
        "[NaN, 1]",
        "[Infinity, 1]",
        "[1e400, 1]",
        "[null, 1]",
        '["1", 1]',
        "[[1], [2]]",
        "[true, false]",
        "{}",
        f"[{'9' * 5000}, 1]",
    ):
        yield f"data {data[:30]}", INFER, tensor("[2]", data=data), {}
    yield "twice the same key", INFER, b'{"inputs": [], "inputs": []}', {}
    yield "deep", "/v1/models/same:predict", b'{"instances": ' + b"[" * 500_000 + b"]" * 500_000 + b"}", {}
    yield "deep objects", "/v2/models/same/generate", b'{"x": ' + b'{"a":' * 500_000 + b"1" + b"}" * 500_000 + b"}", {}
    yield "lists", "/v1/models/same:predict", b'{"instances": [' + b"[]," * (megabytes * MB // 3) + b"[]]}", {}
    yield (
        "objects",
        "/predict/same",
        b"[" + b"{}," * (megabytes * MB // 3) + b"{}]",
        {"Content-Type": "application/json"},
    )
    keys = b",".join(b'"%d":1' % number for number in range(300_000))
    yield "parameters", INFER, b'{"inputs": [], "parameters": {' + keys + b"}}", {}
    yield "keys", "/v2/models/same/generate", b"{" + keys + b"}", {}
    yield (
        "multipart",
        "/predict/same",
        b"--a\r\n" * (megabytes * MB // 8),
        {"Content-Type": "multipart/form-data; boundary=a"},
    )
    zeros = bytes(64 * MB)
    bomb = gzip.compress(zeros + zeros[:1], 1)
    yield "gzip bomb", INFER, bomb, {"Content-Encoding": "gzip"}
    yield "deflate bomb", "/predict/same", zlib.compress(zeros + zeros[:1], 1), {"Content-Encoding": "deflate"}
    yield "many gzip files", INFER, gzip.compress(b"") * (megabytes << 13), {"Content-Encoding": "gzip"}
    yield "gzip in gzip", INFER, gzip.compress(bomb), {"Content-Encoding": "gzip, gzip"}
    yield "cut gzip", INFER, bomb[:-5000], {"Content-Encoding": "gzip"}
    head = tensor("[2]", "BYTES", data="", parameters='{"binary_data_size": 12}')
    length = {"Inference-Header-Content-Length": str(len(head))}
    for name, binary in {
        "beyond the end": b"\xff\xff\xff\x7f" + b"a" * 8,
        "too few": b"\x08\0\0\0" + b"a" * 8,
        "cut": b"\0\0\0\0" * 2 + b"\xff" * 4,
    }.items():
        yield f"texts {name}", "/v2/models/words/infer", head + binary, length
    yield "json length", INFER, head, {"Inference-Header-Content-Length": "9" * 5000}
    npy = b"\x93NUMPY\x01\x00\x46\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (2,), }".ljust(69) + b"\n"
    yield "pickle in npy", "/predict/same", npy + b"cos\nsystem\n(S'id'\ntR.", {}
    huge = b"\x93NUMPY\x01\x00\x46\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,), }" % (1 << 62)
    yield "huge npy", "/predict/same", huge.ljust(79) + b"\n", {}
    yield "csv", "/predict/same", b"," * (megabytes * MB // 8), {"Content-Type": "text/csv"}
    yield "quoted csv", "/predict/same", b'"' + b"a" * (megabytes * MB // 8), {"Content-Type": "text/csv"}


def floods(count: int) -> dict[str, Iterator[bytes]]:
    """Endless or long sequences of frames, in pieces."""
    block = h2.request(METHOD.encode())
    body = h2.message(infer_message())

    def streams(make: Callable[[int], bytes]) -> Iterator[bytes]:
        for first in range(1, 2 * count, 200):
            yield b"".join(make(stream) for stream in range(first, first + 200, 2))

    def opened(stream: int) -> bytes:
        return h2.frame(h2.HEADERS, h2.END_HEADERS, stream, block)

    whole = h2.frame(h2.HEADERS, h2.END_HEADERS, 1, block)
    return {
        "rapid reset": streams(lambda stream: opened(stream) + h2.reset(stream)),
        "rapid reset of whole calls": streams(
            lambda stream: opened(stream) + h2.frame(h2.DATA, h2.END_STREAM, stream, body) + h2.reset(stream)
        ),
        "streams left open": streams(opened),
        "pings": (h2.frame(h2.PING, 0, 0, bytes(8)) * 100 for _ in range(count // 100)),
        "settings": (h2.SETTINGS_FRAME * 100 for _ in range(count // 100)),
        "window updates": (h2.frame(h2.WINDOW_UPDATE, 0, 0, (1).to_bytes(4, "big")) * 100 for _ in range(count // 100)),
        "empty data": itertools.chain([whole], (h2.frame(h2.DATA, 0, 1) * 100 for _ in range(count // 100))),
        "continuations": itertools.chain(
            [h2.frame(h2.HEADERS, 0, 1, block)], (h2.frame(h2.CONTINUATION, 0, 1, h2.literal(b"a", b"b" * 1000)) * 10 for _ in range(count // 10))
        ),
        "priorities": (h2.frame(h2.PRIORITY, 0, 1, bytes(5)) * 100 for _ in range(count // 100)),
    }  # fmt: skip
