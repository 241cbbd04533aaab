from __future__ import annotations

import contextlib
import gzip
import zlib
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import orjson
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.http import InferInput, InferRequestedOutput, InferResult
from tritonclient.http._utils import _get_inference_request

from penstock.core.errors import PenstockError
from penstock.core.messages import Response
from penstock.core.servable import Signature
from penstock.core.tensor import NUMPY_OF, TensorSpec
from penstock.protocols import HttpRequest, InferRoute, Limits
from penstock.protocols.predict_http import plug as predict
from penstock.protocols.v1_http import plug as v1
from penstock.protocols.v2_http import plug as v2
from penstock.protocols.v2_http.request import decode

JSON_TYPES = [name for name in NUMPY_OF if name not in ("FP16", "BF16")]
ALL_TYPES = [name for name in NUMPY_OF if name != "BF16"]


class OneModel:
    """The signature is all that decoding asks a door for."""

    def __init__(self, *inputs: TensorSpec) -> None:
        self.one = Signature(inputs, inputs, "numpy", batchable=True)

    def signature(self, model: str, version: str = "") -> Signature:
        return self.one


@st.composite
def tensors(draw: st.DrawFn, types: list[str]) -> tuple[str, np.ndarray]:
    datatype = draw(st.sampled_from(types))
    shape = draw(arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))
    if datatype == "BYTES":
        size = int(np.prod(shape))
        flat = np.empty(size, dtype=object)
        flat[:] = [item.encode() for item in draw(st.lists(st.text(max_size=8), min_size=size, max_size=size))]
        return datatype, flat.reshape(shape)
    dtype = NUMPY_OF[datatype]
    elements = arrays.from_dtype(dtype, allow_nan=False, allow_infinity=False) if dtype.kind == "f" else None
    return datatype, draw(arrays.arrays(dtype, shape, elements=elements))


def request_of(
    body: bytes, *, json_bytes: int | None = None, encoding: str = "", limits: Limits | None = None
) -> HttpRequest:
    headers = {} if json_bytes is None else {b"inference-header-content-length": str(json_bytes).encode()}
    if encoding:
        headers[b"content-encoding"] = encoding.encode()
    return HttpRequest("POST", "/", headers, body, match={"model": "m"}, received=1.0, limits=limits or Limits())


def equal(left: np.ndarray, right: np.ndarray) -> bool:
    if left.dtype == object or left.dtype.kind == "U":
        texts = [
            [item if isinstance(item, str) else item.decode() for item in array.ravel()] for array in (left, right)
        ]
        return left.shape == right.shape and texts[0] == texts[1]
    return left.shape == right.shape and left.dtype == right.dtype and left.tobytes() == right.tobytes()


@given(st.data(), st.booleans(), st.booleans(), st.sampled_from(["", "gzip", "deflate"]))
@settings(max_examples=200, deadline=None)
def test_any_tensor_comes_back_unchanged_in_all_four_combinations(
    data: st.DataObject, binary_in: bool, binary_out: bool, encoding: str
) -> None:
    datatype, array = data.draw(tensors(ALL_TYPES if binary_in and binary_out else JSON_TYPES))
    spec = TensorSpec("x", datatype, (-1,) * array.ndim)
    item = InferInput("x", list(array.shape), datatype)
    item.set_data_from_numpy(array, binary_data=binary_in)
    wished = [InferRequestedOutput("x", binary_data=binary_out)]
    body, json_bytes = _get_inference_request([item], "", wished, 0, False, False, 0, None, None)
    if encoding:
        body = gzip.compress(body) if encoding == "gzip" else zlib.compress(body)
    exchange = decode(request_of(body, json_bytes=json_bytes, encoding=encoding), OneModel(spec))  # type: ignore[arg-type]
    got = exchange.request.inputs["x"]
    assert equal(got, array)
    answer = exchange.encode(Response("m", "1", {"x": got}))
    parts = [answer.body] if isinstance(answer.body, bytes) else answer.body
    length = dict(answer.headers).get("Inference-Header-Content-Length")
    result = InferResult.from_response_body(b"".join(parts), header_length=None if length is None else int(length))
    assert equal(np.asarray(result.as_numpy("x")), array)


