"""Request bytes and answer bytes of each wire form the servers speak, built once so that the client only sends them."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from tritonclient.grpc import service_pb2  # type: ignore[import-untyped]  # ships no types

Array = np.ndarray
Headers = Mapping[str, str]

GRPC_INFER = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True, slots=True)
class Encoded:
    """One request, whole: what the client sends again and again."""

    body: bytes
    headers: Headers = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call:
    """How one server is asked for one inference, and how its answer is read.

    `encode` takes rows (n, …) float32; `decode` gives (n, 10). `grpc` says that the bytes are one protobuf message of
    the method `path`, without gRPC's own five-byte prefix.
    """

    name: str
    path: str
    encode: Callable[[Array], Encoded]
    decode: Callable[[bytes, Headers], Array]
    grpc: bool = False
    constant: bool = False  # the answer is the same whatever is asked, so it is not compared


def json_call(path: str, field_name: str = "x", answer: str | None = "y", *, rows: bool = False) -> Call:
    """Plain JSON `{field_name: [numbers]}`; `rows` nests the numbers in a batch, `answer` None reads a bare array."""

    def encode(values: Array) -> Encoded:
        data = values.tolist() if rows else values[0].tolist()
        return Encoded(json.dumps({field_name: data}).encode(), {"Content-Type": "application/json"})

    def decode(body: bytes, headers: Headers) -> Array:
        value = json.loads(body)
        return np.array(value if answer is None else value[answer], np.float32).reshape(-1, 10)

    return Call("JSON", path, encode, decode)


def v2_json_call(model: str) -> Call:
    """Open Inference Protocol, all JSON."""

    def encode(values: Array) -> Encoded:
        tensor = {"name": "x", "shape": list(values.shape), "datatype": "FP32", "data": values.ravel().tolist()}
        return Encoded(json.dumps({"inputs": [tensor]}).encode(), {"Content-Type": "application/json"})

    return Call("V2 JSON", f"/v2/models/{model}/infer", encode, decode_v2)


def v2_binary_call(model: str) -> Call:
    """Open Inference Protocol with the binary tensor extension, both ways."""

    def encode(values: Array) -> Encoded:
        head = json.dumps(
            {
                "inputs": [
                    {
                        "name": "x",
                        "shape": list(values.shape),
                        "datatype": "FP32",
                        "parameters": {"binary_data_size": values.nbytes},
                    }
                ],
                "parameters": {"binary_data_output": True},
            }
        ).encode()
        headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
        return Encoded(head + values.tobytes(), headers)

    return Call("V2 binary", f"/v2/models/{model}/infer", encode, decode_v2)


def decode_v2(body: bytes, headers: Headers) -> Array:
    """The first output of a V2 answer, JSON or binary."""
    length = headers.get("inference-header-content-length")
    if length is None:
        return np.array(json.loads(body)["outputs"][0]["data"], np.float32).reshape(-1, 10)
    output = json.loads(body[: int(length)])["outputs"][0]
    size = output.get("parameters", {}).get("binary_data_size")
    if size is None:
        return np.array(output["data"], np.float32).reshape(-1, 10)
    return np.frombuffer(body[int(length) : int(length) + size], np.float32).reshape(-1, 10)


def raw_call(path: str) -> Call:
    """Little-endian float32 without a head, both ways."""

    def encode(values: Array) -> Encoded:
        return Encoded(values.tobytes(), {"Content-Type": "application/octet-stream"})

    def decode(body: bytes, headers: Headers) -> Array:
        return np.frombuffer(body, np.float32).reshape(-1, 10)

    return Call("raw float32", path, encode, decode)


def multipart_call(path: str, field_name: str, answer: str | None = "y") -> Call:
    """One .npy file in a form; the answer is JSON."""
    boundary = "benchmark-boundary"

    def encode(values: Array) -> Encoded:
        file = io.BytesIO()
        np.save(file, values)
        disposition = f'Content-Disposition: form-data; name="{field_name}"; filename="{field_name}.npy"'
        head = f"--{boundary}\r\n{disposition}\r\nContent-Type: application/octet-stream\r\n\r\n".encode()
        body = head + file.getvalue() + f"\r\n--{boundary}--\r\n".encode()
        return Encoded(body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})

    def decode(body: bytes, headers: Headers) -> Array:
        value = json.loads(body)
        return np.array(value if answer is None else value[answer], np.float32).reshape(-1, 10)

    return Call("multipart .npy", path, encode, decode)


def v2_grpc_call(model: str) -> Call:
    """Open Inference Protocol over gRPC with raw tensor contents, which is what Triton's client sends."""

    def encode(values: Array) -> Encoded:
        request = service_pb2.ModelInferRequest(model_name=model)
        request.inputs.add(name="x", datatype="FP32", shape=values.shape)
        request.raw_input_contents.append(values.tobytes())
        return Encoded(request.SerializeToString())

    def decode(body: bytes, headers: Headers) -> Array:
        response = service_pb2.ModelInferResponse.FromString(body)
        if response.raw_output_contents:
            return np.frombuffer(response.raw_output_contents[0], np.float32).reshape(-1, 10)
        return np.array(response.outputs[0].contents.fp32_contents, np.float32).reshape(-1, 10)

    return Call("V2 gRPC", GRPC_INFER, encode, decode, grpc=True)


def grpc_frame(message: bytes) -> bytes:
    """A gRPC message with its prefix: no compression, length."""
    return struct.pack(">BI", 0, len(message)) + message
