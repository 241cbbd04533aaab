from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_door import NumpyDoor, numpy_model
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor

from penstock.core.errors import InvalidInput, PenstockError
from penstock.core.messages import NO_DEADLINE, Response
from penstock.core.protobuf import take_field
from penstock.core.tensor import NUMPY_OF, bf16_to_wire, to_wire
from penstock.protocols import GrpcInfer, GrpcRequest, GrpcStream
from penstock.protocols.v2_grpc import plug

METHODS = {method.name: method for method in plug.methods()}
FIELDS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip

shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@st.composite
def arrays(draw: st.DrawFn, datatype: str) -> np.ndarray:
    shape = draw(shapes)
    count = int(np.prod(shape, dtype=int))
    if datatype == "BYTES":
        array = np.empty(count, dtype=object)
        array[:] = draw(st.lists(st.binary(max_size=9), min_size=count, max_size=count))
        return array.reshape(shape)
    seed = draw(st.integers(0, 2**32 - 1))
    raw = np.random.default_rng(seed).bytes(count * NUMPY_OF[datatype].itemsize)
    if datatype == "BOOL":
        return (np.frombuffer(raw, "u1") % 2).astype(bool).reshape(shape)
    array = np.frombuffer(raw, NUMPY_OF[datatype]).reshape(shape)
    if datatype == "BF16":
        return (array.view("<u4") & np.uint32(0xFFFF0000)).view("<f4")
    return array


def request_of(array: np.ndarray, datatype: str, typed: bool) -> Any:
    request = service_pb2.ModelInferRequest(model_name="m")
    tensor = request.inputs.add(name="x", datatype=datatype, shape=array.shape)
    if typed:
        getattr(tensor.contents, FIELDS[datatype]).extend(array.ravel().tolist())
    else:
        request.raw_input_contents.append(bytes(to_wire(array, datatype)))
    return request


def door_of(datatype: str) -> NumpyDoor:
    declared = f"{datatype.lower()}[n]"
    return NumpyDoor({"m": numpy_model({"x": declared}, {"y": declared})})


def decode(data: bytes, door: NumpyDoor) -> Any:
    method = METHODS["ModelInfer"]
    assert isinstance(method, GrpcInfer)
    return method.decode(GrpcRequest(data, {}, NO_DEADLINE, 0.0), door)


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("datatype", list(NUMPY_OF))
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_value_survives_the_way_in_and_out(datatype: str, typed: bool, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype))
    if typed and datatype not in FIELDS:
        typed = False
    exchange = decode(request_of(array, datatype, typed).SerializeToString(), door_of(datatype))
    got = exchange.request.inputs["x"]
    assert got.shape == array.shape and got.dtype == NUMPY_OF[datatype]
    if typed and array.dtype.kind == "f":  # a typed value passes through a Python float, where NaNs lose their payload
        np.testing.assert_array_equal(got, array)
    else:
        assert bytes(to_wire(got, datatype)) == bytes(to_wire(array, datatype))
    answer = service_pb2.ModelInferResponse.FromString(exchange.encode(Response("m", "1", {"y": array})))
    (output,), (raw,) = answer.outputs, answer.raw_output_contents
    assert (output.datatype, tuple(output.shape)) == (datatype, array.shape)
    if datatype == "BYTES":
        assert deserialize_bytes_tensor(raw).tolist() == array.ravel().tolist()
    elif datatype == "BF16":
        assert raw == bf16_to_wire(array)
    else:
        assert raw == array.tobytes()


def whole_message() -> bytes:
    request = request_of(np.arange(12, dtype="f4").reshape(3, 4), "FP32", False)
    request.id, request.model_version = "7", "1"
    request.parameters["priority"].uint64_param = 1
    request.parameters["timeout"].int64_param = 1000
    output = request.outputs.add(name="y")
    output.parameters["classification"].int64_param = 2
    data: bytes = request.SerializeToString()
    return data


WHOLE = whole_message()


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=6),
    st.integers(0, len(WHOLE)),
    st.binary(max_size=8),
)
def test_mutilated_messages_raise_only_errors_of_the_protocol(
    changes: list[tuple[int, int]], end: int, more: bytes
) -> None:
    data = bytearray(WHOLE)
    for at, value in changes:
        data[at] = value
    broken = bytes(data[:end]) + more
    door = door_of("FP32")
    with contextlib.suppress(PenstockError):
        decode(broken, door)
    stream = METHODS["ModelStreamInfer"]
    assert isinstance(stream, GrpcStream)
    request = GrpcRequest(broken, {}, NO_DEADLINE, 0.0)
    with contextlib.suppress(PenstockError):
        stream.decode(request, door)
    assert stream.encode_error(InvalidInput("x"), request)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=64))
def test_taking_a_field_never_loses_or_invents_bytes(data: bytes) -> None:
    taken = take_field(data, 7)
    if taken is not None:
        rest, contents = taken
        assert len(rest) + sum(map(len, contents)) <= len(data)
        try:
            whole = service_pb2.ModelInferRequest.FromString(data)
        except Exception:
            return
        assert list(whole.raw_input_contents) == [bytes(item) for item in contents]
        whole.ClearField("raw_input_contents")
        assert service_pb2.ModelInferRequest.FromString(rest).SerializeToString() == whole.SerializeToString()
