"""Messages of V2 over gRPC, made and read with the real client's classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy_door import NumpyDoor, NumpyModel, numpy_model
from tritonclient.grpc import service_pb2

from penstock.core.messages import NO_DEADLINE
from penstock.protocols import GrpcCall, GrpcInfer, GrpcRequest, GrpcStream, Limits
from penstock.protocols.v2_grpc import plug

METHODS = {method.name: method for method in plug.methods()}
OTHERS = {"ModelConfig", "ModelInput", "ModelOutput", "ModelVersionPolicy", "ModelInstanceGroup"} | {
    "ModelDynamicBatching",
    "ModelParameter",
    "ModelTransactionPolicy",
}


def echo(inputs: Any, parameters: Any) -> dict[str, np.ndarray]:
    return {"y": inputs["x"]}


def counts(inputs: Any, parameters: Any) -> Iterator[dict[str, np.ndarray]]:
    for number in range(int(inputs["n"].ravel()[0])):
        yield {"i": np.array([[number]], dtype="i4")}


def door_of(**models: NumpyModel) -> NumpyDoor:
    return NumpyDoor(
        {
            "echo": numpy_model({"x": "f4[n, k]"}, {"y": "f4[n, k]"}, predict=echo),
            "counter": numpy_model({"n": "i4[n, 1]"}, {"i": "i4[n, 1]"}, answer=counts),
        }
        | models
    )


def message(array: np.ndarray | None = None, **fields: Any) -> Any:
    """A raw request of the real client's message type."""
    request = service_pb2.ModelInferRequest(**{"model_name": "echo"} | fields)
    if array is not None:
        request.inputs.add(name="x", datatype="FP32", shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request


def wire(request: Any, *, deadline: float = NO_DEADLINE, limits: Limits | None = None, **metadata: str) -> GrpcRequest:
    data = request if isinstance(request, bytes) else request.SerializeToString()
    return GrpcRequest(data, metadata, deadline, 100.0, limits or Limits())


def decode(request: Any, door: NumpyDoor | None = None, **options: Any) -> Any:
    method = METHODS["ModelInfer"]
    assert isinstance(method, GrpcInfer)
    return method.decode(wire(request, **options), door or door_of())


def decode_stream(request: Any, door: NumpyDoor | None = None, **options: Any) -> Any:
    method = METHODS["ModelStreamInfer"]
    assert isinstance(method, GrpcStream)
    return method.decode(wire(request, **options), door or door_of())


async def call(name: str, request: Any, door: NumpyDoor) -> Any:
    method = METHODS[name]
    assert isinstance(method, GrpcCall)
    data = await method.handle(wire(request), door)
    return getattr(service_pb2, f"{name}Response").FromString(data)


def items(data: bytes | None) -> Any:
    assert data is not None
    return service_pb2.ModelStreamInferResponse.FromString(data)
