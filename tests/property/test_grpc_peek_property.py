"""The name that the router reads out of a message, against protobuf's own reading of the whole."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.core.protobuf import length_prefix
from penstock.fleet.router.grpc_peek import UNARY, V2, model_name, named_in_metadata, names_model, text_metadata
from penstock.protocols import v2_grpc

INFER = V2 + "ModelInfer"
PREDICT = "/tensorflow.serving.PredictionService/Predict"
REQUEST = v2_grpc.plug._schema.message("inference.ModelInferRequest")


@given(st.text(max_size=60), st.text(max_size=20), st.lists(st.binary(max_size=300), max_size=8), st.data())
@settings(deadline=None, max_examples=100)
def test_the_name_is_protobufs_wherever_it_stands(name: str, id: str, raw: list[bytes], data: st.DataObject) -> None:
    message = REQUEST(model_name=name, id=id)
    message.raw_input_contents.extend(raw)
    message.inputs.add(name="x", datatype="FP32", shape=[len(raw), 2**40])
    message.parameters["model_name"].string_param = "not this one"
    assert model_name(INFER, message.SerializeToString()) == (name or None)
    # An encoder may write fields in any order.
    parts = [
        length_prefix(number, len(content)) + content
        for number, content in ((1, name.encode()), (3, id.encode()), *((7, one) for one in raw))
    ]
    shuffled = b"".join(data.draw(st.permutations(parts)))
    assert REQUEST.FromString(shuffled).model_name == name
    assert model_name(INFER, shuffled) == name


@given(st.text(max_size=60), st.integers(0, 2**63), st.binary(max_size=50))
def test_the_name_in_a_model_spec(name: str, version: int, rest: bytes) -> None:
    encoded = name.encode()
    spec = length_prefix(1, len(encoded)) + encoded
    assert model_name(PREDICT, length_prefix(1, len(spec)) + spec + length_prefix(2, len(rest)) + rest) == name
    before = length_prefix(2, len(rest)) + rest  # the inputs, first
    assert model_name(PREDICT, before + length_prefix(1, len(spec)) + spec) == name
    assert model_name(PREDICT, before) is None


@given(st.binary(max_size=400), st.sampled_from([INFER, PREDICT, V2 + "ModelReady"]))
def test_any_bytes_have_a_name_or_none(message: bytes, method: str) -> None:
    name = model_name(method, message)
    assert name is None or isinstance(name, str)


def test_odd_messages_name_nobody() -> None:
    long = b"x" * 300
    for message in (
        b"", b"\x0a", b"\x0a\x05abc", b"\x0b\x0c", b"\xff" * 20, b"\x08" + b"\xff" * 11, b"\x0d\x00",
        length_prefix(1, len(long)) + long, b"\x0a\x02\xff\xfe", b"\x10\x01" * 5000 + b"\x0a\x01m",
    ):  # fmt: skip
        assert model_name(INFER, message) is None
    assert model_name("/any.Service/Method", b"\x0a\x01m") is None


def test_stream_infer_is_no_unary_method() -> None:
    assert names_model(V2 + "ModelStreamInfer") and V2 + "ModelStreamInfer" not in UNARY
    assert INFER in UNARY and "/seldon.protos.Seldon/Predict" in UNARY and "/any.Service/Method" not in UNARY


def test_metadata_is_read_as_headers_are() -> None:
    headers = text_metadata((("a", "1"), ("a", "2"), ("b-bin", b"\x00"), ("seldon-model", ""), ("mm-model-id", "m")))
    assert headers == {"a": "1, 2", "seldon-model": "", "mm-model-id": "m"}
    assert named_in_metadata(headers) == "m"
    assert text_metadata(None) == {} and named_in_metadata({}) is None