@given(tensors(JSON_TYPES), st.booleans(), st.sampled_from([None, 1]))
@settings(max_examples=200, deadline=None)
def test_nested_and_flat_json_and_any_white_space_mean_the_same(
    tensor: tuple[str, np.ndarray], nested: bool, indent: int | None
) -> None:
    datatype, array = tensor
    plain = (
        np.array([item.decode() for item in array.ravel()], object).reshape(array.shape)
        if datatype == "BYTES"
        else array
    )
    data = plain.tolist() if nested and array.size else plain.ravel().tolist()
    item = {"name": "x", "datatype": datatype, "shape": array.shape, "data": data}
    body = orjson.dumps({"inputs": [item]}, option=orjson.OPT_INDENT_2 if indent else 0)
    exchange = decode(request_of(body), OneModel(TensorSpec("x", datatype, (-1,) * array.ndim)))  # type: ignore[arg-type]
    assert equal(exchange.request.inputs["x"], array)


ITEM = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [[1, 2], [3, 4.5]], "parameters": {"a": 1}}
GOOD = orjson.dumps({"id": "1", "parameters": {"timeout": 5}, "inputs": [ITEM], "outputs": [{"name": "x"}]})
HEAD = orjson.dumps(
    {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 11}}]}
)
BINARY = HEAD + b"\x02\0\0\0ab\x01\0\0\0c"
NPY = b"\x93NUMPY\x01\x00\x46\x00{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }          \n" + b"\0" * 8


@st.composite
def mutilated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A good body with some bytes replaced, cut out, doubled or put in."""
    body = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(body)))
        end = min(len(body), start + draw(st.integers(0, 6)))
        words = [
            b"null",
            b"true",
            b"-1",
            b"1e999",
            b"[",
            b"]",
            b"{",
            b"99999999999999999999",
            b'"',
            b"\\u",
            b"[[[[",
            b"NaN",
        ]
        body[start:end] = draw(st.binary(max_size=4) | st.sampled_from(words) | st.just(bytes(body[start:end]) * 2))
    return bytes(body)


SPECS = [
    (TensorSpec("x", "FP32", (-1, 2)),),
    (TensorSpec("x", "BYTES", (-1,)),),
    (TensorSpec("x", "INT8", (-1, -1)), TensorSpec("y", "BOOL", (-1,))),
]
DECODERS = [
    route.decode for protocol in (v2, v1, predict) for route in protocol.routes() if not hasattr(route, "handle")
]
SEEDS = [
    GOOD, BINARY, HEAD, NPY, b'{"instances": [[1, 2], [3, 4]]}', b'{"inputs": {"x": [[1, 2]], "y": [true]}}',
    b"1,2\n3,4\n", b'{"x": "text", "parameters": {"k": 1}}', b'[{"x": [1, 2]}, {"x": {"b64": "AAAA"}}]',
    gzip.compress(GOOD), zlib.compress(GOOD),
]  # fmt: skip


@given(
    body=mutilated(SEEDS),
    specs=st.sampled_from(SPECS),
    decoder=st.sampled_from(DECODERS),
    length=st.none() | st.integers(-1, 200) | st.just(len(HEAD)),
    encoding=st.sampled_from(["", "", "", "gzip", "deflate"]),
    kind=st.sampled_from([b"", b"text/csv", b"application/json", b"image/png"]),
)
@settings(max_examples=1500, deadline=2000)
def test_a_mutilated_body_raises_our_errors_only_and_holds_no_more_than_it_sent(
    body: bytes, specs: tuple[TensorSpec, ...], decoder: Any, length: int | None, encoding: str, kind: bytes
) -> None:
    http = request_of(
        body, json_bytes=length, encoding=encoding, limits=Limits(tensor_bytes=1 << 16, decompressed_bytes=1 << 16)
    )
    http.headers = {**http.headers, b"content-type": kind}
    try:
        exchange = decoder(http, OneModel(*specs))
    except PenstockError as error:
        assert len(str(error)) < 2000
        return
    for array in exchange.request.inputs.values():
        assert array.nbytes <= 1 << 17


KEYS = st.sampled_from(["x", "y", "inputs", "instances", "b64", "parameters"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=20
)


@given(VALUES, st.sampled_from(SPECS), st.sampled_from(DECODERS))
@settings(max_examples=800, deadline=2000)
def test_any_json_is_read_or_refused(value: object, specs: tuple[TensorSpec, ...], decoder: Any) -> None:
    try:
        body = orjson.dumps(value)
    except TypeError:  # integers beyond 64 bits
        body = repr(value).encode()
    with contextlib.suppress(PenstockError):
        decoder(request_of(body), OneModel(*specs))


def test_the_decoders_of_all_protocols_were_found() -> None:
    assert len(DECODERS) >= 11
    assert all(isinstance(route, InferRoute) for route in predict.routes())
