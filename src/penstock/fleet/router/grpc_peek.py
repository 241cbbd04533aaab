"""Which model a gRPC call is for, from its metadata or from the first bytes of its first message. Pure.

Of a message only the field with the name is looked at, wherever it stands; everything else is stepped over, not parsed.
Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

V2 = "/inference.GRPCInferenceService/"
_TENSORFLOW = "/tensorflow.serving.PredictionService/"

# Metadata that names a model: ours; ModelMesh's, for a model and for a virtual one; Seldon Core 2's and 1's.
# Source: https://github.com/kserve/modelmesh, https://docs.seldon.ai (routing by header).
ENDPOINT_KEYS = ("penstock-endpoint", "mm-model-id", "mm-vmodel-id", "seldon-model", "seldon")

# The fields that lead to the name, by method. Most messages begin with it; TensorFlow Serving's hold a ModelSpec, whose
# first field it is. Source: open-inference-protocol's grpc_predict_v2.proto, tensorflow_serving/apis/*.proto.
_NAME_AT: Mapping[str, tuple[int, ...]] = {
    **{
        V2 + method: (1,)
        for method in (
            "ModelInfer",
            "ModelStreamInfer",
            "ModelReady",
            "ModelMetadata",
            "ModelConfig",
            "ModelStatistics",
        )
    },
    **{_TENSORFLOW + method: (1, 1) for method in ("Predict", "Classify", "Regress", "GetModelMetadata")},
}

UNARY = frozenset(
    (
        *(method for method in _NAME_AT if method != V2 + "ModelStreamInfer"),
        *(f"/seldon.protos.{service}/Predict" for service in ("Seldon", "Model")),
    )
)
"""Methods known to take one message and to answer with one; they cost grpcio less when it knows."""

ABOUT = frozenset(
    (
        *(V2 + method for method in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics")),
        _TENSORFLOW + "GetModelMetadata",
    )
)
"""Methods that ask about a model and not the model: they tell nothing of how good a revision is."""

_MOST_FIELDS = 4096  # looked at in one message; requests have a few dozen
_MOST_NAME_BYTES = 255


def names_model(method: str) -> bool:
    """Whether the first message of this method names a model."""
    return method in _NAME_AT


def model_name(method: str, message: bytes) -> str | None:
    """The model that a message of this method is for; None when it names none, or cannot be read."""
    path = _NAME_AT.get(method)
    if path is None:
        return None
    at, end = 0, len(message)
    for number in path:
        span = _field(message, at, end, number)
        if span is None:
            return None
        at, end = span
    if end - at > _MOST_NAME_BYTES:
        return None
    try:
        return message[at:end].decode()
    except UnicodeDecodeError:
        return None


def named_in_metadata(headers: Mapping[str, str]) -> str | None:
    """The endpoint that metadata names."""
    for key in ENDPOINT_KEYS:
        name = headers.get(key)
        if name:
            return name
    return None


def text_metadata(pairs: Iterable[tuple[str, str | bytes]] | None) -> dict[str, str]:
    """Text metadata with repeated keys joined, as headers are; values of `-bin` keys are bytes and name nothing."""
    headers: dict[str, str] = {}
    for key, value in pairs or ():
        if isinstance(value, str):
            before = headers.get(key)
            headers[key] = value if before is None else f"{before}, {value}"
    return headers


def _field(message: bytes, at: int, end: int, number: int) -> tuple[int, int] | None:
    """Where the contents of the first length-delimited field of this number begin and end."""
    for _ in range(_MOST_FIELDS):
        if at >= end:
            return None
        tag, at = _varint(message, at, end)
        kind = tag & 7
        if kind == 2:
            length, at = _varint(message, at, end)
            if at + length > end:
                return None
            if tag >> 3 == number:
                return at, at + length
            at += length
        elif kind == 0:
            _, at = _varint(message, at, end)
        elif kind == 1:
            at += 8
        elif kind == 5:
            at += 4
        else:
            return None
    return None


def _varint(message: bytes, at: int, end: int) -> tuple[int, int]:
    """The varint at `at` and where the next thing begins; past `end` when it is cut off or too long."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    return 0, end + 1
